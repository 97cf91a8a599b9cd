//! What the process says of itself to whoever decides whether it gets requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether requests may come. Clones say the same.
#[derive(Clone, Debug, Default)]
pub struct Health {
    listening: Arc<AtomicBool>,
    draining: Arc<AtomicBool>,
}

impl Health {
    /// Requests may come from now on.
    pub fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// No more requests, please.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Listening, and not draining. A broken disk is no reason: pulls go around it.
    pub fn is_ready(&self) -> bool {
        self.listening.load(Ordering::Acquire) && !self.draining.load(Ordering::Acquire)
    }
}
