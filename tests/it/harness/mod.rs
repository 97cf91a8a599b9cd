//! What every test stands on: a registry that can be told to misbehave, the proxy in front of it, and a client that
//! believes nothing it did not verify.
//!
//! Nothing here looks inside the application. Tests wait for what can be seen from outside (a request at the fake, a byte
//! at the client, a number at `/metrics`), and every wait ends in a sentence.

pub(crate) mod binary;
pub(crate) mod proxy;
pub(crate) mod egress;
pub(crate) mod tls;
pub(crate) mod secret;
pub(crate) mod token;
pub(crate) mod host;
pub(crate) mod registry;
pub(crate) mod swallow;
mod reply;
pub(crate) mod script;
pub(crate) mod client;
pub(crate) mod blob;

use std::path::Path;
use std::time::Duration;

pub(crate) use binary::Binary;
pub(crate) use blob::{Blob, Image, Manifest};
pub(crate) use client::{Answer, Connection, End, Head, Request, Whole};
pub(crate) use egress::{Asked, FakeProxy};
pub(crate) use host::BlobHost;
pub(crate) use proxy::{ProxyBuilder, TestProxy};
pub(crate) use registry::{At, FakeRegistry};
pub(crate) use script::{Fault, any, get, head};
pub(crate) use secret::{HelperScript, PasswordFile};
pub(crate) use swallow::Swallower;
pub(crate) use tls::{Authority, Demand, Identity, NAME, TlsClient, TlsFront};
pub(crate) use token::TokenServer;

/// One mebibyte.
pub(crate) const MIB: usize = 1 << 20;

/// One kibibyte.
pub(crate) const KIB: usize = 1 << 10;

/// How long anything may take before the test says that it hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// Pause between two looks at something that cannot call us.
const POLL: Duration = Duration::from_millis(10);

/// Waits for `future`, and fails with `what` instead of hanging.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {DEADLINE:?} for {what}"),
    }
}

/// Looks again and again at something that cannot call us, until it is as wanted.
pub(crate) async fn poll<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let seen = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    within(what, seen).await
}

/// The repository that most tests pull from.
pub(crate) const APP: &str = "team/app";

/// A registry with nothing to serve yet, and a proxy in front of it that is configured no further.
pub(crate) async fn pair() -> (FakeRegistry, TestProxy) {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream).start().await;
    (upstream, proxy)
}

/// Takes a file from under the proxy, as an operator or a broken disk would.
#[expect(
    clippy::disallowed_methods,
    reason = "what is lost is not published, and the application is not to know"
)]
pub(crate) fn lose(file: &Path) {
    std::fs::remove_file(file).unwrap();
}
