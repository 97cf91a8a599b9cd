//! One cold blob over several connections.

use crate::harness::script::{Target, Turns};
use crate::harness::{APP, At, Blob, End, FakeRegistry, Fault, KIB, MIB, TestProxy, any, get};

/// A registry, a proxy that asks it for four parts at once, and a blob.
struct Scene {
    upstream: FakeRegistry,
    proxy: TestProxy,
    blob: Blob,
    target: Target,
}

impl Scene {
    async fn new(size: usize) -> Self {
        let upstream = FakeRegistry::start().await;
        let proxy = TestProxy::in_front_of(&upstream).upstream("parallel_ranges", 4);
        let proxy = proxy.start().await;
        let blob = Blob::random(size);
        upstream.serve_blob(APP, &blob);
        upstream.allow_concurrent_transfers();
        let target = get(format!("{APP}/blobs/{}", blob.digest()));
        Self {
            upstream,
            proxy,
            blob,
            target,
        }
    }

    /// Pulls the blob, cold and then from the cache.
    async fn pull(&self) {
        self.proxy.pull_blob(APP, &self.blob).await;
        let asked = self.upstream.count(&self.target);
        self.proxy.pull_blob(APP, &self.blob).await;
        assert_eq!(self.upstream.count(&self.target), asked);
    }

    /// The ranges that upstream was asked for, by where they begin; `None` is the whole.
    fn asked(&self) -> Vec<Option<String>> {
        let seen = self.upstream.seen(&self.target);
        let range = |it: &str| it["bytes=".len()..].to_owned();
        let mut asked: Vec<_> = seen
            .iter()
            .map(|it| it.header("range").map(range))
            .collect();
        asked.sort_by_key(|it| {
            let from = it.as_ref().and_then(|it| it.split_once('-'));
            from.map_or(0, |(from, _)| from.parse::<usize>().unwrap())
        });
        asked
    }

    fn asked_for(&self, expected: &[&str]) {
        let expected: Vec<_> = expected.iter().map(|it| Some((*it).to_owned())).collect();
        assert_eq!(self.asked(), expected);
    }
}

/// What one connection is asked for.
const PART: usize = 8 * MIB;

#[tokio::test]
async fn invariant_04_the_parts_of_one_blob_come_at_once_and_are_one_transfer() {
    let scene = Scene::new(4 * PART + MIB).await;
    let held = scene.upstream.hold(scene.target.clone(), At::Byte(MIB));
    let answer = scene.proxy.blob(APP, scene.blob.digest()).send().await;
    held.reached().await;
    // As many as were allowed, and no more.
    scene.upstream.wait_for(&scene.target, 4).await;
    assert_eq!(scene.upstream.count(&scene.target), 4);
    held.open();
    answer.is(&scene.blob).await;
    scene.asked_for(&[
        "0-8388607",
        "8388608-16777215",
        "16777216-25165823",
        "25165824-33554431",
        "33554432-34603007",
    ]);
    assert_eq!(scene.upstream.sent(&scene.target), scene.blob.len());
    scene.pull().await;
}

#[tokio::test]
async fn what_fits_into_one_part_is_asked_for_once() {
    for size in [1, PART - 1, PART] {
        let scene = Scene::new(size).await;
        scene.pull().await;
        scene.asked_for(&["0-8388607"]);
    }
}

#[tokio::test]
async fn an_empty_blob_has_no_part() {
    let scene = Scene::new(0).await;
    scene.pull().await;
    assert_eq!(scene.asked().last(), Some(&None));
}

#[tokio::test]
async fn pitfall_28_a_part_that_breaks_off_is_gone_on_with_and_the_others_are_kept() {
    for (turn, rest) in [(1, "1048576-8388607"), (2, "-16777215"), (4, "-33554431")] {
        let scene = Scene::new(4 * PART).await;
        let cut = Fault::CutAfter(MIB);
        scene
            .upstream
            .script(scene.target.clone(), Turns::nth(turn), cut);
        scene.pull().await;
        let asked = scene.asked();
        assert_eq!(asked.len(), 5, "{asked:?}");
        // No byte of the other parts is asked for again.
        let again = asked.iter().flatten().filter(|it| it.ends_with(rest));
        assert!(again.count() > 0, "{asked:?}");
        assert_eq!(scene.upstream.sent(&scene.target), scene.blob.len());
    }
}

#[tokio::test]
async fn pitfall_28_a_registry_without_usable_ranges_is_asked_for_the_whole() {
    for (fault, requests) in [
        (Fault::NoRange, 1),
        (Fault::WrongRange, 2),
        (Fault::LateRange, 2),
        (Fault::Gzip, 2),
        (Fault::Status(416), 2),
    ] {
        let scene = Scene::new(2 * PART).await;
        let turns = if requests == 1 {
            Turns::EVERY
        } else {
            Turns::NEXT
        };
        scene.upstream.script(scene.target.clone(), turns, fault);
        scene.pull().await;
        let asked = scene.asked();
        assert_eq!(asked.len(), requests, "{fault:?}: {asked:?}");
    }
}

#[tokio::test]
async fn pitfall_28_a_part_ahead_that_is_refused_or_another_fails_no_pull() {
    for fault in [
        Fault::NoRange,
        Fault::WrongRange,
        Fault::Gzip,
        Fault::Status(403),
        Fault::Status(404),
        Fault::Status(416),
    ] {
        let scene = Scene::new(4 * PART).await;
        scene
            .upstream
            .script(scene.target.clone(), Turns::nth(3), fault);
        scene.pull().await;
    }
}

#[tokio::test]
async fn pitfall_01_wrong_bytes_in_a_part_never_end_cleanly() {
    let scene = Scene::new(3 * PART).await;
    let fault = Fault::Corrupt(KIB);
    scene
        .upstream
        .script(scene.target.clone(), Turns::nth(3), fault);
    let answer = scene.proxy.blob(APP, scene.blob.digest()).send().await;
    let whole = answer.whole().await;
    assert_ne!(whole.end, End::Complete);
    assert!(whole.bytes.len() < scene.blob.len());
}

#[tokio::test]
async fn what_a_registry_refuses_is_refused_whatever_is_asked_for_at_once() {
    let scene = Scene::new(2 * PART).await;
    scene
        .upstream
        .always(any(scene.blob.digest()), Fault::Status(404));
    let whole = scene.proxy.blob(APP, scene.blob.digest()).whole().await;
    assert_eq!(whole.head.status, 404);
    assert_eq!(scene.upstream.count(&scene.target), 1);
}

#[tokio::test]
async fn parts_ahead_take_only_places_that_are_free() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream).upstream("parallel_ranges", 4);
    let proxy = proxy.set("limits.requests_per_upstream", 2).start().await;
    let blob = Blob::random(3 * PART);
    upstream.serve_blob(APP, &blob);
    proxy.pull_blob(APP, &blob).await;
    assert_eq!(upstream.busiest(), 1);
}
