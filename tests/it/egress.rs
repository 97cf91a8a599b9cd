//! Networks that are left through a proxy only: what it is asked, what it is told, and what it is not trusted with.

use crate::harness::{
    APP, Asked, Authority, Binary, Blob, Demand, FakeProxy, FakeRegistry, Image, KIB, ProxyBuilder,
    TestProxy, TlsFront, TokenServer, any, get,
};

const REGISTRY: &str = "registry.example.com";
const CDN: &str = "cdn.example.net";
const AUTH: &str = "auth.example.com";
/// What is sent for `user` with `p@ss` (RFC 7617 §2).
const BASIC: &str = "Basic dXNlcjpwQHNz";

/// A proxy whose registry is found under its name by the egress proxy alone.
fn beyond(upstream: &FakeRegistry) -> ProxyBuilder {
    let url = format!("http://{REGISTRY}:{}", upstream.address().port());
    TestProxy::in_front_of(upstream).upstream("url", url)
}

/// The lines that a proxy was asked.
fn lines(egress: &FakeProxy) -> Vec<String> {
    egress.log().into_iter().map(|it| it.line).collect()
}

/// What comes of asking for a blob.
async fn status(proxy: &TestProxy, blob: &Blob) -> u16 {
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    whole.head.status
}

/// A blob that a registry has.
fn served(upstream: &FakeRegistry) -> Blob {
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    blob
}

#[tokio::test]
async fn https_goes_through_a_tunnel_from_end_to_end() {
    let authority = Authority::new();
    let upstream = FakeRegistry::start().await;
    let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Nothing).await;
    let egress = FakeProxy::start().await.knows(REGISTRY, front.address());
    let proxy = TestProxy::in_front_of(&upstream)
        .upstream("url", format!("https://{REGISTRY}"))
        .upstream("proxy", egress.url());
    let file = proxy.write("ca.pem", &authority.pem());
    let proxy = proxy.upstream("ca_file", file).start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, image.manifest.bytes());
    proxy.pull_blob(APP, &image.layers[0]).await;
    // The proxy learns where to, and nothing else; the connection is kept.
    assert_eq!(lines(&egress), [format!("CONNECT {REGISTRY}:443 HTTP/1.1")]);
    let asked = &egress.log()[0];
    assert_eq!(asked.header("host"), Some("registry.example.com:443"));
    assert_eq!(asked.header("proxy-authorization"), None);
    assert_eq!(front.handshakes(), 1);
}

#[tokio::test]
async fn http_is_handed_to_the_proxy_with_redirects_and_token_servers() {
    let tokens = TokenServer::start().await;
    let (upstream, host) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let egress = FakeProxy::start()
        .await
        .knows(REGISTRY, upstream.address())
        .knows(CDN, host.address())
        .knows(AUTH, tokens.address());
    let challenge =
        format!(r#"Bearer realm="http://{AUTH}/token",service="fake",scope="{{scope}}""#);
    upstream.challenge(&tokens, &challenge);
    let proxy = beyond(&upstream).upstream("proxy", egress.url());
    let proxy = proxy.start().await;
    let blob = Blob::random(KIB);
    host.serve_blob("bucket", &blob);
    let digest = blob.digest();
    let location = format!("http://{CDN}/v2/bucket/blobs/{digest}");
    upstream.redirect(any(digest), 307, &location);
    proxy.pull_blob(APP, &blob).await;

    let port = upstream.address().port();
    let own = format!("GET http://{REGISTRY}:{port}/v2/{APP}/blobs/{digest} HTTP/1.1");
    let log = lines(&egress);
    assert_eq!([&log[0], &log[2]], [&own, &own], "{log:#?}");
    assert!(
        log[1].starts_with(&format!("GET http://{AUTH}/token?")),
        "{log:#?}"
    );
    assert_eq!(log[3], format!("GET {location} HTTP/1.1"));
    let hosts: Vec<_> = egress
        .log()
        .iter()
        .map(|it| it.header("host").map(str::to_owned))
        .collect();
    let port = Some(format!("{REGISTRY}:{port}"));
    let [auth, cdn] = [AUTH, CDN].map(|it| Some(it.to_owned()));
    assert_eq!(hosts, [port.clone(), auth, port, cdn]);
}

/// A proxy that leaves by `egress`, as a user of it.
fn as_user(proxy: ProxyBuilder, egress: &FakeProxy) -> ProxyBuilder {
    let url = format!("http://user:p%40ss@{}", egress.address());
    proxy
        .variable("HTTP_PROXY", &url)
        .variable("HTTPS_PROXY", &url)
}

#[tokio::test]
async fn pitfall_38_who_we_are_is_told_the_proxy_and_nobody_else() {
    let authority = Authority::new();
    let (upstream, host) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Nothing).await;
    let egress = FakeProxy::start()
        .await
        .knows(REGISTRY, front.address())
        .knows("plain.example.com", upstream.address());
    let location = format!("http://{CDN}:{}/", host.address().port());
    for url in [front.url(REGISTRY), "http://plain.example.com".to_owned()] {
        let proxy = TestProxy::in_front_of(&upstream)
            .upstream("url", url.clone())
            .variable("NO_PROXY", CDN)
            .name(CDN, &["198.51.100.1"])
            .stand_in("198.51.100.1", host.address().ip());
        let file = proxy.write("ca.pem", &authority.pem());
        let proxy = as_user(proxy.upstream("ca_file", file), &egress);
        let proxy = proxy.start().await;
        proxy.pull_blob(APP, &served(&upstream)).await;
        // What is reached directly hears nothing of it.
        let other = Blob::random(KIB);
        upstream.redirect(any(other.digest()), 307, location.clone());
        status(&proxy, &other).await;
    }
    let told: Vec<Asked> = egress.log();
    assert!(
        told.iter()
            .all(|it| it.header("proxy-authorization") == Some(BASIC)),
        "{told:#?}"
    );
    assert!(
        told.iter().any(|it| it.line.starts_with("CONNECT ")),
        "{told:#?}"
    );
    assert!(
        told.iter()
            .any(|it| it.line.starts_with("GET http://plain")),
        "{told:#?}"
    );
    assert_eq!(host.log().len(), 1);
    for seen in upstream.log().into_iter().chain(host.log()) {
        assert_eq!(seen.header("proxy-authorization"), None);
    }
}

#[tokio::test]
async fn exceptions_and_nothing_else_decide_what_is_reached_directly() {
    for (except, is_direct) in [
        ("", false),
        ("example.org", false),
        ("ample.com", false),
        ("localhost,127.0.0.0/8", false),
        ("example.com", true),
        (".example.com", true),
        ("*.example.com", true),
        ("x, registry.example.com", true),
        ("*", true),
    ] {
        let upstream = FakeRegistry::start().await;
        let egress = FakeProxy::start().await.knows(REGISTRY, upstream.address());
        let proxy = as_user(beyond(&upstream), &egress)
            .variable("NO_PROXY", except)
            .name(REGISTRY, &["127.0.0.1"])
            .start()
            .await;
        proxy.pull_blob(APP, &served(&upstream)).await;
        assert_eq!(egress.log().is_empty(), is_direct, "{except}");
    }
}

#[tokio::test]
async fn a_registry_on_this_machine_is_no_exception_by_itself() {
    for (except, is_direct) in [("", false), ("127.0.0.0/8", true), ("127.0.0.1", true)] {
        let upstream = FakeRegistry::start().await;
        let egress = FakeProxy::start().await;
        let proxy = as_user(TestProxy::in_front_of(&upstream), &egress);
        let proxy = proxy.variable("no_proxy", except).start().await;
        proxy.pull_blob(APP, &served(&upstream)).await;
        assert_eq!(egress.log().is_empty(), is_direct, "{except}");
    }
}

#[tokio::test]
async fn an_upstream_may_have_no_proxy_or_one_of_its_own() {
    let upstream = FakeRegistry::start().await;
    let (egress, other) = (FakeProxy::start().await, FakeProxy::start().await);
    for (proxy, expected) in [("none".to_owned(), [0, 0]), (other.url(), [0, 1])] {
        let builder = as_user(TestProxy::in_front_of(&upstream), &egress);
        let proxy = builder.upstream("proxy", proxy).start().await;
        proxy.pull_blob(APP, &served(&upstream)).await;
        assert_eq!([egress.log().len(), other.log().len()], expected);
    }
}

#[tokio::test]
async fn pitfall_32_an_address_is_checked_before_a_proxy_is_asked_for_it() {
    let hostile = FakeRegistry::start().await;
    let upstream = FakeRegistry::start().await;
    let egress = FakeProxy::start().await.knows(REGISTRY, upstream.address());
    // This proxy would find them all.
    let hosts = [
        "localhost",
        "a.localhost",
        "metadata.google.internal",
        "METADATA.google.internal.",
        "168.63.129.16",
        "[fd00:ec2::254]",
        "2130706433",
        "0x7f.1",
        "127.0.0.1.",
    ];
    let egress = hosts
        .iter()
        .fold(egress, |it, host| it.knows(host, hostile.address()));
    let proxy = beyond(&upstream).upstream("proxy", egress.url());
    let proxy = proxy.start().await;
    let literals = ["127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0"];
    let mut expected = 0;
    for host in hosts.into_iter().chain(literals) {
        for scheme in ["http", "https"] {
            let blob = Blob::random(KIB);
            hostile.serve_blob("loot", &blob);
            let (port, digest) = (hostile.address().port(), blob.digest());
            let location = format!("{scheme}://{host}:{port}/v2/loot/blobs/{digest}");
            upstream.redirect(any(digest), 307, location);
            assert_eq!(status(&proxy, &blob).await, 502, "{scheme}://{host}");
            expected += 1;
            assert_eq!(egress.log().len(), expected, "{scheme}://{host}");
        }
    }
    assert_eq!(hostile.connections(), 0);
}

#[tokio::test]
async fn a_network_that_is_listed_may_be_led_to_through_a_proxy_too() {
    let (upstream, host) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let egress = FakeProxy::start().await.knows(REGISTRY, upstream.address());
    let proxy = beyond(&upstream)
        .upstream("proxy", egress.url())
        .upstream("redirect_networks", vec!["127.0.0.0/8"])
        .start()
        .await;
    let blob = Blob::random(KIB);
    host.serve_blob("bucket", &blob);
    let location = format!(
        "http://{}/v2/bucket/blobs/{}",
        host.address(),
        blob.digest()
    );
    upstream.redirect(any(blob.digest()), 307, location);
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(egress.log().len(), 2);
}

#[tokio::test]
async fn pitfall_32_what_is_an_exception_is_checked_when_it_is_dialled() {
    let (upstream, hostile) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let egress = FakeProxy::start().await.knows(REGISTRY, upstream.address());
    let proxy = as_user(beyond(&upstream), &egress)
        .variable("NO_PROXY", CDN)
        .name(CDN, &["10.0.0.7"])
        .stand_in("10.0.0.7", hostile.address().ip())
        .start()
        .await;
    let blob = Blob::random(KIB);
    let location = format!("http://{CDN}:{}/", hostile.address().port());
    upstream.redirect(any(blob.digest()), 307, location);
    assert_eq!(status(&proxy, &blob).await, 502);
    assert_eq!(upstream.count(&get(blob.digest())), 1);
    assert_eq!(hostile.connections(), 0);
}

#[tokio::test]
async fn what_a_proxy_said_is_in_the_log() {
    let upstream = FakeRegistry::start().await;
    for (refusal, said) in [
        (
            "407 Who are you",
            "answered 407 Proxy Authentication Required",
        ),
        ("403 No", "answered 403 Forbidden"),
        ("502 Bad Gateway", "answered 502 Bad Gateway"),
        ("20x", "gave an answer that cannot be right"),
    ] {
        let egress = FakeProxy::start().await;
        egress.refuse(refusal);
        let builder = TestProxy::in_front_of(&upstream)
            .upstream("url", format!("https://{REGISTRY}"))
            .upstream("proxy", egress.url());
        let binary = Binary::start(&builder).await;
        let blob = Blob::random(KIB);
        let whole = binary.blob(APP, blob.digest()).whole().await;
        assert_eq!(whole.head.status, 502, "{}", whole.text());
        let said = format!("the proxy {} {said}", egress.address());
        binary
            .wait_for_log(|line| line.to_string().contains(&said))
            .await;
        assert!(!whole.text().contains(&egress.address().to_string()));
    }
}

#[tokio::test]
async fn a_proxy_that_is_down_or_silent_is_an_outage_and_tags_are_served_stale() {
    let authority = Authority::new();
    for (is_https, is_silent) in [(true, true), (true, false), (false, false)] {
        let upstream = FakeRegistry::start().await;
        let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Nothing).await;
        let mut egress = FakeProxy::start().await.knows(
            REGISTRY,
            if is_https {
                front.address()
            } else {
                upstream.address()
            },
        );
        let scheme = if is_https { "https" } else { "http" };
        let proxy = TestProxy::in_front_of(&upstream)
            .upstream("url", format!("{scheme}://{REGISTRY}"))
            .upstream("proxy", egress.url())
            .set("freshness.fresh_for", "0s")
            .set("timeouts.answer", "3s");
        let file = proxy.write("ca.pem", &authority.pem());
        let proxy = proxy.upstream("ca_file", file).start().await;
        let image = Image::random(&[KIB]);
        upstream.serve_image(APP, "v1", &image);
        proxy.pull_manifest(APP, "v1").await;

        if is_silent {
            egress.fall_silent();
            // The tunnel that there is would do.
            upstream.stop().await;
        } else {
            egress.stop().await;
        }
        let stale = proxy.pull_manifest(APP, "v1").await;
        assert_eq!(stale.bytes, image.manifest.bytes());
        let expected = "layerhold; fwd=stale; detail=upstream-unavailable";
        assert_eq!(stale.head.cache_status(), expected);
        let pulled = status(&proxy, &image.layers[0]).await;
        assert_eq!(pulled, 502, "{is_https} {is_silent}");
    }
}
