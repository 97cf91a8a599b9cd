//! What goes wrong in the middle of a blob: what the client sees, what is on disk afterwards, and which counter moved.

use std::fs;

use crate::harness::script::Turns;
use crate::harness::{
    APP, At, Blob, Connection, End, FakeRegistry, Fault, Image, KIB, MIB, TestProxy, Whole, any,
    get, lose, pair,
};

const LEN: usize = 3 * MIB + 123;

/// A blob upstream, and a proxy that loses patience quickly.
async fn scene() -> (FakeRegistry, TestProxy, Blob) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.answer", "5s")
        .set("timeouts.first_byte", "300ms")
        .set("timeouts.idle", "300ms")
        .start()
        .await;
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    (upstream, proxy, blob)
}

/// Nothing is stored, staged or set aside.
async fn assert_nothing_is_kept(proxy: &TestProxy, blob: &Blob) {
    proxy
        .wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
        .await;
    let reserved = [("state", "reserved")];
    let free = |it| it == 0.0;
    proxy
        .wait_for_metric("layerhold_cache_bytes", &reserved, free)
        .await;
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 0.0);
    assert!(!proxy.published(blob.digest()).exists());
    proxy.wait_for_empty_staging().await;
}

/// A body that broke off: some right bytes, not all, and no clean end.
fn assert_broken(whole: &Whole, blob: &Blob) {
    assert_eq!(whole.head.status, 200, "{}", whole.text());
    assert_ne!(whole.end, End::Complete, "{:?}", whole.head);
    assert!(whole.bytes.len() < blob.len());
    assert!(blob.bytes().starts_with(&whole.bytes));
}

#[tokio::test]
async fn pitfall_28_a_cut_is_mended_by_a_range_and_nobody_notices() {
    let (upstream, proxy, blob) = scene().await;
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));

    let head = proxy.pull_blob(APP, &blob).await;
    assert_eq!(head.cache_status(), "layerhold; fwd=miss; stored");
    let asked = upstream.seen(&get(blob.digest()));
    assert_eq!(asked.len(), 2);
    assert_eq!((asked[0].header("range"), asked[0].sent), (None, MIB));
    let range = format!("bytes={MIB}-");
    assert_eq!(asked[1].header("range"), Some(range.as_str()));
    let validator = format!("\"{}\"", blob.digest());
    assert_eq!(asked[1].header("if-range"), Some(validator.as_str()));
    assert_eq!((asked[1].status, asked[1].sent), (206, LEN - MIB));
    assert!(proxy.metric("layerhold_upstream_retries_total", &[]).await >= 1.0);
    proxy.wait_for_fills("published", 1.0).await;
    let hit = proxy.pull_blob(APP, &blob).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
}

#[tokio::test]
async fn pitfall_28_two_cuts_are_mended_too() {
    let (upstream, proxy, blob) = scene().await;
    upstream.script(get(blob.digest()), Turns::first(2), Fault::CutAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.sent(&get(blob.digest())), LEN);
}

#[tokio::test]
async fn pitfall_28_a_large_blob_comes_in_as_many_pieces_as_it_takes() {
    let (upstream, proxy, _) = scene().await;
    let blob = Blob::random(40 * MIB);
    upstream.serve_blob(APP, &blob);
    upstream.always(get(blob.digest()), Fault::CutAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.sent(&get(blob.digest())), blob.len());
}

#[tokio::test]
async fn pitfall_28_a_range_that_is_ignored_is_not_appended() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(get(blob.digest()), Fault::NoRange);
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    proxy.wait_for_hit(APP, &blob).await;
    let asked = upstream.seen(&get(blob.digest()));
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].status, 200);
}

#[tokio::test]
async fn pitfall_28_a_range_that_is_another_one_is_not_appended() {
    // One that begins before what was asked for has it; one that begins behind it has not, and then the whole is asked for.
    for (fault, ranges) in [(Fault::WrongRange, 1), (Fault::LateRange, 1)] {
        let (upstream, proxy, blob) = scene().await;
        upstream.always(get(blob.digest()), fault);
        upstream.once(get(blob.digest()), Fault::CutAfter(MIB));
        proxy.pull_blob(APP, &blob).await;
        proxy.wait_for_hit(APP, &blob).await;
        let asked = upstream.seen(&get(blob.digest()));
        let parts = asked.iter().filter(|it| it.header("range").is_some());
        assert_eq!(parts.count(), ranges, "{fault:?}");
        let is_late = fault == Fault::LateRange;
        assert_eq!(asked.len(), 2 + usize::from(is_late), "{fault:?}");
    }
}

#[tokio::test]
async fn pitfall_28_a_part_of_something_encoded_is_not_appended() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(get(blob.digest()), Fault::Gzip);
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    proxy.wait_for_hit(APP, &blob).await;
}

#[tokio::test]
async fn pitfall_28_a_validator_that_has_changed_does_not_stand_in_the_way() {
    let (upstream, proxy, blob) = scene().await;
    upstream.once(get(blob.digest()), Fault::CutAs(MIB, "\"of yesterday\""));
    proxy.pull_blob(APP, &blob).await;
    let asked = upstream.seen(&get(blob.digest()));
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[1].header("if-range"), Some("\"of yesterday\""));
    assert_eq!((asked[1].status, asked[2].status), (200, 206));
    assert_eq!(asked[2].header("if-range"), None);
    assert_eq!(asked[2].sent, LEN - MIB);
}

#[tokio::test]
async fn pitfall_28_a_weak_validator_is_not_named() {
    for etag in ["W/\"weak\"", "bare", "\""] {
        let (upstream, proxy, blob) = scene().await;
        upstream.once(get(blob.digest()), Fault::CutAs(MIB, etag));
        proxy.pull_blob(APP, &blob).await;
        let asked = upstream.seen(&get(blob.digest()));
        assert_eq!(asked[1].header("if-range"), None, "{etag}");
        assert_eq!((asked.len(), asked[1].status), (2, 206), "{etag}");
    }
}

#[tokio::test]
async fn pitfall_28_a_blob_that_is_gone_in_the_middle_is_no_end() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(get(blob.digest()), Fault::Status(404));
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_broken(&whole, &blob);
    assert_nothing_is_kept(&proxy, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}

#[tokio::test]
async fn pitfall_28_another_size_in_the_middle_is_no_continuation() {
    for len in [2 * MIB, LEN + MIB] {
        let (upstream, proxy, blob) = scene().await;
        let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));
        let mut answer = proxy.blob(APP, blob.digest()).send().await;
        answer.read(MIB - 1).await;
        gate.reached().await;
        let mut other = blob.bytes().to_vec();
        other.resize(len, 0);
        upstream.stop().await;
        upstream.serve_spoiled(APP, blob.digest(), &Blob::of(other));
        upstream.restart();
        gate.open();
        let rest = answer.whole().await;
        assert_ne!(rest.end, End::Complete, "{len}");
        assert_nothing_is_kept(&proxy, &blob).await;
        // That was no word on its bytes.
        upstream.serve_blob(APP, &blob);
        proxy.pull_blob(APP, &blob).await;
    }
}

#[tokio::test]
async fn pitfall_28_a_part_that_comes_encoded_is_had_from_the_whole() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(get(blob.digest()), Fault::Gzip);
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    proxy.wait_for_hit(APP, &blob).await;
}

#[tokio::test]
async fn a_stall_is_mended_by_a_range_and_nobody_notices() {
    let (upstream, proxy, blob) = scene().await;
    upstream.once(get(blob.digest()), Fault::StallAfter(MIB));
    proxy.pull_blob(APP, &blob).await;
    let asked = upstream.seen(&get(blob.digest()));
    let range = format!("bytes={MIB}-");
    assert_eq!(asked[1].header("range"), Some(range.as_str()));
    assert_eq!(upstream.sent(&get(blob.digest())), LEN);
}

#[tokio::test]
async fn a_restart_of_upstream_in_the_middle_is_mended() {
    let (upstream, proxy, blob) = scene().await;
    let gate = upstream.hold(get(blob.digest()), At::Byte(2 * MIB));
    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    answer.read(MIB).await;
    gate.reached().await;
    upstream.stop().await;
    upstream.restart();
    gate.open();
    answer.continues(&blob, MIB).await;
    assert_eq!(upstream.sent(&get(blob.digest())), LEN);
}

#[tokio::test]
async fn pitfall_28_a_registry_that_takes_its_time_to_start_again_is_waited_for() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.retry_after", "100ms")
        .start()
        .await;
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(2 * MIB));
    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    answer.read(MIB).await;
    gate.reached().await;
    upstream.stop().await;
    proxy
        .wait_for_metric("layerhold_upstream_retries_total", &[], |n| n >= 5.0)
        .await;
    upstream.restart();
    gate.open();
    answer.continues(&blob, MIB).await;
}

#[tokio::test]
async fn pitfall_44_a_part_that_nobody_asked_for_is_a_beginning_of_the_whole() {
    for part in [LEN, MIB, 1] {
        let (upstream, proxy, blob) = scene().await;
        upstream.once(get(blob.digest()), Fault::PartUnasked(part));
        let head = proxy.pull_blob(APP, &blob).await;
        assert_eq!(head.status, 200);
        assert_eq!(head.content_length(), Some(LEN));
        proxy.wait_for_hit(APP, &blob).await;
        assert_eq!(upstream.sent(&get(blob.digest())), LEN, "{part}");
    }
    // Of how many, nobody can say: what is missing would pass for the end.
    let (upstream, proxy, blob) = scene().await;
    upstream.once(get(blob.digest()), Fault::PartOfUnknown(MIB));
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(whole.head.status, 502, "{}", whole.text());
    proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn a_connection_refused_once_is_tried_again() {
    let (upstream, proxy, blob) = scene().await;
    upstream.once(get(blob.digest()), Fault::Refuse);
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}

#[tokio::test]
async fn pitfall_03_cuts_without_end_break_the_body_and_leave_nothing() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(get(blob.digest()), Fault::CutAfter(0));
    upstream.once(get(blob.digest()), Fault::CutAfter(MIB));

    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_broken(&whole, &blob);
    proxy.wait_for_fills("failed", 1.0).await;
    assert_nothing_is_kept(&proxy, &blob).await;
    let asked = upstream.count(&get(blob.digest()));
    assert!((2..=16).contains(&asked), "{asked} requests");

    upstream.heal();
    proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn a_stall_for_good_breaks_the_body_and_leaves_nothing() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(get(blob.digest()), Fault::StallAfter(0));
    upstream.once(get(blob.digest()), Fault::StallAfter(MIB));
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_broken(&whole, &blob);
    proxy.wait_for_fills("failed", 1.0).await;
    assert_nothing_is_kept(&proxy, &blob).await;
}

#[tokio::test]
async fn invariant_02_pitfall_01_wrong_bytes_never_end_cleanly_and_are_never_kept() {
    for at in [0, MIB, LEN - 1] {
        let (upstream, proxy, blob) = scene().await;
        upstream.always(get(blob.digest()), Fault::Corrupt(at));
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        assert_eq!(whole.head.status, 200);
        assert_eq!(whole.end, End::Reset, "{at}");
        assert!(whole.bytes.len() < LEN, "{at}");
        proxy.wait_for_fills("mismatch", 1.0).await;
        assert_nothing_is_kept(&proxy, &blob).await;
        assert_eq!(
            proxy
                .metric("layerhold_fills_total", &[("end", "published")])
                .await,
            0.0
        );
    }
}

#[tokio::test]
async fn invariant_06_wrong_bytes_of_unknown_length_lack_their_last_chunk() {
    let (upstream, proxy, blob) = scene().await;
    let mut wrong = blob.bytes().to_vec();
    wrong[MIB] = !wrong[MIB];
    let wrong = Blob::of(wrong);
    upstream.serve_spoiled(APP, blob.digest(), &wrong);
    upstream.always(get(blob.digest()), Fault::NoLength);

    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(whole.head.content_length(), None);
    assert_ne!(whole.end, End::Complete);
    assert!(whole.bytes.len() < LEN);
    proxy.wait_for_fills("mismatch", 1.0).await;
    assert_nothing_is_kept(&proxy, &blob).await;
}

#[tokio::test]
async fn invariant_06_of_unknown_length_all_but_the_last_byte_received_is_read() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    let mut wrong = blob.bytes().to_vec();
    wrong[0] = !wrong[0];
    let wrong = Blob::of(wrong);
    upstream.serve_spoiled(APP, blob.digest(), &wrong);
    upstream.always(get(blob.digest()), Fault::NoLength);
    let gate = upstream.hold(get(blob.digest()), At::Byte(LEN));

    let mut answer = proxy.blob(APP, blob.digest()).send().await;
    assert_eq!(answer.read(LEN - 1).await, wrong.bytes()[..LEN - 1]);
    gate.open();
    let rest = answer.whole().await;
    assert!(rest.bytes.is_empty());
    assert_ne!(rest.end, End::Complete);
}

#[tokio::test]
async fn invariant_06_nothing_is_not_what_was_asked_for() {
    for is_measured in [true, false] {
        let (upstream, proxy, blob) = scene().await;
        upstream.serve_spoiled(APP, blob.digest(), &Blob::of(""));
        if !is_measured {
            upstream.always(get(blob.digest()), Fault::NoLength);
        }
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        assert!(
            whole.head.status == 502 || whole.end != End::Complete,
            "{:?}",
            whole.head
        );
        assert_nothing_is_kept(&proxy, &blob).await;
    }
}

#[tokio::test]
async fn invariant_06_an_http_1_0_client_that_cannot_see_a_cut_waits_for_the_digest() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(get(blob.digest()), Fault::NoLength);
    let get_1_0 = async |digest: &str| {
        let mut connection = Connection::open(proxy.registry).await;
        let request = format!("GET /v2/{APP}/blobs/{digest} HTTP/1.0\r\nHost: x\r\n\r\n");
        connection.write(request.as_bytes()).await.unwrap();
        connection.head("GET").await.whole().await
    };
    get_1_0(blob.digest()).await.is(200, blob.bytes());

    let mut wrong = blob.bytes().to_vec();
    wrong[MIB] = 1 + wrong[MIB] / 2;
    let right = Blob::random(LEN);
    upstream.serve_spoiled(APP, right.digest(), &Blob::of(wrong));
    upstream.always(get(right.digest()), Fault::NoLength);
    let whole = get_1_0(right.digest()).await;
    let is_broken = whole.end == End::Reset && whole.bytes.len() < LEN;
    assert!(is_broken || whole.head.status == 502, "{:?}", whole.head);
}

#[tokio::test]
async fn invariant_06_a_source_of_wrong_bytes_is_refused_for_a_while() {
    let (upstream, proxy, blob) = scene().await;
    upstream.once(get(blob.digest()), Fault::Corrupt(MIB));
    proxy.blob(APP, blob.digest()).whole().await;
    proxy.wait_for_fills("mismatch", 1.0).await;
    let before = upstream.count(&get(blob.digest()));

    let refused = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(refused.head.status, 502, "{}", refused.text());
    assert_eq!(upstream.count(&get(blob.digest())), before);
    // Other content of the same upstream is none the worse.
    let other = Blob::random(KIB);
    upstream.serve_blob(APP, &other);
    proxy.pull_blob(APP, &other).await;
}

#[tokio::test]
async fn pitfall_03_a_length_that_is_too_short_is_not_believed() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(any(blob.digest()), Fault::ShortLength);
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert!(
        whole.end != End::Complete || whole.head.status == 502,
        "{:?}",
        whole.head
    );
    assert_nothing_is_kept(&proxy, &blob).await;
}

#[tokio::test]
async fn pitfall_03_a_length_that_is_too_long_is_not_believed() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(any(blob.digest()), Fault::LongLength);
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert!(
        whole.end != End::Complete || whole.head.status == 502,
        "{:?}",
        whole.head
    );
    proxy
        .wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
        .await;
    proxy.wait_for_empty_staging().await;
}

#[tokio::test]
async fn a_cut_of_unknown_length_is_no_end() {
    for at in [0, MIB, LEN - 1] {
        let (upstream, proxy, blob) = scene().await;
        upstream.once(get(blob.digest()), Fault::CutUnmeasured(at));
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        match whole.end {
            End::Complete => assert_eq!(whole.bytes, blob.bytes(), "{at}"),
            End::Cut | End::Reset => assert!(whole.bytes.len() < LEN, "{at}"),
        }
        let again = proxy.blob(APP, blob.digest()).whole().await;
        again.is(200, blob.bytes());
    }
}

#[tokio::test]
async fn a_web_page_is_no_blob() {
    let (upstream, proxy, blob) = scene().await;
    upstream.always(any(blob.digest()), Fault::Html200);
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    let is_broken = whole.head.status == 200 && whole.end != End::Complete;
    assert!(is_broken || whole.head.status == 502, "{:?}", whole.head);
    assert_nothing_is_kept(&proxy, &blob).await;
}

#[tokio::test]
async fn a_blob_that_upstream_calls_by_another_name_is_refused() {
    for fault in [Fault::WrongDigestHeader, Fault::BadDigestHeader] {
        let (upstream, proxy, blob) = scene().await;
        upstream.always(any(blob.digest()), fault);
        let whole = proxy.blob(APP, blob.digest()).whole().await;
        assert_eq!(whole.head.status, 502, "{fault:?}: {:?}", whole.head);
        assert_nothing_is_kept(&proxy, &blob).await;
    }
}

#[tokio::test]
async fn invariant_09_pitfall_43_a_disk_that_refuses_writes_costs_no_client_its_pull() {
    let (_upstream, proxy, blob) = scene().await;
    let staging = proxy.builder().dir().join("staging");
    fs::remove_dir_all(&staging).unwrap();
    fs::write(&staging, "no directory").unwrap();

    for _ in 0..2 {
        let head = proxy.pull_blob(APP, &blob).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    }
    assert!(proxy.metric("layerhold_disk_errors_total", &[]).await >= 1.0);
    assert_eq!(proxy.metric("layerhold_degraded", &[]).await, 1.0);
    assert_eq!(proxy.outcome("bypass").await, 2.0);
    let ready = proxy.admin("/readyz").await;
    assert_eq!(ready.head.status, 200);
    assert!(ready.text().contains("degraded"), "{}", ready.text());

    lose(&staging);
    fs::create_dir(&staging).unwrap();
    proxy.wait_for_hit(APP, &blob).await;
    assert_eq!(proxy.metric("layerhold_degraded", &[]).await, 0.0);
}

#[tokio::test]
async fn invariant_03_an_error_after_the_digest_matched_costs_the_copy_and_no_client() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(LEN - 1));
    let first = proxy.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let second = proxy.blob(APP, blob.digest()).send().await;
    // Whatever is to be published has nowhere to go.
    let blobs = proxy.builder().dir().join("blobs");
    fs::remove_dir_all(&blobs).unwrap();
    fs::write(&blobs, "no directory").unwrap();
    gate.open();

    tokio::join!(first.is(&blob), second.is(&blob));
    proxy.wait_for_fills("unpublished", 1.0).await;
    assert!(proxy.metric("layerhold_disk_errors_total", &[]).await >= 1.0);
    assert_nothing_is_kept(&proxy, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn a_connection_that_died_while_idle_is_not_the_clients_problem() {
    let (upstream, proxy, blob) = scene().await;
    let other = Blob::random(KIB);
    upstream.serve_blob(APP, &other);
    proxy.wait_for_hit(APP, &other).await;
    upstream.stop().await;
    upstream.restart();
    proxy.pull_blob(APP, &blob).await;
}

#[tokio::test]
async fn invariant_09_wrong_bytes_are_withheld_on_the_way_around_the_cache_too() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.size", "1MiB")
        .set("limits.manifest_bytes", "64KiB")
        .start()
        .await;
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    upstream.always(get(blob.digest()), Fault::Corrupt(LEN - 1));
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_broken(&whole, &blob);
}

#[tokio::test]
async fn pitfall_23_a_published_file_that_is_lost_is_a_miss_once() {
    let (upstream, proxy, blob) = scene().await;
    proxy.wait_for_hit(APP, &blob).await;
    let proxy = proxy.restart().await;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], |it| it == 1.0)
        .await;
    lose(&proxy.published(blob.digest()));
    let miss = proxy.pull_blob(APP, &blob).await;
    assert_eq!(miss.cache_status(), "layerhold; fwd=miss; stored");
    proxy.wait_for_hit(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}

#[tokio::test]
async fn wrong_bytes_on_the_way_around_the_cache_are_not_asked_for_again_at_once() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.size", "1MiB")
        .set("limits.manifest_bytes", "64KiB")
        .start()
        .await;
    let blob = Blob::random(LEN);
    upstream.serve_blob(APP, &blob);
    upstream.always(get(blob.digest()), Fault::Corrupt(LEN - 1));
    let whole = proxy.blob(APP, blob.digest()).whole().await;
    assert_broken(&whole, &blob);
    let before = upstream.log().len();
    let refused = proxy.blob(APP, blob.digest()).whole().await;
    assert_eq!(refused.head.status, 502, "{}", refused.text());
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn a_web_page_in_place_of_a_manifest_is_not_held_against_it() {
    let (upstream, proxy) = pair().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let digest = image.manifest.digest();
    upstream.once(get("/manifests/"), Fault::Html200);
    let page = proxy.manifest(APP, digest).whole().await;
    assert_eq!(page.head.status, 502, "{:?}", page.head);

    proxy.pull_manifest(APP, digest).await;
}
