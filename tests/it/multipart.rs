//! Several parts of content in one answer: `multipart/byteranges`.

use std::fmt::Write as _;
use std::ops::Range;

use bytes::Bytes;

use crate::harness::{
    APP, At, Blob, Connection, End, FakeRegistry, Fault, Image, KIB, MIB, TestProxy, Whole, get,
    pair,
};

/// What several ranges are of a thousand bytes.
const SETS: &[(&str, &[Range<usize>])] = &[
    ("bytes=0-0,2-2", &[0..1, 2..3]),
    ("bytes=0-499,500-999", &[0..500, 500..1000]),
    (
        "bytes=600-699, 0-9 ,\t300-300",
        &[600..700, 0..10, 300..301],
    ),
    ("bytes=-5,0-4", &[995..1000, 0..5]),
    ("bytes=990-,5-7", &[990..1000, 5..8]),
    ("bytes=5-70000,0-1", &[5..1000, 0..2]),
    ("bytes=10-19,15-24", &[10..20, 15..25]),
    ("bytes=1-2,3-4,9000-,5-6", &[1..3, 3..5, 5..7]),
];

/// The parts of an answer, each proven to be at its place in `content`; nothing else may be in it.
fn parts(whole: &Whole, content: &[u8], media_type: &str) -> Vec<Range<usize>> {
    let Whole { head, bytes, end } = whole;
    assert_eq!((head.status, *end), (206, End::Complete), "{head:?}");
    assert_eq!(head.content_length(), Some(bytes.len()));
    assert_eq!(head.header("content-range"), None, "{head:?}");
    let boundary = head.header("content-type").unwrap();
    let boundary = boundary.strip_prefix("multipart/byteranges; boundary=");
    let boundary = boundary.unwrap();
    assert!(boundary.len() >= 32, "{boundary}");
    let (mut rest, mut found) = (bytes.clone(), Vec::new());
    loop {
        eat(&mut rest, &format!("--{boundary}"));
        if rest.starts_with(b"--") {
            assert_eq!(&*rest, b"--\r\n");
            return found;
        }
        let head = format!("\r\nContent-Type: {media_type}\r\nContent-Range: bytes ");
        eat(&mut rest, &head);
        let line = rest.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
        let place = String::from_utf8(rest.split_to(line).to_vec()).unwrap();
        eat(&mut rest, "\r\n\r\n");
        let (range, size) = place.split_once('/').unwrap();
        assert_eq!(size, content.len().to_string());
        let (first, last) = range.split_once('-').unwrap();
        let part = first.parse().unwrap()..last.parse::<usize>().unwrap() + 1;
        let bytes = rest.split_to(part.len());
        assert!(bytes == content[part.clone()], "wrong bytes in {place}");
        eat(&mut rest, "\r\n");
        found.push(part);
    }
}

fn eat(rest: &mut Bytes, text: &str) {
    assert!(rest.starts_with(text.as_bytes()), "no {text:?}");
    let _ = rest.split_to(text.len());
}

fn parts_of(whole: &Whole, blob: &Blob) -> Vec<Range<usize>> {
    parts(whole, blob.bytes(), "application/octet-stream")
}

/// A `Range` field for these parts.
fn asking(parts: &[Range<usize>]) -> String {
    let mut field = "bytes=".to_owned();
    for Range { start, end } in parts {
        write!(field, "{start}-{},", end - 1).unwrap();
    }
    field
}

fn served(upstream: &FakeRegistry, len: usize) -> Blob {
    let blob = Blob::random(len);
    upstream.serve_blob(APP, &blob);
    blob
}

#[tokio::test]
async fn pitfall_27_several_ranges_of_a_cold_blob_and_of_a_hit() {
    let (upstream, proxy) = pair().await;
    for (range, expected) in SETS {
        let blob = served(&upstream, 1000);
        for outcome in ["layerhold; fwd=miss; stored", "layerhold; hit"] {
            let whole = proxy.blob(APP, blob.digest()).range(range).whole().await;
            assert_eq!(parts_of(&whole, &blob), *expected, "{range}");
            let head = &whole.head;
            assert_eq!(head.cache_status(), outcome);
            assert_eq!(head.header("docker-content-digest"), Some(blob.digest()));
            proxy.wait_for_hit(APP, &blob).await;
        }
        assert_eq!(upstream.count(&get(blob.digest())), 1);
    }
}

#[tokio::test]
async fn large_parts_are_sent_by_the_kernel() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(9_000_000);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    let by_kernel = "layerhold_response_sendfile_bytes_total";
    for (ranges, expected, large) in [
        (
            "bytes=5000000-8499999,10-19,1000-3000999",
            vec![5_000_000..8_500_000, 10..20, 1000..3_001_000],
            6_500_000.0,
        ),
        // None of them is worth it, though they are a lot together.
        (
            "bytes=0-899999,1000000-1899999",
            vec![0..900_000, 1_000_000..1_900_000],
            0.0,
        ),
    ] {
        let before = proxy.metric(by_kernel, &[]).await;
        let whole = proxy.blob(APP, blob.digest()).range(ranges).whole().await;
        let found = parts(&whole, blob.bytes(), "application/octet-stream");
        assert_eq!(found, expected);
        let sent = proxy.metric(by_kernel, &[]).await - before;
        // Now and then the page cache says that it lacks what it has.
        assert!(sent >= large * 0.6 && sent <= large, "{ranges}: {sent}");
    }
}

#[tokio::test]
async fn large_parts_and_what_is_asked_behind_them_come_in_their_order() {
    let (upstream, proxy) = pair().await;
    let [first, second] = [(); 2].map(|()| served(&upstream, 6 * MIB + 7));
    for blob in [&first, &second] {
        proxy.wait_for_hit(APP, blob).await;
    }
    let wanted = [3 * MIB..6 * MIB, 5..9, MIB..3 * MIB - 1];
    let asked = [
        ("GET", &first, true),
        ("HEAD", &first, true),
        ("GET", &second, false),
        ("GET", &second, true),
    ];
    let mut connection = Connection::open(proxy.registry).await;
    for (method, blob, in_parts) in asked {
        let range = match in_parts {
            true => format!("Range: {}\r\n", asking(&wanted)),
            false => String::new(),
        };
        let digest = blob.digest();
        let request =
            format!("{method} /v2/{APP}/blobs/{digest} HTTP/1.1\r\nHost: cache\r\n{range}\r\n");
        connection.write(request.as_bytes()).await.unwrap();
    }
    for (method, blob, in_parts) in asked {
        let answer = connection.head(method).await;
        let whole;
        (whole, connection) = answer.whole_and_connection().await;
        match (method, in_parts) {
            ("HEAD", _) => assert_eq!(whole.bytes.len(), 0),
            (_, true) => assert_eq!(parts_of(&whole, blob), wanted),
            (_, false) => drop(whole.is(200, blob.bytes())),
        }
    }
    // None of them counts twice, or as cut off.
    let complete = [("end", "complete")];
    proxy
        .wait_for_metric("layerhold_responses_total", &complete, |it| it >= 4.0)
        .await;
    for end in ["abandoned", "failed"] {
        let ended = proxy
            .metric("layerhold_responses_total", &[("end", end)])
            .await;
        assert_eq!(ended, 0.0, "{end}");
    }
}

#[tokio::test]
async fn large_parts_of_what_arrives_are_sent_as_they_come() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(12 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(8 * MIB));
    let wanted = [
        4 * MIB..6 * MIB,
        7 * MIB..9 * MIB,
        0..MIB,
        10 * MIB..12 * MIB,
    ];
    let ranges: Vec<String> = wanted
        .iter()
        .map(|it| format!("{}-{}", it.start, it.end - 1))
        .collect();
    let ranges = format!("bytes={}", ranges.join(","));
    let mut answer = proxy.blob(APP, blob.digest()).range(&ranges).send().await;
    gate.reached().await;
    let begin = answer.read(2 * MIB).await;
    gate.open();
    let mut whole = answer.whole().await;
    whole.bytes = [begin, whole.bytes].concat().into();
    let found = parts(&whole, blob.bytes(), "application/octet-stream");
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn what_is_left_of_several_ranges_is_what_exists() {
    let (upstream, proxy) = pair().await;
    let blob = served(&upstream, 1000);
    for _ in 0..2 {
        let ask = async |range| proxy.blob(APP, blob.digest()).range(range).whole().await;
        // One that exists is no list of parts.
        let one = ask("bytes=5000-,7-9,-0").await;
        let head = one.is(206, &blob.bytes()[7..10]);
        assert_eq!(head.header("content-range"), Some("bytes 7-9/1000"));
        let none = ask("bytes=1000-,5000-6000").await;
        assert_eq!(none.head.status, 416);
        assert_eq!(none.head.header("content-range"), Some("bytes */1000"));
        for malformed in ["bytes=0-1,7-5", "bytes=,", "bytes=0-1,x", "lines=0-1,3-4"] {
            ask(malformed).await.is(200, blob.bytes());
        }
        // More than there is, or the same over and over.
        for absurd in ["bytes=0-,0-", "bytes=0-9,0-9,0-9", "bytes=0-600,400-999"] {
            ask(absurd).await.is(200, blob.bytes());
        }
        proxy.wait_for_hit(APP, &blob).await;
    }
}

#[tokio::test]
async fn several_ranges_hold_for_the_version_they_name_and_not_for_head() {
    let (upstream, proxy) = pair().await;
    let blob = served(&upstream, 1000);
    proxy.wait_for_hit(APP, &blob).await;
    let request = proxy.blob(APP, blob.digest()).range("bytes=0-1,5-6");
    let same = request.clone();
    let same = same.header("If-Range", format!("\"{}\"", blob.digest()));
    assert_eq!(parts_of(&same.whole().await, &blob), [0..2, 5..7]);
    let other = request.header("If-Range", "\"sha256:other\"");
    other.whole().await.is(200, blob.bytes());
    let head = proxy.head(format!("/v2/{APP}/blobs/{}", blob.digest()));
    let head = head.range("bytes=0-1,5-6").whole().await;
    assert_eq!(head.is(200, b"").content_length(), Some(1000));
}

#[tokio::test]
async fn manifests_have_several_ranges_too() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let request = proxy.manifest(APP, "v1").range("bytes=10-19,0-4,-3");
    let len = image.manifest.bytes().len();
    let found = parts(
        &request.whole().await,
        image.manifest.bytes(),
        image.manifest.media_type(),
    );
    assert_eq!(found, [10..20, 0..5, len - 3..len]);
}

#[tokio::test]
async fn parts_that_have_arrived_are_served_while_the_rest_is_under_way() {
    let (upstream, proxy) = pair().await;
    let blob = served(&upstream, 8 * MIB);
    let gate = upstream.hold(get(blob.digest()), At::Byte(6 * MIB));
    let pull = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;

    let wanted = [4 * MIB..5 * MIB, 0..10, 3 * MIB..4 * MIB + 7];
    let request = proxy.blob(APP, blob.digest()).range(&asking(&wanted));
    let whole = request.whole().await;
    assert_eq!(parts_of(&whole, &blob), wanted);
    assert_eq!(whole.head.cache_status(), "layerhold; fwd=miss; collapsed");
    // What is counted is what was sent, heads of parts included.
    let sent = f64::from(u32::try_from(whole.bytes.len()).unwrap());
    let joined = [("endpoint", "blob"), ("outcome", "join")];
    proxy
        .wait_for_metric("layerhold_response_bytes_total", &joined, |it| it == sent)
        .await;
    gate.open();
    pull.is(&blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn invariant_06_a_part_with_the_last_byte_waits_for_the_digest() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(100 * KIB);
    let mut spoiled = blob.bytes().to_vec();
    spoiled[5000] ^= 1;
    upstream.serve_spoiled(APP, blob.digest(), &Blob::of(spoiled));
    let gate = upstream.hold(get(blob.digest()), At::Byte(100 * KIB - 1));
    let request = proxy.blob(APP, blob.digest());
    let unverified = request.clone().range("bytes=0-9,20-29").whole().await;
    assert_eq!(parts_of(&unverified, &blob), [0..10, 20..30]);
    let verified = request.range("bytes=0-9,-10,20-29").send().await;
    gate.open();
    let verified = verified.whole().await;
    assert_eq!(verified.head.status, 206);
    assert_ne!(verified.end, End::Complete);
    let last = &blob.bytes()[100 * KIB - 10..];
    assert!(!verified.bytes.windows(10).any(|it| it == last));
}

#[tokio::test]
async fn around_the_cache_parts_that_are_near_each_other_cost_one_request() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.size", "4MiB")
        .start()
        .await;
    let blob = served(&upstream, 8 * MIB);
    upstream.allow_concurrent_transfers();
    let target = get(blob.digest());
    // There is no room: what the fill was sent before that was known is nobody's.
    let ask = async |parts: &[Range<usize>]| {
        let before = upstream.seen(&target).len();
        let request = proxy.blob(APP, blob.digest()).range(&asking(parts));
        let whole = request.whole().await;
        assert_eq!(whole.head.cache_status(), "layerhold; fwd=bypass");
        assert_eq!(parts_of(&whole, &blob), parts);
        let asked = upstream.seen(&target).split_off(before + 1);
        asked
            .iter()
            .map(|it| it.header("range").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let range = |text: &str| Some(text.to_owned());
    let near = [KIB..2 * KIB, 2 * KIB..3 * KIB, 900 * KIB..MIB];
    assert_eq!(ask(&near).await, [range("bytes=1024-1048575")]);
    let far = [0..KIB, 6 * MIB..6 * MIB + 10, 2000..2100, 2200..2300];
    let expected = ["bytes=0-1023", "bytes=6291456-6291465", "bytes=2000-2299"];
    assert_eq!(ask(&far).await, expected.map(range));
    // The last byte is verified, which takes all of them.
    let last = [0..10, 8 * MIB - 1..8 * MIB];
    assert_eq!(ask(&last).await, [range("bytes=0-9"), None]);
    assert_eq!(proxy.outcome("bypass").await, 3.0);
}

#[tokio::test]
async fn a_blob_that_is_cut_upstream_is_still_sent_in_parts() {
    let (upstream, proxy) = pair().await;
    let blob = served(&upstream, MIB);
    upstream.once(get(blob.digest()), Fault::CutAfter(300 * KIB));
    let wanted = [900 * KIB..MIB, 0..10];
    let request = proxy.blob(APP, blob.digest()).range(&asking(&wanted));
    assert_eq!(parts_of(&request.whole().await, &blob), wanted);
}

/// As many ranges as podman asks for at most, with offsets as long as those of the largest layers.
#[tokio::test]
async fn as_many_ranges_as_podman_asks_for_are_answered_and_more_are_refused() {
    let (upstream, proxy) = pair().await;
    let blob = served(&upstream, MIB);
    let cold = served(&upstream, MIB);
    proxy.wait_for_hit(APP, &blob).await;
    let ranges = |n: usize| {
        let texts = (0..n).map(|n| format!("{:012}-{:012}", n * 1000, n * 1000 + 9));
        format!("bytes={}", texts.collect::<Vec<_>>().join(","))
    };
    let request = proxy.blob(APP, blob.digest()).range(&ranges(1024));
    let found = parts_of(&request.whole().await, &blob);
    assert_eq!(found.len(), 1024);
    assert_eq!(found.last(), Some(&(1_023_000..1_023_010)));

    let refused = proxy.blob(APP, cold.digest()).range(&ranges(1025));
    let refused = refused.whole().await;
    assert_eq!(refused.head.status, 400);
    assert_eq!(refused.code().as_deref(), Some("UNSUPPORTED"));
    assert_eq!(upstream.count(&get(cold.digest())), 0);
}
