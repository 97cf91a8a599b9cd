//! Many clients, one transfer.

use futures_util::future::join_all;

use crate::harness::{
    APP, Answer, At, Blob, End, FakeRegistry, Fault, KIB, MIB, TestProxy, Whole, get, pair,
};

/// Starts this many pulls of a blob and waits for all their heads.
async fn heads(proxy: &TestProxy, blob: &Blob, n: usize) -> Vec<Answer> {
    let request = proxy.blob(APP, blob.digest());
    join_all((0..n).map(|_| request.send())).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_04_forty_eight_clients_cost_one_transfer_and_sixteen_of_them_came_late() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(256 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(100 * MIB));

    let early = heads(&proxy, &blob, 32).await;
    let pulls = early.into_iter().map(|answer| answer.is(&blob));
    let latecomers = async {
        gate.reached().await;
        let late = heads(&proxy, &blob, 16).await;
        gate.open();
        join_all(late.into_iter().map(|answer| answer.is(&blob))).await
    };
    let (late, statuses) = tokio::join!(latecomers, join_all(pulls));

    assert_eq!(upstream.count(&get(blob.digest())), 1);
    assert_eq!(upstream.sent(&get("")), blob.len());
    let stored = "layerhold; fwd=miss; stored";
    let fillers = statuses.iter().filter(|it| it.cache_status() == stored);
    assert_eq!(fillers.count(), 1);
    for head in &late {
        assert_eq!(head.cache_status(), "layerhold; fwd=miss; collapsed");
    }
    assert_eq!(proxy.outcome("join").await, 47.0);
}

#[tokio::test]
async fn pitfall_24_a_hundred_clients_at_once_and_a_hundred_in_the_middle_cost_one_transfer() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));

    let mut answers = heads(&proxy, &blob, 100).await;
    gate.reached().await;
    answers.extend(heads(&proxy, &blob, 100).await);
    let followers = proxy.metric("layerhold_followers", &[]).await;
    assert_eq!(followers, 200.0);
    gate.open();

    join_all(answers.into_iter().map(|answer| answer.is(&blob))).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
    proxy
        .wait_for_metric("layerhold_followers", &[], |it| it == 0.0)
        .await;
}

#[tokio::test]
async fn clients_that_wait_for_the_head_share_it() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Head);

    let request = proxy.blob(APP, blob.digest());
    let pulls = join_all((0..50).map(|_| async { request.send().await.is(&blob).await }));
    let connected = async {
        gate.reached().await;
        let all = |n| n >= 50.0;
        proxy
            .wait_for_metric("layerhold_connections", &[], all)
            .await;
        gate.open();
    };
    tokio::join!(pulls, connected);
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn pitfall_25_the_first_client_leaves_and_nobody_notices() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));

    let mut first = proxy.blob(APP, blob.digest()).send().await;
    first.read(80 * KIB).await;
    let second = proxy.blob(APP, blob.digest()).send().await;
    drop(first);
    gate.open();

    second.is(&blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn invariant_05_a_fill_goes_on_when_everybody_has_left() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(MIB));

    let mut only = proxy.blob(APP, blob.digest()).send().await;
    only.read(KIB).await;
    drop(only);
    let left = [("end", "abandoned")];
    proxy
        .wait_for_metric("layerhold_responses_total", &left, |it| it == 1.0)
        .await;
    gate.open();

    proxy.wait_for_fills("published", 1.0).await;
    let hit = proxy.pull_blob(APP, &blob).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn invariant_05_a_fill_goes_on_when_its_client_leaves_before_the_head() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Head);

    let only = proxy.blob(APP, blob.digest()).dispatch().await;
    gate.reached().await;
    drop(only);
    proxy
        .wait_for_metric("layerhold_connections", &[], |it| it == 0.0)
        .await;
    gate.open();

    proxy.wait_for_fills("published", 1.0).await;
    let hit = proxy.pull_blob(APP, &blob).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn invariant_05_pitfall_26_a_client_that_reads_nothing_stands_in_nobodys_way() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(48 * MIB);
    upstream.serve_blob(APP, &blob);

    let mut slow = proxy.blob(APP, blob.digest()).send().await;
    let read = slow.read(KIB).await;
    assert_eq!(read, blob.bytes()[..KIB]);
    let fast = proxy.blob(APP, blob.digest()).send().await;
    fast.is(&blob).await;
    proxy.wait_for_fills("published", 1.0).await;

    // What the slow one missed in memory it gets from the file.
    slow.continues(&blob, KIB).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn invariant_06_the_last_byte_waits_for_the_digest() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let len = blob.len();
    upstream.always(get(blob.digest()), Fault::Corrupt(len - 1));

    let spoiled: Vec<Whole> =
        join_all(heads(&proxy, &blob, 5).await.into_iter().map(Answer::whole)).await;
    for whole in spoiled {
        assert!(whole.bytes.len() < len);
        assert!(blob.bytes().starts_with(&whole.bytes));
        assert_eq!(whole.end, End::Reset);
    }
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}

#[tokio::test]
async fn pitfall_29_followers_of_a_failed_fill_do_not_all_ask_at_once() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Head);
    upstream.always(get(blob.digest()), Fault::Status(500));

    let request = proxy.blob(APP, blob.digest());
    let pulls = join_all((0..50).map(|_| request.whole()));
    let connected = async {
        gate.reached().await;
        let all = |n| n >= 50.0;
        proxy
            .wait_for_metric("layerhold_connections", &[], all)
            .await;
        gate.open();
    };
    let (failed, ()) = tokio::join!(pulls, connected);
    for whole in failed {
        assert_eq!(whole.head.status, 502, "{:?}", whole.head);
    }
    let asked = upstream.count(&get(blob.digest()));
    assert!(asked <= 16, "50 clients asked {asked} times");
}

#[tokio::test]
async fn pitfall_29_a_transfer_that_is_cut_at_once_is_begun_again_once() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(2 * MIB);
    upstream.serve_blob(APP, &blob);
    upstream.once(get(blob.digest()), Fault::CutAfter(0));

    let request = proxy.blob(APP, blob.digest());
    let pulls = (0..20).map(|_| async { request.send().await.is(&blob).await });
    join_all(pulls).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
    assert_eq!(upstream.sent(&get(blob.digest())), blob.len());
}

#[tokio::test]
async fn invariant_13_who_has_a_blob_is_not_told_that_others_do_not() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("freshness.negative_for", "0s")
        .start()
        .await;
    let blob = Blob::random(KIB);
    upstream.serve_blob(APP, &blob);
    // It is proven to have it, and joins at once.
    let target = format!("/v2/{APP}/blobs/{}", blob.digest());
    assert_eq!(proxy.head(target).whole().await.head.status, 200);
    let stranger = "stranger/app";
    let gate = upstream.hold(get(format!("{stranger}/blobs/")), At::Head);
    let strangers = (0..20).map(|_| async {
        let whole = proxy.blob(stranger, blob.digest()).whole().await;
        assert_eq!(whole.head.status, 404, "{}", whole.text());
    });
    let owner = async {
        gate.reached().await;
        let followers = "layerhold_followers";
        proxy.wait_for_metric(followers, &[], |it| it == 20.0).await;
        let pulled = proxy.pull_blob(APP, &blob);
        let opened = async {
            proxy.wait_for_metric(followers, &[], |it| it == 21.0).await;
            gate.open();
        };
        tokio::join!(pulled, opened);
    };
    tokio::join!(join_all(strangers), owner);
}
