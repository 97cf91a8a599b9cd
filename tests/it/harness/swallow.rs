//! An address that swallows what is sent to it, as behind a firewall that drops.

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A listener whose queue is full: whoever else knocks hears nothing, neither yes nor no.
#[derive(Debug)]
pub(crate) struct Swallower {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Swallower {
    /// Has a listener swallow everything from now on. It must have accepted nothing so far.
    pub(crate) async fn of(listener: TcpListener) -> Self {
        // On one that listens already, this changes how long the queue may be.
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        while let Ok(connected) = timeout(KNOCK, TcpStream::connect(address)).await {
            queue.push(connected.unwrap());
        }
        Self {
            _listener: listener,
            _queue: queue,
        }
    }
}

/// How long somebody waits who knocks to learn whether the queue is full.
const KNOCK: Duration = Duration::from_millis(200);
