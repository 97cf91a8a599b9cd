//! When descriptors run out.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tokio::time::{Instant, sleep};

use crate::crowd::{connect, crowd, ping};
use crate::harness::proxy::sum;
use crate::harness::{APP, At, Binary, Blob, FakeRegistry, KIB, MIB, Request, TestProxy, get};
use crate::process::{Usage, is_as_before, turn};

#[tokio::test]
async fn invariant_10_connections_wait_where_descriptors_are_few_and_pulls_go_on() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start_with_open_files(&builder, 128).await;
    let [kept, blob] = [Blob::random(KIB), Blob::random(8 * MIB)];
    upstream.serve_blob(APP, &kept);
    upstream.serve_blob(APP, &blob);
    binary.wait_for_hit(APP, &kept).await;
    let before = Usage::of(&binary);

    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let mut slow = binary.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let streams = crowd(200, |n| connect(binary.registry, n)).await;
    binary
        .wait_for_metric("layerhold_connections", &[], |it| it >= 63.0)
        .await;
    assert!(Usage::of(&binary).descriptors < 128);
    slow.read(MIB).await;
    gate.open();
    slow.continues(&blob, MIB).await;
    // Each of them gets its turn when another one goes.
    let mut turns = Vec::new();
    for mut stream in streams {
        turns.push(async move { ping(&mut stream).await });
    }
    let statuses = join_all(turns).await;
    assert!(statuses.iter().all(|it| it.as_deref() == Some("200")));
    binary.pull_blob(APP, &kept).await;
    is_as_before(&binary, before).await;
    assert_eq!(
        binary.metric("layerhold_accept_errors_total", &[]).await,
        0.0
    );
}

#[tokio::test]
async fn invariant_10_a_process_without_descriptors_waits_for_them() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(8 * MIB);
    upstream.serve_blob(APP, &blob);
    let gate = upstream.hold(get(blob.digest()), At::Byte(4 * MIB));
    let mut pull = binary.blob(APP, blob.digest()).send().await;
    gate.reached().await;
    let scrape = Request::new(binary.admin, "GET", "/metrics");
    let (_, mut admin) = scrape.send().await.whole_and_connection().await;

    // No new descriptor is below this.
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(3),
        maximum: limit.maximum,
    };
    prlimit(Some(binary.pid()), Resource::Nofile, none).unwrap();
    let began = Instant::now();
    let mut waiting = connect(binary.registry, 0).await;
    let mut errors = 0.0;
    while errors < 4.0 {
        let (scraped, back) = scrape.send_on(admin).await.whole_and_connection().await;
        admin = back;
        let name = "layerhold_accept_errors_total";
        errors = sum(&scraped.text(), name, &[("reason", "descriptors")]);
        sleep(Duration::from_millis(50)).await;
    }
    // It does not try again and again: 20 ms, doubling to a second.
    let at_most = 8.0 + began.elapsed().as_secs_f64();
    assert!(errors < at_most, "{errors} in {:?}", began.elapsed());
    pull.read(MIB).await;
    gate.open();
    pull.continues(&blob, MIB).await;

    prlimit(Some(binary.pid()), Resource::Nofile, limit).unwrap();
    assert_eq!(ping(&mut waiting).await.as_deref(), Some("200"));
    binary.wait_for_hit(APP, &blob).await;
}
