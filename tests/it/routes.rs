//! Which upstream is meant, what it is asked, and what is nobody's.

use serde_json::{Value, json};

use crate::harness::blob::OCI_INDEX;
use crate::harness::proxy::{ONE, TWO};
use crate::harness::{
    APP, Blob, Connection, FakeRegistry, Fault, Image, KIB, Manifest, Request, TestProxy, Whole,
    any, get, pair,
};

/// Two upstreams that hold different bytes under the same name, and a proxy that knows the second by a host as well.
async fn two() -> (FakeRegistry, FakeRegistry, TestProxy, [Image; 2]) {
    let (one, two) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let images = [Image::random(&[KIB]), Image::random(&[KIB])];
    one.serve_image(APP, "v1", &images[0]);
    two.serve_image(APP, "v1", &images[1]);
    let proxy = TestProxy::in_front_of(&one)
        .and(TWO, &two)
        .upstream("hosts", vec!["two.cache.example"])
        .start()
        .await;
    (one, two, proxy, images)
}

#[tokio::test]
async fn the_first_of_ns_host_path_and_default_decides() {
    let (_one, _two, proxy, [first, second]) = two().await;
    let plain = format!("/v2/{APP}/manifests/v1");
    let at = |target: String| proxy.get(target);
    let host = |request: Request, host: &str| request.header("Host", host);
    for (request, image) in [
        (at(plain.clone()), &first),
        (at(format!("{plain}?ns={ONE}")), &first),
        (at(format!("{plain}?ns={TWO}")), &second),
        (at(format!("/v2/{ONE}/{APP}/manifests/v1")), &first),
        (at(format!("/v2/{TWO}/{APP}/manifests/v1")), &second),
        (host(at(plain.clone()), "two.cache.example"), &second),
        (host(at(plain.clone()), "two.cache.example:5000"), &second),
        (host(at(plain.clone()), "TWO.cache.example"), &second),
        (host(at(plain.clone()), "elsewhere.example"), &first),
        (
            host(at(format!("{plain}?ns={ONE}")), "two.cache.example"),
            &first,
        ),
    ] {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, 200, "{request:?}: {}", whole.text());
        assert_eq!(whole.bytes, image.manifest.bytes(), "{request:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_for_no_host_or_for_two_is_refused() {
    let (one, two, proxy, [first, second]) = two().await;
    let target = format!("/v2/{APP}/manifests/v1");
    for (line, status) in [
        ("Host: two.cache.example", 200),
        ("X-Host: two.cache.example", 400),
        ("Host: two.cache.example\r\nHost: two.cache.example", 400),
        ("Host: elsewhere.example\r\nhost: two.cache.example", 400),
        ("Host: two.cache.example, elsewhere.example", 400),
        ("Host: two.cache.example/", 400),
        ("Host: me@two.cache.example", 400),
    ] {
        for method in ["GET", "PUT"] {
            let asked = one.log().len() + two.log().len();
            let request = format!("{method} {target} HTTP/1.1\r\n{line}\r\n\r\n");
            let mut connection = Connection::open(proxy.registry).await;
            connection.write(request.as_bytes()).await.unwrap();
            let whole = connection.head(method).await.whole().await;
            let is_write = method == "PUT" && status == 200;
            let status = if is_write { 405 } else { status };
            assert_eq!(whole.head.status, status, "{request:?}");
            if status == 400 {
                assert_eq!(whole.code().as_deref(), Some("UNSUPPORTED"), "{request:?}");
                assert_eq!(whole.head.header("connection"), Some("close"));
                assert_eq!(one.log().len() + two.log().len(), asked, "{request:?}");
            }
        }
    }
    // HTTP/1.0 knows no hosts, and a whole URI says more than the field.
    for (head, image) in [
        (format!("GET {target} HTTP/1.0\r\n\r\n"), &first),
        (
            format!(
                "GET http://two.cache.example{target} HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n"
            ),
            &second,
        ),
    ] {
        let mut connection = Connection::open(proxy.registry).await;
        connection.write(head.as_bytes()).await.unwrap();
        let whole = connection.head("GET").await.whole().await;
        whole.is(200, image.manifest.bytes());
    }
}

#[tokio::test]
async fn the_namespace_is_echoed_as_received_and_only_when_it_was_used() {
    let (_one, _two, proxy, images) = two().await;
    let layer = &images[1].layers[0];
    for target in [
        format!("/v2/{APP}/manifests/v1?ns={TWO}"),
        format!("/v2/{APP}/blobs/{}?ns={TWO}", layer.digest()),
        format!("/v2/{APP}/manifests/missing?ns={TWO}"),
    ] {
        let whole = proxy.get(target.clone()).whole().await;
        assert_eq!(whole.head.header("oci-namespace"), Some(TWO), "{target}");
    }
    let whole = proxy
        .get(format!("/v2/{TWO}/{APP}/manifests/v1"))
        .whole()
        .await;
    assert_eq!(whole.head.header("oci-namespace"), None);
}

#[tokio::test]
async fn upstream_never_sees_the_namespace() {
    let (one, two, proxy, images) = two().await;
    proxy
        .get(format!("/v2/{APP}/manifests/v1?ns={TWO}"))
        .whole()
        .await;
    let layer = images[1].layers[0].digest();
    proxy
        .get(format!("/v2/{TWO}/{APP}/blobs/{layer}"))
        .whole()
        .await;

    assert!(one.log().is_empty());
    for seen in two.log() {
        assert!(seen.path.starts_with(&format!("/v2/{APP}/")), "{seen:?}");
        assert_eq!(seen.query, None);
        let host = two.address().to_string();
        assert_eq!(seen.header("host"), Some(host.as_str()));
    }
}

fn assert_error(whole: &Whole, status: u16, code: &str) {
    assert_eq!(whole.head.status, status, "{}", whole.text());
    assert_eq!(whole.code().as_deref(), Some(code), "{}", whole.text());
    let media_type = whole.head.header("content-type").unwrap_or_default();
    assert!(media_type.starts_with("application/json"), "{media_type}");
}

#[tokio::test]
async fn two_namespaces_are_one_too_many() {
    let (one, two, proxy, _) = two().await;
    for query in [format!("ns={ONE}&ns={TWO}"), format!("ns={TWO}&ns={TWO}")] {
        let whole = proxy
            .get(format!("/v2/{APP}/manifests/v1?{query}"))
            .whole()
            .await;
        assert_eq!(whole.head.status, 400, "{}", whole.text());
        assert!(whole.code().is_some());
    }
    assert!(one.log().is_empty() && two.log().is_empty());
}

#[tokio::test]
async fn pitfall_37_what_is_not_configured_is_not_dialled() {
    let (one, two, proxy, _) = two().await;
    let stranger = FakeRegistry::start().await;
    let address = stranger.address();
    for ns in [
        "unknown.example".to_owned(),
        address.to_string(),
        format!("http://{address}"),
        format!("{TWO}@{address}"),
        format!("{TWO}:80@{address}"),
        format!("{TWO}%40{address}"),
        format!("{TWO}%2f..%2f{address}"),
        format!("{TWO}%00"),
        "169.254.169.254".to_owned(),
        "localhost".to_owned(),
        String::new(),
        "%".to_owned(),
        "..".to_owned(),
    ] {
        let whole = proxy
            .get(format!("/v2/{APP}/manifests/v1?ns={ns}"))
            .whole()
            .await;
        assert!(
            matches!(whole.head.status, 400 | 404),
            "{ns}: {:?}",
            whole.head
        );
        assert!(whole.code().is_some(), "{ns}: {}", whole.text());
    }
    let unknown = proxy.get(format!("/v2/{APP}/manifests/v1?ns=unknown.example"));
    assert_error(&unknown.whole().await, 404, "NAME_UNKNOWN");
    for log in [one.log(), two.log(), stranger.log()] {
        assert!(log.is_empty(), "{log:?}");
    }
}

#[tokio::test]
async fn pitfall_37_a_namespace_written_differently_is_the_same_or_none() {
    let (one, two, proxy, [_, second]) = two().await;
    for ns in [
        "TWO.example",
        "two.example.",
        "two.example:443",
        "two.example:80",
    ] {
        let whole = proxy
            .get(format!("/v2/{APP}/manifests/v1?ns={ns}"))
            .whole()
            .await;
        match whole.head.status {
            200 => assert_eq!(whole.bytes, second.manifest.bytes(), "{ns}"),
            status => assert!(matches!(status, 400 | 404), "{ns}: {status}"),
        }
    }
    assert!(one.log().is_empty());
    assert!(two.log().iter().all(|seen| seen.query.is_none()));
}

#[tokio::test]
async fn a_one_segment_name_of_docker_hub_is_in_its_library() {
    let (hub, other) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let proxy = TestProxy::in_front_of_named("docker.io", &hub)
        .and(TWO, &other)
        .start()
        .await;
    let image = Image::random(&[KIB]);
    hub.serve_image("library/debian", "12", &image);
    hub.serve_image("team/debian", "12", &image);
    other.serve_image("debian", "12", &image);

    for target in [
        "/v2/debian/manifests/12",
        "/v2/library/debian/manifests/12",
        "/v2/debian/manifests/12?ns=docker.io",
        "/v2/docker.io/debian/manifests/12",
        "/v2/docker.io/library/debian/manifests/12",
    ] {
        let whole = proxy.get(target).whole().await;
        assert_eq!(whole.head.status, 200, "{target}: {}", whole.text());
    }
    for seen in hub.log() {
        assert!(seen.path.starts_with("/v2/library/debian/"), "{seen:?}");
    }
    let blob = &image.layers[0];
    proxy.pull_blob("debian", blob).await;
    assert_eq!(hub.count(&get("/v2/library/debian/blobs/")), 1);

    let team = proxy.get("/v2/team/debian/manifests/12").whole().await;
    assert_eq!(team.head.status, 200);
    let elsewhere = proxy.get(format!("/v2/{TWO}/debian/manifests/12"));
    assert_eq!(elsewhere.whole().await.head.status, 200);
    assert_eq!(other.count(&any("library")), 0);
}

#[tokio::test]
async fn the_ping_is_answered_without_upstream() {
    let (upstream, proxy) = pair().await;
    upstream.stop().await;
    for target in ["/v2/", "/v2", &format!("/v2/?ns={ONE}")] {
        for request in [proxy.get(target), proxy.head(target)] {
            let whole = request.whole().await;
            assert_eq!(whole.head.status, 200, "{target}");
            let version = whole.head.header("docker-distribution-api-version");
            assert_eq!(version, Some("registry/2.0"));
        }
    }
    assert!(upstream.log().is_empty());
}

#[tokio::test]
async fn writes_are_refused_with_what_is_allowed() {
    let (upstream, proxy) = pair().await;
    let digest = Blob::of("x").digest().to_owned();
    for (method, target) in [
        ("POST", format!("/v2/{APP}/blobs/uploads/")),
        (
            "POST",
            format!("/v2/{APP}/blobs/uploads/?mount={digest}&from=a/b"),
        ),
        ("PATCH", format!("/v2/{APP}/blobs/uploads/123")),
        (
            "PUT",
            format!("/v2/{APP}/blobs/uploads/123?digest={digest}"),
        ),
        ("PUT", format!("/v2/{APP}/manifests/v1")),
        ("DELETE", format!("/v2/{APP}/manifests/{digest}")),
        ("DELETE", format!("/v2/{APP}/blobs/{digest}")),
        ("PUT", format!("/v2/{APP}/manifests/v1?ns=unknown.example")),
    ] {
        let request = Request::new(proxy.registry, method, &target);
        let whole = request.header("Content-Length", "0").whole().await;
        assert_error(&whole, 405, "UNSUPPORTED");
        let allow = whole.head.header("allow").unwrap_or_default();
        assert!(
            allow.contains("GET") && allow.contains("HEAD"),
            "{target}: {allow}"
        );
    }
    assert!(upstream.log().is_empty());
}

#[tokio::test]
async fn what_is_in_the_body_of_a_write_is_no_request() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let mut connection = Connection::open(proxy.registry).await;
    let smuggled = format!("GET /v2/{APP}/manifests/v1 HTTP/1.1\r\nHost: x\r\n\r\n");
    let put = format!(
        "PUT /v2/{APP}/manifests/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len(),
    );
    connection.write(put.as_bytes()).await.unwrap();
    let answer = connection.head("PUT").await;
    let (whole, mut connection) = answer.whole_and_connection().await;
    assert_eq!(whole.head.status, 405);
    // The connection is closed, or good for another request.
    let ping = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n";
    if connection.write(ping).await.is_ok()
        && let Ok(answer) = connection.try_head("GET").await
    {
        answer.whole().await.is(200, b"{}");
    }
    assert!(upstream.log().is_empty());
}

#[tokio::test]
async fn invariant_01_pitfall_39_names_that_mean_mischief_are_refused_and_go_nowhere() {
    let (upstream, proxy) = pair().await;
    let digest = "sha256:".to_owned() + &"a".repeat(64);
    let long = "a".repeat(300);
    for target in [
        "/v2/../../etc/passwd".to_owned(),
        "/v2/a/../b/manifests/v1".to_owned(),
        "/v2/a/%2e%2e/b/manifests/v1".to_owned(),
        "/v2/a%2fb/manifests/v1".to_owned(),
        "/v2/a/./b/manifests/v1".to_owned(),
        "/v2/a//b/manifests/v1".to_owned(),
        "/v2//manifests/v1".to_owned(),
        "/v2/A/manifests/v1".to_owned(),
        "/v2/-a/manifests/v1".to_owned(),
        "/v2/a-/manifests/v1".to_owned(),
        "/v2/a..b/manifests/v1".to_owned(),
        "/v2/a___b/manifests/v1".to_owned(),
        "/v2/_tags/manifests/v1".to_owned(),
        format!("/v2/{long}/manifests/v1"),
        format!("/v2/a/manifests/{long}"),
        "/v2/a/manifests/.v1".to_owned(),
        "/v2/a/manifests/v%001".to_owned(),
        "/v2/a/manifests/..".to_owned(),
        format!("/v2/a/manifests/{digest}a"),
        "/v2/a/blobs/v1".to_owned(),
        "/v2/a/blobs/sha256:".to_owned(),
        "/v2/a/blobs/sha256:short".to_owned(),
        format!("/v2/a/blobs/{}", digest.to_uppercase()),
        format!("/v2/a/blobs/sha256:{}", "g".repeat(64)),
        format!("/v2/a/blobs/md5:{}", "a".repeat(32)),
        format!("/v2/a/blobs/{digest}/"),
        format!("/v2/a/blobs/..%2f{digest}"),
        "/v2/a/tags".to_owned(),
        "/v1/a/manifests/v1".to_owned(),
        "/".to_owned(),
        "/metrics".to_owned(),
    ] {
        let whole = proxy.get(&target).whole().await;
        assert!(
            matches!(whole.head.status, 400 | 404),
            "{target}: {:?}",
            whole.head
        );
        assert!(whole.code().is_some(), "{target}: {}", whole.text());
    }
    assert!(upstream.log().is_empty(), "{:#?}", upstream.log());
}

#[tokio::test]
async fn malformed_names_tags_and_digests_have_codes_of_their_own() {
    let (_upstream, proxy) = pair().await;
    for (target, status, code) in [
        ("/v2/A/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a/manifests/.v1", 400, "NAME_INVALID"),
        ("/v2/a/blobs/sha256:short", 400, "DIGEST_INVALID"),
        ("/v2/a/manifests/sha256:short", 400, "DIGEST_INVALID"),
        ("/v2/a/nothing/here", 404, "UNSUPPORTED"),
    ] {
        assert_error(&proxy.get(target).whole().await, status, code);
    }
}

#[tokio::test]
async fn pitfall_39_unusual_names_are_names() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    for name in [
        "a__b",
        "a--b",
        "a.b_c",
        "a---b/c.d",
        "blobs/manifests",
        "0/tags/list",
    ] {
        upstream.serve_image(name, "_v1.0-x", &image);
        let pulled = proxy.pull_manifest(name, "_v1.0-x").await;
        assert_eq!(pulled.bytes, image.manifest.bytes(), "{name}");
        proxy.pull_blob(name, &image.config).await;
    }
}

#[tokio::test]
async fn pitfall_45_a_tag_list_has_the_clients_name_and_leads_back_to_us() {
    let (one, two, proxy, [image, _]) = two().await;
    for n in 0..5 {
        two.tag(APP, &format!("t{n}"), &image.manifest);
    }
    for (target, name) in [
        (format!("/v2/{APP}/tags/list?n=2&ns={TWO}"), APP.to_owned()),
        (
            format!("/v2/{TWO}/{APP}/tags/list?n=2"),
            format!("{TWO}/{APP}"),
        ),
    ] {
        let mut target = target;
        let mut tags = Vec::new();
        loop {
            let page = proxy.get(&target).whole().await;
            assert_eq!(page.head.status, 200, "{target}: {}", page.text());
            let json: Value = serde_json::from_slice(&page.bytes).unwrap();
            assert_eq!(json["name"], json!(name));
            tags.extend(json["tags"].as_array().unwrap().iter().cloned());
            let Some(link) = page.head.header("link") else {
                break;
            };
            let (path, rest) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
            assert!(rest.contains("next"), "{link}");
            assert!(
                path.starts_with(&format!("/v2/{name}/tags/list?")),
                "{link}"
            );
            target = path.to_owned();
        }
        assert_eq!(json!(tags), json!(["t0", "t1", "t2", "t3", "t4", "v1"]));
    }
    assert!(one.log().is_empty());
}

#[tokio::test]
async fn referrers_are_passed_on_and_a_404_stays_one() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let target = format!("/v2/{APP}/referrers/{}", image.manifest.digest());
    let missing = proxy.get(&target).whole().await;
    assert_eq!(missing.head.status, 404);

    let listing = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
    let listing = Manifest::of(OCI_INDEX, &listing);
    let other = Image::random(&[KIB]);
    upstream.serve_referrers(APP, other.manifest.digest(), &listing);
    let target = format!("/v2/{APP}/referrers/{}", other.manifest.digest());
    let whole = proxy.get(format!("{target}?artifactType=x")).whole().await;
    assert_eq!(whole.head.status, 200, "{}", whole.text());
    assert_eq!(whole.head.header("content-type"), Some(OCI_INDEX));
    let filters = whole.head.header("oci-filters-applied");
    assert_eq!(filters, Some("artifactType"));
}

#[tokio::test]
async fn of_several_links_in_one_field_the_next_is_followed() {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    let links = "</v2/x?last=a>; rel=\"prev\", </v2/x?last=b>; rel=\"next\"";
    upstream.add_header("Link", links);
    let page = proxy.get(format!("/v2/{APP}/tags/list")).whole().await;
    assert_eq!(page.head.status, 200);
    let link = format!("</v2/{APP}/tags/list?last=b>; rel=\"next\"");
    assert_eq!(page.head.header("link"), Some(link.as_str()));
}

#[tokio::test]
async fn a_link_that_cannot_go_on_does_not_lead_to_the_first_page_again() {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    let link = format!("</v2/x?last={}>; rel=\"next\"", "a".repeat(2100));
    upstream.add_header("Link", &link);
    let page = proxy.get(format!("/v2/{APP}/tags/list")).whole().await;
    assert_eq!(page.head.status, 502, "{}", page.text());
}

#[tokio::test]
async fn pitfall_45_a_page_of_more_than_registries_like_is_a_large_one() {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", &Image::random(&[KIB]));
    for n in ["1001", "99999999999999999999999"] {
        let target = format!("/v2/{APP}/tags/list?n={n}");
        assert_eq!(proxy.get(target).whole().await.head.status, 200);
    }
    let seen = upstream.seen(&get("/tags/list"));
    let queries: Vec<_> = seen.iter().map(|it| it.query.as_deref()).collect();
    assert_eq!(queries, [Some("n=1000"); 2]);
}

#[tokio::test]
async fn a_web_page_is_no_referrers_and_stands_in_for_none() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    let target = format!("/v2/{APP}/referrers/{}", image.manifest.digest());
    upstream.always(get("/referrers/"), Fault::Html200);
    assert_eq!(proxy.get(&target).whole().await.head.status, 502);
    upstream.stop().await;
    assert_eq!(proxy.get(&target).whole().await.head.status, 502);
}
