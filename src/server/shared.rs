//! What requests share.

use std::sync::Arc;

use super::access::Access;
use super::callers::Callers;
use super::limits::Limits;
use super::metrics::{Metrics, RecentSeries};
use super::peer::Peer;
use super::peers::Peers;
use crate::proxy::Proxy;

/// What all requests share.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) proxy: Arc<Proxy>,
    pub(super) metrics: Metrics,
    pub(super) peers: Peers,
    pub(super) access: Arc<Access>,
    pub(super) limits: Limits,
    pub(super) callers: Callers,
}

/// What the requests of a connection share.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) front: Arc<Front>,
    pub(super) peer: Peer,
    pub(super) series: RecentSeries,
}
