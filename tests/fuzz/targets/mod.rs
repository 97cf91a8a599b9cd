//! Each parser of foreign text, with inputs from the field to begin with.
//!
//! Where a rule can be written as a pattern, the parser has to agree with the pattern about every input. Parsers that only
//! their own module sees have a `fuzz_…` function next to them, which knows what has to hold.

mod names;
mod fields;
mod configuration;
mod bodies;
mod files;
mod peers;

use std::sync::LazyLock;

use regex::Regex;

/// A parser and what is known of its inputs.
pub(crate) struct Target {
    /// By which it is run.
    pub(crate) name: &'static str,
    /// Feeds the parser and panics unless all is as it has to be. Whether the parser accepted the input.
    pub(crate) run: fn(&[u8]) -> bool,
    /// Inputs of the field, good and bad.
    pub(crate) seeds: &'static [&'static [u8]],
    /// What they are made of.
    pub(crate) words: &'static [&'static [u8]],
}

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    names::DIGEST,
    names::NAME,
    names::TAG,
    names::NAMESPACE,
    names::PATTERN,
    names::FULL_REFERENCE,
    names::ENDPOINT,
    names::MEDIA_TYPE,
    bodies::MANIFEST,
    fields::RANGE,
    fields::CONTENT_RANGE,
    fields::CONDITIONAL,
    fields::RETRY_AFTER,
    peers::HOST,
    peers::FORWARDED,
    peers::PROXY_HEADER,
    peers::NETWORK,
    configuration::SIZE,
    configuration::DURATION,
    configuration::RATE,
    fields::AUTHORIZATION,
    fields::TOKEN_REQUEST,
    fields::CHALLENGE,
    bodies::TOKEN,
    bodies::CREDENTIAL_HELPER,
    peers::REALM,
    peers::REDIRECT,
    fields::LINK,
    peers::NO_PROXY,
    peers::TUNNEL_ANSWER,
    bodies::GZIP,
    bodies::LISTING,
    bodies::PURGE_ORDER,
    bodies::VERIFY_ORDER,
    bodies::PURGE_REPORT,
    bodies::VERIFY_LINE,
    bodies::GRANTS,
    bodies::TAG_RECORD,
    names::LAYOUT,
    configuration::CONFIG,
    configuration::OPTIONS,
    configuration::CLIENT_CONFIG,
    files::ACCESS_FILE,
    files::PASSWORD_FILE,
    files::CERTIFICATES,
    files::STORE_VERSION,
];

/// The input as a text, where it is one.
fn text(input: &[u8]) -> Option<&str> {
    str::from_utf8(input).ok()
}

/// A pattern that has to match the whole.
fn whole(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).unwrap()
}

/// The paths of all endpoints.
pub(crate) fn endpoint_pattern() -> Regex {
    names::endpoint_pattern()
}

/// A pattern that is made once.
type Pattern = LazyLock<Regex>;
