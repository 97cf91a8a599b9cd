//! What to run on: every value checked, the units in the types.

use tracing::Level;

use crate::cache;
use crate::proxy;
use crate::server;

/// Everything a process runs on. Made by [`Config::load`]; whoever builds one by hand keeps its promises (see the fields'
/// own documentation).
#[derive(Clone, Debug)]
pub struct Config {
    /// The HTTP front.
    pub server: server::Config,
    /// The store.
    pub cache: cache::Config,
    /// Upstreams and freshness.
    pub proxy: proxy::Config,
    /// The log.
    pub log: Log,
}

/// How to log, to stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks; `None` is text on a terminal, else JSON.
    pub format: Option<LogFormat>,
    /// What is worth a line.
    pub level: Level,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}
