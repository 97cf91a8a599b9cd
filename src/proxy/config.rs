//! What pulling runs on: the closed list of upstreams and the rules of freshness.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;

use super::policy::Policy;
use crate::oci::Namespace;
use crate::upstream;

/// Everything that decides which upstream is asked and how long its word is good.
#[derive(Clone, Debug)]
pub struct Config {
    /// The upstreams that may be dialled; no other host ever is. Namespaces are unique, and exactly one is the default.
    pub upstreams: Vec<UpstreamConfig>,
    /// From the request to the answer's head, all attempts and waits included (containerd gives up at 30 s).
    pub answer_timeout: Duration,
    /// Manifests above this are refused (the spec asks registries for at least 4 MiB).
    pub manifest_bytes_max: u64,
    /// How long a 404 for a digest is remembered; for a tag at most its `fresh_for`.
    pub negative_for: Duration,
    /// Pulls that go around the cache at once, when there is no room or the disk is broken; further ones are refused.
    pub bypasses_max: usize,
}

/// One registry that clients may pull from.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// What clients call it.
    pub namespace: Namespace,
    /// Where it is.
    pub connection: upstream::Config,
    /// Whether it serves requests that name no registry.
    pub default: bool,
    /// `Host` headers that mean this upstream, in lower case, without a port unless one is meant.
    pub hosts: Vec<String>,
    /// How long its tags are good, unless a rule says otherwise.
    pub freshness: Freshness,
    /// Rules for some of its tags; the first that matches decides.
    pub tags: Vec<TagRule>,
    /// What may be pulled from it.
    pub policy: Policy,
    /// The program that says which manifests may be given out.
    pub verifier: Option<Arc<PathBuf>>,
    /// Whose rights decide what a client may have of it.
    pub access: Access,
}

/// Whose rights decide what a client may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Ours: what the upstream lets us have, every client may have that is let in here.
    Shared,
    /// The caller's own: what the upstream lets the client itself have.
    Caller {
        /// How long the upstream's yes to a caller, for one repository, is believed at most.
        grant_ttl: Duration,
    },
}

/// How long a tag's answer is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// A tag is served unasked this long after its last check; zero: every answer rests on a check sent after the request.
    pub fresh_for: Duration,
    /// When upstream is unavailable, the last stored answer is served this long after its last good check.
    pub usable_for: Duration,
    /// Pause after a failed check; doubles up to a minute.
    pub retry_after: Duration,
}

/// A freshness of its own for the tags that match.
#[derive(Clone, Debug)]
pub struct TagRule {
    /// Matched against the tag; anchored only where it says so.
    pub pattern: Regex,
    /// How long matching tags are served unasked.
    pub fresh_for: Duration,
}
