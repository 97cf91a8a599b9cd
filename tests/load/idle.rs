//! Clients that have asked, and stay.

use std::collections::BTreeMap;

use rustix::process::{Resource, getrlimit};

use crate::crowd::{connect, crowd, ping};
use crate::harness::{APP, Binary, Blob, FakeRegistry, KIB, MIB, TestProxy};
use crate::process::{Usage, counted, is_as_before, turn};

#[tokio::test]
async fn pitfall_49_ten_thousand_idle_connections_cost_little_and_nothing_when_they_are_gone() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("timeouts.header_read", "10m");
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(4 * MIB);
    upstream.serve_blob(APP, &blob);
    binary.wait_for_hit(APP, &blob).await;
    let before = Usage::of(&binary);

    // Each of them is a descriptor here, too.
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let n = usize::try_from(limit)
        .unwrap()
        .saturating_sub(500)
        .min(CONNECTIONS);
    let idle = crowd(n, async |n| {
        let mut stream = connect(binary.registry, n).await;
        (ping(&mut stream).await, stream)
    });
    let mut idle = idle.await;
    let statuses = counted(idle.iter().map(|(status, _)| status.clone()));
    assert_eq!(statuses, BTreeMap::from([(Some("200".to_owned()), n)]));
    assert!(binary.metric("layerhold_connections", &[]).await >= n as f64);

    let usage = Usage::of(&binary);
    usage.costs(before, ("idle connections", n), 16 * KIB, 1.0);
    binary.pull_blob(APP, &blob).await;
    let cold = Blob::random(4 * MIB);
    upstream.serve_blob(APP, &cold);
    binary.pull_blob(APP, &cold).await;
    // They are still good for another request.
    for (_, stream) in idle.iter_mut().step_by(n / 10) {
        assert_eq!(ping(stream).await.as_deref(), Some("200"));
    }
    drop(idle);
    is_as_before(&binary, before).await;
}

const CONNECTIONS: usize = 10_000;
