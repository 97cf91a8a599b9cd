//! Parts of content, from the cache and from what is still arriving.

use crate::harness::{APP, At, Blob, FakeRegistry, Image, KIB, MIB, TestProxy, get, pair};

/// What a range is of a thousand bytes: `Content-Range`, and where it starts and ends.
const SATISFIABLE: &[(&str, &str, usize, usize)] = &[
    ("bytes=0-", "bytes 0-999/1000", 0, 1000),
    ("bytes=990-", "bytes 990-999/1000", 990, 1000),
    ("bytes=5-7", "bytes 5-7/1000", 5, 8),
    ("bytes=0-0", "bytes 0-0/1000", 0, 1),
    ("bytes=999-999", "bytes 999-999/1000", 999, 1000),
    ("bytes=-3", "bytes 997-999/1000", 997, 1000),
    ("bytes=-5000", "bytes 0-999/1000", 0, 1000),
    ("bytes=5-70000", "bytes 5-999/1000", 5, 1000),
];

const UNSATISFIABLE: &[&str] = &["bytes=1000-", "bytes=5000-6000", "bytes=-0"];

const MALFORMED: &[&str] = &["bytes=", "bytes=7-5", "bytes=a-b", "lines=1-2", "bytes 0-5"];

/// Asks a thousand bytes for every range, cold each time if there is a blob of its own for each.
async fn assert_ranges(proxy: &TestProxy, upstream: &FakeRegistry, is_cold: bool) {
    let warm = Blob::random(1000);
    upstream.serve_blob(APP, &warm);
    proxy.wait_for_hit(APP, &warm).await;
    let blob = || {
        if !is_cold {
            return warm.clone();
        }
        let cold = Blob::random(1000);
        upstream.serve_blob(APP, &cold);
        cold
    };
    for (range, place, start, end) in SATISFIABLE {
        let blob = blob();
        let whole = proxy.blob(APP, blob.digest()).range(range).whole().await;
        let head = whole.is(206, &blob.bytes()[*start..*end]);
        assert_eq!(head.header("content-range"), Some(*place), "{range}");
        assert_eq!(head.content_length(), Some(end - start), "{range}");
        assert_eq!(head.header("docker-content-digest"), Some(blob.digest()));
    }
    for range in UNSATISFIABLE {
        let blob = blob();
        let whole = proxy.blob(APP, blob.digest()).range(range).whole().await;
        assert_eq!(whole.head.status, 416, "{range}: {:?}", whole.head);
        assert_eq!(whole.head.header("content-range"), Some("bytes */1000"));
    }
    for range in MALFORMED {
        let blob = blob();
        let whole = proxy.blob(APP, blob.digest()).range(range).whole().await;
        whole.is(200, blob.bytes());
    }
}

#[tokio::test]
async fn pitfall_27_ranges_of_a_cold_blob() {
    let (upstream, proxy) = pair().await;
    assert_ranges(&proxy, &upstream, true).await;
}

#[tokio::test]
async fn pitfall_27_ranges_of_a_hit() {
    let (upstream, proxy) = pair().await;
    assert_ranges(&proxy, &upstream, false).await;
}

#[tokio::test]
async fn pitfall_27_ten_open_ranges_that_are_closed_early_cost_one_transfer() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);

    let mut answers = Vec::new();
    for n in 0..10 {
        let from = n * 700 * KIB;
        let request = proxy.blob(APP, blob.digest());
        let mut answer = request.range(&format!("bytes={from}-")).send().await;
        assert_eq!(answer.head.status, 206);
        let read = answer.read(KIB).await;
        assert_eq!(read, blob.bytes()[from..from + KIB]);
        answers.push(answer);
    }
    drop(answers);

    proxy.wait_for_fills("published", 1.0).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
    assert_eq!(upstream.sent(&get(blob.digest())), blob.len());
    let hit = proxy.pull_blob(APP, &blob).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
}

#[tokio::test]
async fn a_range_that_has_arrived_is_served_while_the_rest_is_under_way() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(6 * MIB));
    let pull = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;

    let request = proxy.blob(APP, blob.digest());
    let whole = request.range("bytes=1000-2097151").whole().await;
    let head = whole.is(206, &blob.bytes()[1000..2 * MIB]);
    assert_eq!(head.cache_status(), "layerhold; fwd=miss; collapsed");
    gate.open();
    pull.is(&blob).await;
}

#[tokio::test]
async fn a_range_holds_only_for_the_version_it_names() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(1000);
    upstream.serve_blob(APP, &blob);
    for _ in 0..2 {
        let request = proxy.blob(APP, blob.digest()).range("bytes=10-19");
        let etag = format!("\"{}\"", blob.digest());
        let same = request.clone().header("If-Range", etag.clone());
        same.whole().await.is(206, &blob.bytes()[10..20]);
        for other in ["\"sha256:other\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            let other = request.clone().header("If-Range", other);
            other.whole().await.is(200, blob.bytes());
        }
        // A weak validator never matches here (RFC 9110 §13.1.5).
        let weak = request.header("If-Range", format!("W/{etag}"));
        weak.whole().await.is(200, blob.bytes());
    }
}

#[tokio::test]
async fn a_range_of_an_empty_blob_is_the_empty_blob() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::of("");
    upstream.serve_blob(APP, &blob);
    for _ in 0..2 {
        for range in ["bytes=0-", "bytes=0-5", "bytes=-5", "bytes=7-"] {
            let whole = proxy.blob(APP, blob.digest()).range(range).whole().await;
            whole.is(200, b"");
        }
    }
}

#[tokio::test]
async fn head_ignores_a_range() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(1000);
    upstream.serve_blob(APP, &blob);
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    for _ in 0..2 {
        let head = proxy.head(target.clone()).range("bytes=5-7").whole().await;
        let head = head.is(200, b"");
        assert_eq!(head.content_length(), Some(1000));
        assert_eq!(head.header("content-range"), None);
        proxy.wait_for_hit(APP, &blob).await;
    }
}

#[tokio::test]
async fn manifests_have_ranges_too() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let bytes = image.manifest.bytes();
    let len = bytes.len();
    for reference in ["v1", image.manifest.digest()] {
        for (range, start, end) in [("bytes=0-", 0, len), ("bytes=4-9", 4, 10)] {
            let request = proxy.manifest(APP, reference).range(range);
            let whole = request.whole().await;
            let head = whole.is(206, &bytes[start..end]);
            let place = format!("bytes {start}-{}/{len}", end - 1);
            assert_eq!(head.header("content-range"), Some(place.as_str()));
        }
        let outside = proxy.manifest(APP, reference).range("bytes=100000-");
        assert_eq!(outside.whole().await.head.status, 416);
    }
}
