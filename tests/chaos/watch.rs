//! What the process says of itself while it runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::Run;
use crate::fleet::Instance;
use crate::harness::proxy::sum;
use crate::harness::{Connection, End};
use crate::journal::OPERATOR;

/// Looks at the metrics again and again: the budget holds at any moment.
pub(crate) async fn scrape(run: Arc<Run>) {
    while !run.is_over() {
        run.pause(Duration::from_millis(100)).await;
        let Some(instance) = run.fleet.listening() else {
            continue;
        };
        let wrong = excess(&instance).await;
        if let Some(wrong) = wrong.filter(|_| !instance.is_ending()) {
            run.journal.violation(&run, OPERATOR, &wrong);
        }
    }
}

/// Notes when this process, and with it every upstream, was not given the time to do anything.
pub(crate) async fn stalls(run: Arc<Run>) {
    while !run.is_over() {
        let began = Instant::now();
        run.pause(TICK).await;
        if began.elapsed() > TICK + STALL {
            run.world.troubles().stalled(began);
        }
    }
}

const TICK: Duration = Duration::from_millis(50);
/// Added to what an upstream takes anyway, this may be too long for somebody.
const STALL: Duration = Duration::from_millis(250);

/// What is wrong with the budget, if anything is.
async fn excess(instance: &Instance) -> Option<String> {
    let Some(metrics) = metrics(instance).await else {
        return Some("no metrics".to_owned());
    };
    let bytes = |state| sum(&metrics, "layerhold_cache_bytes", &[("state", state)]);
    let (used, reserved, limit) = (bytes("used"), bytes("reserved"), bytes("limit"));
    (used + reserved > limit).then(|| format!("{used} used and {reserved} reserved of {limit}"))
}

/// Everything at `/metrics`; nothing of a process that is gone.
pub(crate) async fn metrics(instance: &Instance) -> Option<String> {
    let mut connection = Connection::try_open(instance.front.admin).await.ok()?;
    let head = b"GET /metrics HTTP/1.1\r\nHost: cache\r\n\r\n";
    connection.write(head).await.ok()?;
    let whole = connection.try_head("GET").await.ok()?.whole().await;
    (whole.head.status == 200 && whole.end == End::Complete).then(|| whole.text())
}

/// No request is counted twice.
pub(crate) async fn counted_no_more_than_was_asked(run: &Run) {
    let instance = run.fleet.current().await;
    let Some(metrics) = metrics(&instance).await else {
        return run.journal.violation(run, OPERATOR, "no metrics");
    };
    let counted = sum(&metrics, "layerhold_requests_total", &[]);
    let (_, sent) = instance.requests();
    if counted > number(sent) {
        let wrong = format!("{counted} requests counted of {sent}");
        run.journal.violation(run, OPERATOR, &wrong);
    }
}

/// A count as metrics have it.
pub(crate) fn number(n: u64) -> f64 {
    f64::from(u32::try_from(n).unwrap())
}
