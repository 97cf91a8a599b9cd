//! What one upstream client runs on.

use std::time::Duration;

use http::Uri;

/// Where a registry is and how long we wait for it. Checked by whoever builds it: `url` has scheme `http` or `https`, a
/// host, and a path that is empty or `/`.
#[derive(Clone, Debug)]
pub struct Config {
    /// The registry's root, such as `https://registry-1.docker.io`.
    pub url: Uri,
    /// How long one connection may take to be made, TLS included.
    pub connect_timeout: Duration,
    /// How long a sent request may wait for its response head.
    pub first_byte_timeout: Duration,
    /// How long a body may be silent.
    pub idle_timeout: Duration,
    /// Requests in flight at once; further ones wait.
    pub requests_max: usize,
}
