//! Clients that take their time over a body.

use crate::crowd::SlowReaders;
use crate::harness::{APP, At, Binary, Blob, FakeRegistry, KIB, MIB, TestProxy, get};
use crate::process::{Usage, eventually, is_as_before, turn, waiting_bytes};

#[tokio::test]
async fn pitfall_26_a_thousand_slow_readers_keep_nobody_waiting() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("timeouts.write_idle", "10s");
    let binary = Binary::start(&builder).await;
    let [hit, cold, other] = [(); 3].map(|()| Blob::random(48 * MIB));
    for blob in [&hit, &cold, &other] {
        upstream.serve_blob(APP, blob);
    }
    binary.wait_for_hit(APP, &hit).await;
    let before = Usage::of(&binary);

    let mut of_hit = SlowReaders::start(binary.registry, READERS / 2, &hit).await;
    let gate = upstream.hold(get(cold.digest()), At::Byte(24 * MIB));
    let mut of_cold = SlowReaders::start(binary.registry, READERS / 2, &cold).await;
    gate.reached().await;
    eventually("all to follow", async || {
        let followers = binary.metric("layerhold_followers", &[]).await;
        let all = (READERS / 2) as f64;
        (followers >= all)
            .then_some(())
            .ok_or(followers.to_string())
    })
    .await;
    gate.open();
    // The fill goes at its own speed, and so does everybody else.
    binary.wait_for_fills("published", 2.0).await;
    binary.pull_blob(APP, &cold).await;
    binary.pull_blob(APP, &other).await;

    // Several times as long as a client may take nothing.
    eventually("all to be served", async || {
        let least = of_hit.least().min(of_cold.least());
        (least >= 28 * KIB).then_some(()).ok_or(least.to_string())
    })
    .await;
    let usage = Usage::of(&binary);
    usage.costs(before, ("slow readers", READERS), 256 * KIB, 1.0);
    let waiting = waiting_bytes(binary.registry);
    let (all, most) = (waiting.iter().sum::<usize>(), waiting.iter().max().unwrap());
    println!(
        "{READERS} slow readers: {} KiB each in the kernel",
        all / READERS / KIB
    );
    assert!(*most <= 512 * KIB, "{most}");
    drop((of_hit, of_cold));
    is_as_before(&binary, before).await;
}

const READERS: usize = 1000;
