//! What is in memory is answered without waiting for anything. It is answered as it is where who asks has to be found out
//! first, which goes the long way: the same status, headers and bytes, the same line in the log, the same counts, and as many
//! questions to the upstream.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::binary::field;
use crate::harness::proxy::{ONE, TWO};
use crate::harness::token::basic;
use crate::harness::{
    APP, Binary, FakeRegistry, Image, KIB, ProxyBuilder, Request, TestProxy, any, poll,
};

/// What a request is, and what it gets: a method, a path, header fields, and the status.
type Row = (&'static str, String, Vec<(&'static str, String)>, u16);

/// What came of a request, but for what is of one request alone.
#[derive(Debug, PartialEq)]
struct Came {
    status: u16,
    headers: Vec<(String, String)>,
    bytes: Vec<u8>,
    line: BTreeMap<String, Value>,
    asked: usize,
}

/// The image that both have in memory, and one that only another repository was proven to hold.
struct Images {
    own: Image,
    others: Image,
}

fn image(upstream: &FakeRegistry, repository: &str, tag: &str) -> Image {
    let image = Image::random(&[KIB]);
    upstream.serve_image(repository, tag, &image);
    image
}

fn builder(upstream: &FakeRegistry, second: &FakeRegistry) -> ProxyBuilder {
    TestProxy::in_front_of(upstream)
        .upstream("hosts", vec!["one.cache.example"])
        .upstream("deny", vec!["team/denied", "team/app:denied"])
        .and(TWO, second)
        .upstream("require_digest", vec!["**"])
        .set("freshness.fresh_for", "1h")
}

/// The same proxy, for which nobody can be let in before it was looked at what they show.
fn asking_who(builder: ProxyBuilder) -> ProxyBuilder {
    let hash = bcrypt::hash("hush", 4).unwrap();
    let users = builder.write("htpasswd", &format!("ann:{hash}\n"));
    let allow = "action = 'allow'".parse::<toml::Table>().unwrap();
    builder
        .set("access.htpasswd_file", users)
        .set("access.rule", vec![toml::Value::from(allow)])
}

fn rows(Images { own, others }: &Images) -> Vec<Row> {
    let manifest = |reference: &str| format!("/v2/{APP}/manifests/{reference}");
    let (digest, blob) = (own.manifest.digest(), own.layers[0].digest());
    let (by_digest, by_tag) = (manifest(digest), manifest("v1"));
    let plain = |method, path: &str, status| (method, path.to_owned(), vec![], status);
    let with = |path: &str, name, value: &str, status| {
        let fields = vec![(name, value.to_owned())];
        ("GET", path.to_owned(), fields, status)
    };
    let mut rows = vec![
        plain("GET", "/v2/", 200),
        plain("HEAD", "/v2/", 200),
        plain("POST", "/v2/", 405),
        plain("GET", &format!("/v2/?ns={TWO}"), 200),
        plain("GET", "/v2/?ns=unknown.example", 404),
        plain("GET", &format!("{by_digest}?ns={ONE}"), 200),
        plain("GET", &format!("{by_digest}?ns={TWO}"), 404),
        plain("GET", &format!("{by_tag}?ns={TWO}"), 403),
        plain("PUT", &by_tag, 405),
        plain("DELETE", &by_digest, 405),
        plain("GET", &manifest("unknown"), 404),
        plain("GET", &manifest(others.manifest.digest()), 404),
        plain("HEAD", &manifest(others.manifest.digest()), 404),
        plain("GET", &manifest("denied"), 403),
        plain("GET", &format!("/v2/team/denied/manifests/{digest}"), 403),
        plain("GET", &format!("/v2/{APP}/blobs/{blob}"), 200),
        plain("GET", &format!("/v2/{APP}/tags/list"), 200),
    ];
    for path in [&by_digest, &by_tag] {
        let many = "bytes=".to_owned() + &["0-0"; 3000].join(",");
        rows.extend([
            plain("GET", path, 200),
            plain("HEAD", path, 200),
            with(path, "Host", "one.cache.example", 200),
            with(path, "Accept", "text/plain", 200),
            with(path, "If-None-Match", &format!("\"{digest}\""), 304),
            with(path, "If-None-Match", "*", 304),
            with(path, "If-None-Match", "\"another\"", 200),
            with(path, "Range", "bytes=0-9", 206),
            with(path, "Range", "bytes=-5", 206),
            with(path, "Range", "bytes=100000-", 416),
            with(path, "Range", "lines=1", 200),
            with(path, "Range", &many, 400),
            with(path, "X-Forwarded-For", "192.0.2.1", 200),
            with(path, "Transfer-Encoding", "chunked", 400),
        ]);
    }
    rows
}

async fn ask(binary: &Binary, upstreams: [&FakeRegistry; 2], row: &Row) -> Came {
    let (method, path, fields, _) = row;
    let asked = || upstreams.iter().map(|it| it.count(&any(""))).sum::<usize>();
    let before = asked();
    let mut request = Request::new(binary.registry, method, path);
    // For the one that wants to know.
    request = request.header("Authorization", basic("ann", "hush"));
    for (name, value) in fields {
        request = request.header(name, value);
    }
    let whole = request.whole().await;
    let id = whole.head.header("x-request-id").unwrap().to_owned();
    let is_its = |line: &Value| {
        field(line, "request").is_some_and(|it| *it == *id)
            && field(line, "message").is_some_and(|it| it == "request")
    };
    let line = binary.wait_for_log(is_its).await;
    let of_one = ["timestamp", "request", "peer", "first_byte_ms", "total_ms"];
    let mut line: BTreeMap<String, Value> = serde_json::from_value(line).unwrap();
    for name in of_one {
        assert!(line.remove(name).is_some(), "{name}");
    }
    line.remove("identity");
    let headers = whole.head.headers().iter();
    let headers = headers.filter(|(name, _)| name != "x-request-id" && name != "date");
    Came {
        status: whole.head.status,
        headers: headers.cloned().collect(),
        bytes: whole.bytes.to_vec(),
        line,
        asked: asked() - before,
    }
}

/// What is counted of requests, but for their times, when every response that was begun has ended.
async fn counts(binary: &Binary) -> BTreeMap<String, f64> {
    poll("all responses to end", async || {
        let counts = counts_now(binary).await;
        let sum = |of: &str| {
            let all = counts.iter().filter(|(series, _)| series.starts_with(of));
            all.map(|(_, value)| value).sum::<f64>()
        };
        (sum("layerhold_requests_total{") == sum("layerhold_responses_total{")).then_some(counts)
    })
    .await
}

async fn counts_now(binary: &Binary) -> BTreeMap<String, f64> {
    let text = binary.metrics().await;
    let counted = text.lines().filter_map(|it| it.rsplit_once(' '));
    let names = ["requests_total", "responses_total", "sent_bytes", "denied"];
    let names = [&names[..], &["rejected", "first_byte_seconds_count"]].concat();
    let is_wanted = |series: &str| {
        let name = series.split('{').next().unwrap();
        name.starts_with("layerhold_") && names.iter().any(|it| name.contains(it))
    };
    let counted = counted.filter(|(series, _)| is_wanted(series));
    counted
        .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
        .collect()
}

async fn started(builder: &ProxyBuilder, images: &Images) -> Binary {
    let binary = Binary::start(builder).await;
    binary
        .pull_manifest("team/other", images.others.manifest.digest())
        .await;
    binary.pull_blob(APP, &images.own.layers[0]).await;
    binary.wait_for_hit(APP, &images.own.layers[0]).await;
    for reference in ["v1", images.own.manifest.digest()] {
        poll("a hit", async || {
            let whole = binary.pull_manifest(APP, reference).await;
            let status = whole.head.cache_status();
            status.starts_with("layerhold; hit").then_some(())
        })
        .await;
    }
    binary
}

#[tokio::test]
async fn what_is_answered_at_once_is_answered_as_by_the_long_way() {
    let (upstream, second) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let images = Images {
        own: image(&upstream, APP, "v1"),
        others: image(&upstream, "team/other", "v1"),
    };
    let at_once = started(&builder(&upstream, &second), &images).await;
    let long = started(&asking_who(builder(&upstream, &second)), &images).await;
    let before = [counts(&at_once).await, counts(&long).await];
    assert!(before[0].len() > 5, "{before:?}");
    for row in rows(&images) {
        let came = ask(&at_once, [&upstream, &second], &row).await;
        let by_the_long_way = ask(&long, [&upstream, &second], &row).await;
        assert_eq!(came.status, row.3, "{row:?}: {came:?}");
        assert_eq!(came, by_the_long_way, "{row:?}");
    }
    let after = [counts(&at_once).await, counts(&long).await];
    let counted = [0, 1].map(|way| {
        let mut counted = after[way].clone();
        for (series, value) in &mut counted {
            *value -= before[way].get(series).copied().unwrap_or_default();
        }
        counted.retain(|_, it| *it != 0.0);
        counted
    });
    assert_eq!(counted[0], counted[1]);
}

#[tokio::test]
async fn what_is_in_memory_is_not_answered_at_once_where_somebody_has_to_be_heard_first() {
    let upstream = FakeRegistry::start().await;
    let image = image(&upstream, APP, "v1");
    let builder = TestProxy::in_front_of(&upstream).set("freshness.fresh_for", "0s");
    let proxy = builder.start().await;
    proxy.pull_manifest(APP, "v1").await;
    // A tag that has to be confirmed each time.
    for _ in 0..3 {
        let asked = upstream.count(&any(""));
        proxy.pull_manifest(APP, "v1").await;
        assert_eq!(upstream.count(&any("")), asked + 1);
    }
    // A digest that was purged.
    proxy.pull_manifest(APP, image.manifest.digest()).await;
    proxy.wait_for_fills("published", 1.0).await;
    let (_, _, blobs) = proxy.purge(image.manifest.digest()).await;
    assert_eq!(blobs, 1);
    let asked = upstream.count(&any(""));
    proxy.pull_manifest(APP, image.manifest.digest()).await;
    assert_eq!(upstream.count(&any("")), asked + 1);
}

#[tokio::test]
async fn what_is_answered_at_once_takes_its_turn_and_no_other() {
    let upstream = FakeRegistry::start().await;
    image(&upstream, APP, "v1");
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.fresh_for", "1h")
        .set("limits.requests_per_source", "20/h")
        .start()
        .await;
    for n in 1..=22 {
        // A ping takes none.
        proxy.get("/v2/").whole().await.is(200, b"{}");
        let head = proxy.head(format!("/v2/{APP}/manifests/v1")).whole().await;
        assert_eq!(head.head.status, if n <= 20 { 200 } else { 503 }, "{n}");
    }
}
