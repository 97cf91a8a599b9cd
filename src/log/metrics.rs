//! What is counted of the log.

use std::sync::OnceLock;

use prometheus::{IntCounter, Registry};

/// There is one log in a process.
static LOST: OnceLock<IntCounter> = OnceLock::new();

/// Makes the series and registers it.
///
/// # Errors
///
/// When its name is already taken in `registry`.
pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    let lost = IntCounter::new(
        "layerhold_log_lines_lost_total",
        "Lines of the log that were lost as nobody read it",
    )?;
    registry.register(Box::new(LOST.get_or_init(|| lost).clone()))
}

/// A line is lost.
pub(super) fn lost() {
    if let Some(lost) = LOST.get() {
        lost.inc();
    }
}
