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
    /// Who may pull what.
    pub access: server::AccessConfig,
    /// The store.
    pub cache: cache::Config,
    /// Upstreams and freshness.
    pub proxy: proxy::Config,
    /// The log.
    pub log: Log,
    /// Which rights the process gives away before it serves.
    pub sandbox: Sandbox,
}

impl Config {
    /// The parts in which `other` differs and which only a restart can change: a reload covers `[[upstream]]`, what upstreams
    /// have in common, `[access]`, what is in `[tls]` and `[admin_tls]`, and nothing else.
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let proxy = |it: &Self| {
            let proxy::Config {
                upstreams: _,
                answer_timeout,
                manifest_bytes_max,
                negative_for,
                bypasses_max,
            } = it.proxy;
            (
                answer_timeout,
                manifest_bytes_max,
                negative_for,
                bypasses_max,
            )
        };
        // The files of a port that speaks TLS are read again; whether it does is for the start.
        let front = |it: &Self| server::Config {
            tls: None,
            admin_tls: None,
            ..it.server.clone()
        };
        let encrypted = |it: &Self| (it.server.tls.is_some(), it.server.admin_tls.is_some());
        let parts = [
            (front(self) == front(other), "addresses and client limits"),
            (encrypted(self) == encrypted(other), "whether TLS is spoken"),
            (self.cache == other.cache, "cache"),
            (proxy(self) == proxy(other), "timeouts and limits of pulls"),
            (self.log == other.log, "log"),
            (self.sandbox == other.sandbox, "sandbox"),
        ];
        let differing = parts.into_iter().filter(|(is_same, _)| !is_same);
        differing.map(|(_, part)| part).collect()
    }
}

/// Which rights the process gives away before it serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// None.
    #[default]
    None,
    /// To write to files outside the cache directory, by the kernel's Landlock.
    Landlock,
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
