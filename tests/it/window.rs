//! Parts of a blob that its fill would bring too late are asked for beside it.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use crate::harness::registry::Gate;
use crate::harness::script::{Target, Turns};
use crate::harness::{
    APP, Answer, At, Blob, FakeRegistry, Fault, KIB, MIB, Request, TestProxy, any, get, pair, poll,
};

/// A blob of 32 MiB, of which the fill has brought one and is held.
struct Scene {
    upstream: FakeRegistry,
    proxy: TestProxy,
    blob: Blob,
    target: Target,
    fill: Gate,
    /// The client that caused the fill.
    pull: Answer,
}

impl Scene {
    async fn new() -> Self {
        let (upstream, proxy) = pair().await;
        Self::of(upstream, proxy).await
    }

    async fn of(upstream: FakeRegistry, proxy: TestProxy) -> Self {
        let blob = Blob::random(SIZE);
        upstream.serve_blob(APP, &blob);
        let target = get(format!("{APP}/blobs/{}", blob.digest()));
        let fill = upstream.hold(target.clone(), At::Byte(MIB));
        let pull = proxy.blob(APP, blob.digest()).send().await;
        fill.reached().await;
        Self {
            upstream,
            proxy,
            blob,
            target,
            fill,
            pull,
        }
    }

    fn request(&self, range: &str) -> Request {
        let request = self.proxy.blob(APP, self.blob.digest());
        request.range(&format!("bytes={range}"))
    }

    fn part(&self, part: &Range<usize>) -> Request {
        self.request(&text(part))
    }

    /// Pulls a part, and fails the test unless it comes whole and right.
    async fn pull_part(&self, part: Range<usize>) {
        let whole = self.part(&part).whole().await;
        whole.is(206, &self.blob.bytes()[part]);
    }

    /// The ranges that upstream was asked for beside the fill.
    fn asked(&self) -> Vec<String> {
        asked(&self.upstream, &self.target)
    }

    async fn windows(&self, end: &str) -> f64 {
        let labels = [("end", end)];
        self.proxy.metric("layerhold_windows_total", &labels).await
    }

    /// Lets the fill go on to its end.
    async fn end(self) -> (FakeRegistry, TestProxy) {
        self.fill.open();
        self.pull.is(&self.blob).await;
        (self.upstream, self.proxy)
    }
}

fn asked(upstream: &FakeRegistry, target: &Target) -> Vec<String> {
    let seen = upstream.seen(target);
    let ranges = seen.iter().filter_map(|it| it.header("range"));
    ranges.map(|it| it["bytes=".len()..].to_owned()).collect()
}

fn text(part: &Range<usize>) -> String {
    format!("{}-{}", part.start, part.end - 1)
}

const SIZE: usize = 32 * MIB;
/// Far ahead of where the fill is held, also for one that has been fast.
const FAR: Range<usize> = 20 * MIB..21 * MIB;

#[tokio::test]
async fn invariant_04_a_part_far_ahead_is_asked_for_beside_the_fill_and_counted_apart() {
    let scene = Scene::new().await;
    scene.pull_part(FAR).await;
    assert_eq!(scene.asked(), [text(&FAR)]);
    let proxy = &scene.proxy;
    proxy
        .wait_for_metric("layerhold_windows_total", &[("end", "complete")], |it| {
            it == 1.0
        })
        .await;

    let target = scene.target.clone();
    let (upstream, proxy) = scene.end().await;
    let bytes = async |name: &str| proxy.metric(name, &[]).await;
    let window = f64::from(u32::try_from(FAR.len()).unwrap());
    let fill = f64::from(u32::try_from(SIZE).unwrap());
    assert_eq!(bytes("layerhold_window_bytes_total").await, window);
    // What came from upstream is the fill and the window.
    assert_eq!(bytes("layerhold_upstream_bytes_total").await, fill + window);
    assert_eq!(upstream.count(&target), 2);
}

#[tokio::test]
async fn pitfall_27_what_is_near_or_large_or_open_ended_waits_for_the_fill() {
    let scene = Scene::new().await;
    let ranges = [
        MIB..MIB + 200 * KIB,
        10 * MIB..18 * MIB + 1,
        10 * MIB..SIZE,
        SIZE - KIB..SIZE,
    ];
    let mut waiting = Vec::new();
    for range in &ranges {
        waiting.push(scene.part(range).send().await);
    }
    for open in ["20971520-", "-1024"] {
        waiting.push(scene.request(open).send().await);
    }
    // What would be asked for is asked for by now.
    scene.pull_part(FAR).await;
    assert_eq!(scene.asked(), [text(&FAR)]);
    scene.fill.open();
    let ends = [20 * MIB..SIZE, SIZE - KIB..SIZE];
    for (answer, part) in waiting.into_iter().zip(ranges.into_iter().chain(ends)) {
        answer.whole().await.is(206, &scene.blob.bytes()[part]);
    }
    assert_eq!(scene.asked(), [text(&FAR)]);
}

#[tokio::test]
async fn invariant_04_at_most_two_windows_are_open_at_once() {
    let scene = Scene::new().await;
    let parts = [10, 14, 18].map(|mib| mib * MIB..mib * MIB + 100 * KIB);
    let gates: Vec<_> = parts
        .iter()
        .map(|part| {
            let at = At::Byte(part.start + KIB);
            scene.upstream.hold(scene.target.clone(), at)
        })
        .collect();
    let first = scene.part(&parts[0]).send().await;
    gates[0].reached().await;
    let second = scene.part(&parts[1]).send().await;
    gates[1].reached().await;
    let mut third = scene.part(&parts[2]).send().await;
    // It would be asked for by now.
    let labels = [("endpoint", "blob")];
    let name = "layerhold_requests_total";
    let proxy = &scene.proxy;
    proxy.wait_for_metric(name, &labels, |it| it == 4.0).await;
    assert_eq!(scene.asked().len(), 2);

    gates[0].open();
    first
        .whole()
        .await
        .is(206, &scene.blob.bytes()[parts[0].clone()]);
    // There is a place now.
    gates[2].reached().await;
    let (start, end) = (parts[2].start, parts[2].end);
    assert_eq!(
        third.read(KIB).await,
        scene.blob.bytes()[start..start + KIB]
    );
    gates[2].open();
    let rest = third.whole().await;
    assert_eq!(rest.bytes, scene.blob.bytes()[start + KIB..end]);
    gates[1].open();
    second
        .whole()
        .await
        .is(206, &scene.blob.bytes()[parts[1].clone()]);
    assert_eq!(scene.asked().len(), 3);
}

#[tokio::test]
async fn invariant_04_windows_bring_a_tenth_of_the_blob_at_most() {
    let scene = Scene::new().await;
    for mib in [10, 20, 15] {
        scene.pull_part(mib * MIB..(mib + 1) * MIB).await;
    }
    // A tenth is 3.2 MiB.
    let beyond = 25 * MIB..25 * MIB + 300 * KIB;
    let waits = scene.part(&beyond).send().await;
    scene.pull_part(18 * MIB..18 * MIB + 100 * KIB).await;
    assert_eq!(scene.asked().len(), 4);
    // A small one counts as one of 64 KiB: the rest is enough for one of them.
    scene.pull_part(17 * MIB..17 * MIB + 1).await;
    let small = scene.part(&(16 * MIB..16 * MIB + 1)).send().await;
    scene.fill.open();
    waits.whole().await.is(206, &scene.blob.bytes()[beyond]);
    small
        .whole()
        .await
        .is(206, &scene.blob.bytes()[16 * MIB..=16 * MIB]);
    assert_eq!(scene.asked().len(), 5);
}

#[tokio::test]
async fn parts_that_are_near_each_other_come_by_one_window() {
    let scene = Scene::new().await;
    let parts = [
        20 * MIB..20 * MIB + 100,
        20 * MIB + 10 * KIB..20 * MIB + 20 * KIB,
        20 * MIB + 80 * KIB..20 * MIB + 90 * KIB,
        12 * MIB..12 * MIB + 10,
    ];
    let all: Vec<String> = parts.iter().map(text).collect();
    let whole = scene.request(&all.join(",")).whole().await;
    assert_eq!(whole.head.status, 206);
    assert_eq!(whole.head.content_length(), Some(whole.bytes.len()));
    let mut rest = &*whole.bytes;
    for part in &parts {
        let bytes = &scene.blob.bytes()[part.clone()];
        let at = rest.windows(bytes.len()).position(|it| it == bytes);
        rest = &rest[at.unwrap() + bytes.len()..];
    }
    let near = 20 * MIB..20 * MIB + 90 * KIB;
    assert_eq!(scene.asked(), [text(&near), text(&parts[3])]);
    scene.end().await;
}

#[tokio::test]
async fn a_window_that_fails_is_not_noticed_and_is_the_last_one() {
    for fault in [
        Fault::Status(500),
        Fault::Status(404),
        Fault::NoRange,
        Fault::WrongRange,
        Fault::WrongDigestHeader,
        Fault::CutAfter(300 * KIB),
        Fault::ShortLength,
        Fault::LongLength,
        Fault::Gzip,
    ] {
        let scene = Scene::new().await;
        scene
            .upstream
            .script(scene.target.clone(), Turns::NEXT, fault);
        let answer = scene.part(&FAR).send().await;
        let failed = [("end", "failed")];
        // More than was announced is noticed by nobody who has what was asked for.
        if fault != Fault::LongLength {
            scene
                .proxy
                .wait_for_metric("layerhold_windows_total", &failed, |it| it == 1.0)
                .await;
        }
        let other = 25 * MIB..25 * MIB + KIB;
        let waits = scene.part(&other).send().await;
        scene.fill.open();
        answer.whole().await.is(206, &scene.blob.bytes()[FAR]);
        waits.whole().await.is(206, &scene.blob.bytes()[other]);
        let windows = if fault == Fault::LongLength { 2 } else { 1 };
        assert_eq!(scene.asked().len(), windows, "{fault:?}");
        scene.end().await;
    }
}

#[tokio::test]
async fn a_window_that_is_slower_than_the_fill_keeps_nobody_waiting() {
    let scene = Scene::new().await;
    let target = scene.target.clone();
    scene
        .upstream
        .script(target, Turns::NEXT, Fault::StallAfter(KIB));
    let mut answer = scene.part(&FAR).send().await;
    assert_eq!(answer.read(KIB).await, scene.blob.bytes()[FAR][..KIB]);
    scene.fill.open();
    let rest = answer.whole().await;
    assert_eq!(rest.bytes, scene.blob.bytes()[FAR][KIB..]);
    assert_eq!(scene.windows("failed").await, 0.0);
    let left = [("end", "left")];
    let proxy = &scene.proxy;
    proxy
        .wait_for_metric("layerhold_windows_total", &left, |it| it == 1.0)
        .await;
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_window_back() {
    let scene = Scene::new().await;
    for mib in [10, 14, 18] {
        let at = At::Byte(mib * MIB + KIB);
        let gate = scene.upstream.hold(scene.target.clone(), at);
        let part = mib * MIB..mib * MIB + 100 * KIB;
        let mut answer = scene.part(&part).send().await;
        gate.reached().await;
        answer.read(KIB).await;
        drop(answer);
        // Upstream's answer is given up, though it is still held.
        let left = [("end", "left")];
        let proxy = &scene.proxy;
        let all = (mib - 6) / 4;
        proxy
            .wait_for_metric("layerhold_windows_total", &left, |it| {
                it == f64::from(u32::try_from(all).unwrap())
            })
            .await;
    }
    scene.pull_part(FAR).await;
    scene.end().await;
}

#[tokio::test]
async fn invariant_13_a_window_is_asked_of_the_repository_that_the_client_asked() {
    let scene = Scene::new().await;
    let (other, stranger) = ("other/app", "stranger/app");
    scene.upstream.serve_blob(other, &scene.blob);
    let digest = scene.blob.digest();
    let range = format!("bytes={}", text(&FAR));
    let refused = scene.proxy.blob(stranger, digest).range(&range);
    assert_eq!(refused.whole().await.head.status, 404);
    let there = get(format!("{stranger}/blobs"));
    assert_eq!(scene.upstream.count(&there), 0);

    let proven = scene.proxy.blob(other, digest).range(&range);
    proven.whole().await.is(206, &scene.blob.bytes()[FAR]);
    let there = get(format!("{other}/blobs"));
    assert_eq!(asked(&scene.upstream, &there), [text(&FAR)]);
    assert!(scene.asked().is_empty());
    scene.end().await;
}

#[tokio::test]
async fn a_window_is_asked_of_mirrors_first_and_of_the_registry_where_they_have_no_ranges() {
    let upstream = FakeRegistry::start().await;
    let mirror = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .mirror(&mirror, "")
        .start()
        .await;
    let scene = Scene::of(mirror, proxy).await;
    upstream.serve_blob(APP, &scene.blob);
    scene.pull_part(FAR).await;
    assert_eq!(asked(&scene.upstream, &scene.target), [text(&FAR)]);
    assert_eq!(upstream.count(&scene.target), 0);

    let next = 25 * MIB..25 * MIB + KIB;
    scene.upstream.once(scene.target.clone(), Fault::NoRange);
    scene.pull_part(next.clone()).await;
    assert_eq!(asked(&upstream, &scene.target), [text(&next)]);
    assert_eq!(scene.windows("complete").await, 2.0);
    scene.end().await;
}

/// Waits until a registry that does not answer is left alone; asked for this and that meanwhile.
async fn wait_for_rest(proxy: &TestProxy, repository: &str) {
    poll("the registry to be left alone", async || {
        let anything = proxy.blob(repository, Blob::random(8).digest());
        assert!(anything.whole().await.head.status >= 500);
        let resting = proxy.metric("layerhold_upstream_resting", &[]).await;
        (resting > 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_window_that_cannot_be_asked_for_is_not_tried_all_the_time() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("timeouts.first_byte", "300ms")
        .set("freshness.retry_after", "1m")
        .start()
        .await;
    let scene = Scene::of(upstream, proxy).await;
    scene.upstream.always(any("other/app"), Fault::Silence);
    wait_for_rest(&scene.proxy, "other/app").await;
    let unasked = async || {
        let name = "layerhold_upstream_unasked_total";
        scene.proxy.metric(name, &[]).await
    };
    let (before, began) = (unasked().await, Instant::now());
    let answer = scene.part(&FAR).send().await;
    let tried = poll("a second try", async || {
        let tried = unasked().await - before;
        (tried >= 2.0).then_some(tried)
    })
    .await;
    // Each waits for a tenth of a second.
    let most = began.elapsed().div_duration_f64(Duration::from_millis(100)) + 1.0;
    assert!(tried <= most, "{tried} tries");
    // What was not asked for was no window. (When the blob goes on, its registry is alive again.)
    assert_eq!(scene.windows("failed").await, 0.0);
    assert!(scene.asked().is_empty());
    scene.fill.open();
    answer.whole().await.is(206, &scene.blob.bytes()[FAR]);
    scene.end().await;
}

#[tokio::test]
async fn a_window_that_a_mirror_was_asked_for_in_vain_is_the_last_one() {
    let upstream = FakeRegistry::start().await;
    let mirror = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .mirror(&mirror, "")
        .set("freshness.retry_after", "1m")
        .start()
        .await;
    let scene = Scene::of(mirror, proxy).await;
    upstream.stop().await;
    wait_for_rest(&scene.proxy, APP).await;
    // The registry itself is not asked, but that does not make this one free of cost.
    scene.upstream.always(scene.target.clone(), Fault::NoRange);
    let answer = scene.part(&FAR).send().await;
    let failed = [("end", "failed")];
    scene
        .proxy
        .wait_for_metric("layerhold_windows_total", &failed, |it| it == 1.0)
        .await;
    let other = 25 * MIB..25 * MIB + KIB;
    let waits = scene.part(&other).send().await;
    scene.fill.open();
    answer.whole().await.is(206, &scene.blob.bytes()[FAR]);
    waits.whole().await.is(206, &scene.blob.bytes()[other]);
    assert_eq!(scene.asked(), [text(&FAR)]);
    scene.end().await;
}
