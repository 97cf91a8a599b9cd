//! How upstreams are reached: whose certificates are trusted, who is shown ours, and by which address.

use crate::harness::registry::neighbours;
use crate::harness::{
    APP, Authority, Binary, Blob, Demand, FakeRegistry, Image, KIB, MIB, ProxyBuilder, Swallower,
    TestProxy, TlsFront, TokenServer, any,
};

/// PEM that has nothing in it.
const HOLLOW: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/// The name of the registry.
const REGISTRY: &str = "registry.example.com";

/// A proxy whose registry is behind TLS at a public address, by the name of [`REGISTRY`].
fn behind(front: &TlsFront, upstream: &FakeRegistry) -> ProxyBuilder {
    TestProxy::in_front_of(upstream)
        .upstream("url", front.url(REGISTRY))
        .name(REGISTRY, &["192.0.2.1"])
        .stand_in("192.0.2.1", front.address().ip())
}

/// The same with another host that has an address of its own.
fn beside(proxy: ProxyBuilder, name: &str, front: &TlsFront) -> ProxyBuilder {
    proxy
        .name(name, &["198.51.100.1"])
        .stand_in("198.51.100.1", front.address().ip())
}

/// Has the upstream trust an authority.
fn trusting(proxy: ProxyBuilder, authority: &Authority) -> ProxyBuilder {
    let file = proxy.write("ca.pem", &authority.pem());
    proxy.upstream("ca_file", file)
}

/// Gives the upstream a certificate of ours to show.
fn known(proxy: ProxyBuilder, authority: &Authority) -> ProxyBuilder {
    let ours = authority.vouch(&["layerhold.example.com"]);
    let certificate = proxy.write("ours.pem", &ours.certificate_pem);
    let key = proxy.write("ours.key", &ours.key_pem);
    proxy
        .upstream("client_certificate", certificate)
        .upstream("client_key", key)
}

/// What comes of asking for a blob.
async fn status(proxy: &TestProxy, blob: &Blob) -> u16 {
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    whole.head.status
}

#[tokio::test]
async fn a_registry_of_a_private_authority_is_pulled_from() {
    let authority = Authority::new();
    let upstream = FakeRegistry::start().await;
    let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Nothing).await;
    let image = Image::random(&[MIB]);
    upstream.serve_image(APP, "v1", &image);
    let proxy = trusting(behind(&front, &upstream), &authority);
    let proxy = proxy.start().await;
    let pulled = proxy.pull_manifest(APP, "v1").await;
    assert_eq!(pulled.bytes, image.manifest.bytes());
    proxy.pull_blob(APP, &image.layers[0]).await;
}

#[tokio::test]
async fn a_registry_whose_certificate_nobody_vouches_for_is_told_nothing() {
    let (ours, other) = (Authority::new(), Authority::new());
    for (trusted, vouching, name) in [
        (None, &ours, REGISTRY),
        (Some(&ours), &other, REGISTRY),
        (Some(&ours), &ours, "other.example.com"),
        (Some(&ours), &ours, "127.0.0.1"),
    ] {
        let upstream = FakeRegistry::start().await;
        let front = TlsFront::start(&upstream, vouching, &[name], Demand::Nothing).await;
        let mut proxy = behind(&front, &upstream);
        if let Some(trusted) = trusted {
            proxy = trusting(proxy, trusted);
        }
        let proxy = proxy.start().await;
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        assert_eq!(status(&proxy, &blob).await, 502, "{name}");
        assert!(front.connections() > 0, "{name}");
        assert_eq!(upstream.connections(), 0, "{name}");
    }
}

#[tokio::test]
async fn an_address_is_vouched_for_like_a_name() {
    let authority = Authority::new();
    let upstream = FakeRegistry::start().await;
    let front = TlsFront::start(&upstream, &authority, &["127.0.0.1"], Demand::Nothing).await;
    let proxy = TestProxy::in_front_of(&upstream).upstream("url", front.url("127.0.0.1"));
    let proxy = trusting(proxy, &authority).start().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn whom_the_machine_trusts_is_trusted_besides() {
    let (ours, machines) = (Authority::new(), Authority::new());
    for (is_trusted, expected) in [(true, 200), (false, 502)] {
        let upstream = FakeRegistry::start().await;
        let front = TlsFront::start(&upstream, &machines, &["127.0.0.1"], Demand::Nothing).await;
        let builder = TestProxy::in_front_of(&upstream).upstream("url", front.url("127.0.0.1"));
        let mut builder = trusting(builder, &ours);
        if is_trusted {
            let roots = builder.write("roots.pem", &machines.pem());
            builder = builder.variable("SSL_CERT_FILE", &roots);
        }
        let binary = Binary::start(&builder).await;
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        let whole = binary.blob(APP, blob.digest()).whole().await;
        assert_eq!(whole.head.status, expected, "{}", whole.text());
    }
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_is_shown_ours() {
    let authority = Authority::new();
    for (is_known, expected) in [(true, 200), (false, 502)] {
        let upstream = FakeRegistry::start().await;
        let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Must).await;
        let mut proxy = trusting(behind(&front, &upstream), &authority);
        if is_known {
            proxy = known(proxy, &authority);
        }
        let proxy = proxy.start().await;
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        assert_eq!(status(&proxy, &blob).await, expected);
        assert_eq!(front.shown() > 0, is_known);
        assert_eq!(upstream.connections() > 0, is_known);
    }
}

#[tokio::test]
async fn pitfall_32_our_certificate_is_shown_to_nobody_whom_the_registry_names() {
    let authority = Authority::new();
    for (demand, expected) in [(Demand::Wish, 200), (Demand::Must, 502)] {
        let (upstream, host) = (FakeRegistry::start().await, FakeRegistry::start().await);
        let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Must).await;
        let cdn = "cdn.example.com";
        let other = TlsFront::start(&host, &authority, &[cdn], demand).await;
        let proxy = trusting(behind(&front, &upstream), &authority);
        let proxy = beside(known(proxy, &authority), cdn, &other);
        let proxy = proxy.start().await;
        let blob = Blob::random(KIB);
        host.serve_blob("bucket", &blob);
        let location = format!("{}/v2/bucket/blobs/{}", other.url(cdn), blob.digest());
        upstream.redirect(any(blob.digest()), 307, location);
        assert_eq!(status(&proxy, &blob).await, expected);
        assert_eq!(front.shown(), 1);
        assert!(other.connections() > 0);
        assert_eq!(other.shown(), 0);
    }
}

#[tokio::test]
async fn pitfall_31_our_certificate_is_shown_to_no_other_token_server() {
    let authority = Authority::new();
    for is_listed in [false, true] {
        let tokens = TokenServer::start().await;
        let upstream = FakeRegistry::start().await;
        let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Must).await;
        let auth = "auth.example.com";
        let other = TlsFront::start(&tokens, &authority, &[auth], Demand::Wish).await;
        let realm = other.url(auth);
        let challenge = format!(r#"Bearer realm="{realm}/token",service="fake",scope="{{scope}}""#);
        upstream.challenge(&tokens, &challenge);
        let proxy = trusting(behind(&front, &upstream), &authority);
        let mut proxy = beside(known(proxy, &authority), auth, &other);
        if is_listed {
            proxy = proxy.upstream("token_realms", vec![realm]);
        }
        let proxy = proxy.start().await;
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        proxy.pull_blob(APP, &blob).await;
        assert_eq!(tokens.exchanges(), 1);
        assert_eq!((other.handshakes(), other.shown()), (1, 0));
    }
}

#[tokio::test]
async fn https_is_not_left_for_http() {
    let authority = Authority::new();
    let (upstream, hostile) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let front = TlsFront::start(&upstream, &authority, &[REGISTRY], Demand::Nothing).await;
    let proxy = trusting(behind(&front, &upstream), &authority)
        .name("cdn.example.com", &["198.51.100.1"])
        .stand_in("198.51.100.1", hostile.address().ip())
        .start()
        .await;
    for host in ["cdn.example.com", "198.51.100.1", REGISTRY] {
        let blob = Blob::random(KIB);
        hostile.serve_blob("loot", &blob);
        let (port, digest) = (hostile.address().port(), blob.digest());
        let location = format!("http://{host}:{port}/v2/loot/blobs/{digest}");
        upstream.redirect(any(digest), 307, location);
        assert_eq!(status(&proxy, &blob).await, 502, "{host}");
        assert_eq!(upstream.count(&any(digest)), 1, "{host}");
    }
    assert_eq!(hostile.connections(), 0);
}

#[tokio::test]
async fn files_that_are_not_what_they_should_be_are_named_before_anything_starts() {
    let upstream = FakeRegistry::start().await;
    let authority = Authority::new();
    let (one, other) = (authority.vouch(&["a.b"]), authority.vouch(&["a.b"]));
    let broken = one.certificate_pem.replace("-----END", "----END");
    let client = ["client_certificate", "client_key"];
    for (keys, contents, said) in [
        (
            &["ca_file"][..],
            &[None][..],
            "could not read {0}: No such file",
        ),
        (&["ca_file"], &[Some("")], "there is no certificate in {0}"),
        (
            &["ca_file"],
            &[Some(&one.key_pem)],
            "there is no certificate in {0}",
        ),
        (&["ca_file"], &[Some(&broken)], "{0} is not well-formed PEM"),
        (
            &["ca_file"],
            &[Some(HOLLOW)],
            "a certificate in {0} cannot be used: ",
        ),
        (&client, &[None, Some(&one.key_pem)], "could not read {0}: "),
        (
            &client,
            &[Some(&one.certificate_pem), None],
            "could not read {1}: ",
        ),
        (
            &client,
            &[Some(&one.key_pem), Some(&one.key_pem)],
            "there is no certificate in {0}",
        ),
        (
            &client,
            &[Some(&one.certificate_pem), Some(&one.certificate_pem)],
            "there is no private key in {1}",
        ),
        (
            &client,
            &[Some(&one.certificate_pem), Some(&other.key_pem)],
            "{1} is no key for {0}: ",
        ),
        (
            &["password_file"],
            &[None],
            "{0} could not be read: No such file",
        ),
    ] {
        let mut builder = TestProxy::in_front_of(&upstream);
        let mut said = format!("layerhold: upstream[one.example]: {said}");
        for (n, (key, content)) in keys.iter().zip(contents).enumerate() {
            let mut file = builder.write(&n.to_string(), content.unwrap_or_default());
            if content.is_none() {
                file += ".absent";
            }
            said = said.replace(&format!("{{{n}}}"), &file);
            builder = builder.upstream(key, file);
        }
        if keys == ["password_file"] {
            builder = builder.upstream("username", "robot");
        }
        let (status, told) = Binary::refused(&builder).await;
        assert_eq!(status.code(), Some(64), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.starts_with(&said), "{told}\n{said}");
        let (status, printed) = Binary::check(&builder).await;
        assert_eq!((status.code(), &*printed), (Some(64), ""), "{told}");
    }
}

#[tokio::test]
async fn a_folder_is_no_password_file() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).upstream("username", "robot");
    let (folder, file) = (builder.dir(), builder.write("password", "hush"));
    std::fs::create_dir_all(&folder).unwrap();
    for (place, code) in [(folder.to_str().unwrap(), 64), (&file, 0)] {
        let builder = builder.clone().upstream("password_file", place);
        let (status, printed) = Binary::check(&builder).await;
        assert_eq!(status.code(), Some(code), "{printed}");
        assert!(!printed.contains("hush"), "{printed}");
    }
}

/// A proxy whose registry goes by a name that has these addresses, where they are.
fn named(upstream: &FakeRegistry, addresses: &[&str]) -> ProxyBuilder {
    let url = format!("http://{REGISTRY}:{}", upstream.address().port());
    TestProxy::in_front_of(upstream)
        .upstream("url", url)
        .name(REGISTRY, addresses)
}

#[tokio::test]
async fn a_registry_may_be_an_ipv6_address() {
    let upstream = FakeRegistry::start_at("::1").await;
    let proxy = TestProxy::in_front_of(&upstream).start().await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    proxy.pull_blob(APP, &blob).await;
    // And lead to another of its own kind.
    let (host, other) = (FakeRegistry::start_at("::1").await, Blob::random(KIB));
    host.serve_blob("bucket", &other);
    let location = format!(
        "http://{}/v2/bucket/blobs/{}",
        host.address(),
        other.digest()
    );
    upstream.redirect(any(other.digest()), 307, location);
    proxy.pull_blob(APP, &other).await;
}

#[tokio::test]
async fn a_name_with_addresses_of_both_kinds_is_reached_by_the_one_that_answers() {
    for alive in [0, 1] {
        for order in [["127.0.0.1", "::1"], ["::1", "127.0.0.1"]] {
            let fakes = FakeRegistry::two_at(["127.0.0.1", "::1"]).await;
            let (upstream, dead) = (&fakes[alive], &fakes[1 - alive]);
            dead.stop().await;
            let proxy = named(upstream, &order).start().await;
            let blob = Blob::random(KIB);
            upstream.serve_blob(APP, &blob);
            proxy.pull_blob(APP, &blob).await;
        }
    }
}

#[tokio::test]
async fn an_address_that_swallows_everything_is_passed_over() {
    for (swallows, answers, connect) in [
        // One after the other, each with its share of the time.
        ("127.0.0.2", "127.0.0.1", "1s"),
        // The other kind is tried long before that (RFC 8305 §5).
        ("::1", "127.0.0.1", "20s"),
        ("127.0.0.1", "::1", "20s"),
    ] {
        let [first, second] = neighbours([swallows, answers]).await;
        let _swallower = Swallower::of(first).await;
        let upstream = FakeRegistry::start_on(second);
        let proxy = named(&upstream, &[swallows, answers])
            .set("timeouts.answer", "5s")
            .set("timeouts.connect", connect)
            .start()
            .await;
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        proxy.pull_blob(APP, &blob).await;
    }
}

#[tokio::test]
async fn a_registry_whose_every_address_swallows_everything_is_an_outage() {
    let [first, second] = neighbours(["127.0.0.2", "::1"]).await;
    let port = first.local_addr().unwrap().port();
    let _swallowers = [Swallower::of(first).await, Swallower::of(second).await];
    let nobody = FakeRegistry::start().await;
    let proxy = named(&nobody, &["127.0.0.2", "::1"])
        .upstream("url", format!("http://{REGISTRY}:{port}"))
        .set("timeouts.answer", "5s")
        .start()
        .await;
    assert_eq!(status(&proxy, &Blob::random(KIB)).await, 502);
}

#[tokio::test]
async fn somebody_who_stands_in_is_raced_like_any_other() {
    let [first, second] = neighbours(["::1", "127.0.0.1"]).await;
    let _swallower = Swallower::of(first).await;
    let upstream = FakeRegistry::start_on(second);
    // The check sees two public addresses, and the redirect's client has them to choose from.
    let proxy = TestProxy::in_front_of(&upstream)
        .name("cdn.example.net", &["2001:db8::1", "198.51.100.1"])
        .stand_in("2001:db8::1", "::1".parse().unwrap())
        .stand_in("198.51.100.1", upstream.address().ip())
        .start()
        .await;
    let blob = Blob::random(KIB);
    upstream.serve_blob("bucket", &blob);
    let port = upstream.address().port();
    let location = format!(
        "http://cdn.example.net:{port}/v2/bucket/blobs/{}",
        blob.digest()
    );
    upstream.redirect(any(format!("{APP}/blobs/")), 307, location);
    proxy.pull_blob(APP, &blob).await;
}
