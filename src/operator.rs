//! What an operator's command line asks of a running proxy, at its admin port.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::oci::FullReference;
use crate::server::{PurgeReport, PurgedReference};

/// Why the proxy did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error("no proxy answers at {address}")]
    Unreachable {
        /// The admin address.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody listens, and is slow or does not speak as the admin port does.
    #[error("what listens at {address} does not answer as an admin port does")]
    Strange {
        /// The admin address.
        address: String,
    },
    /// It refuses.
    #[error("the proxy at {address} refused: {message}")]
    Refused {
        /// The admin address.
        address: String,
        /// Why, in its words.
        message: String,
    },
}

/// Where the admin port is reached from its own machine; `None` when its port is not known.
pub fn reachable(listen: SocketAddr) -> Option<SocketAddr> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    (listen.port() != 0).then(|| SocketAddr::new(ip, listen.port()))
}

/// Asks the proxy whose admin port is at `address`, a host and a port, to purge all of these.
///
/// # Errors
///
/// When nobody answers, or the proxy refuses; then some of them may be purged.
pub async fn purge(address: &str, references: &[FullReference]) -> Result<PurgeReport, Error> {
    let texts: Vec<String> = references.iter().map(ToString::to_string).collect();
    let asked = serde_json::json!({ "reference": texts }).to_string();
    let (status, body) = match timeout(ANSWER_TIMEOUT, post(address, asked)).await {
        Ok(answer) => answer?,
        Err(_) => return Err(strange(address)),
    };
    if status == StatusCode::OK {
        return serde_json::from_slice(&body).map_err(|_| strange(address));
    }
    let refusal: Option<Value> = serde_json::from_slice(&body).ok();
    let message = refusal
        .as_ref()
        .and_then(|it| it.get("message")?.as_str())
        .ok_or_else(|| strange(address))?;
    Err(Error::Refused {
        address: address.to_owned(),
        message: message.to_owned(),
    })
}

/// What became of one reference, for people.
pub fn told(purged: &PurgedReference) -> String {
    let PurgedReference {
        reference,
        tags,
        grants,
        blobs,
        bytes,
        ..
    } = purged;
    let counts = [
        (tags, "tag"),
        (grants, "grant"),
        (blobs, "blob"),
        (bytes, "byte"),
    ];
    let mut line = reference.clone();
    let mut separator = ": ";
    for (count, unit) in counts.into_iter().filter(|(count, _)| **count > 0) {
        let plural = if *count == 1 { "" } else { "s" };
        // A string takes everything.
        let _ = write!(line, "{separator}{count} {unit}{plural}");
        separator = ", ";
    }
    if separator == ": " {
        line.push_str(": nothing was stored");
    }
    line
}

async fn post(address: &str, body: String) -> Result<(StatusCode, Bytes), Error> {
    let unreachable = |source| Error::Unreachable {
        address: address.to_owned(),
        source,
    };
    let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = connecting
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| strange(address))?;
    // Ends with the request: nothing else is asked on this connection.
    let serving = tokio::spawn(connection);
    let request = Request::post("/purge")
        .header(HOST, address)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| strange(address))?;
    let answer = sender.send_request(request).await;
    let (head, body) = answer.map_err(|_| strange(address))?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|_| strange(address))?.to_bytes();
    serving.abort();
    Ok((head.status, body))
}

fn strange(address: &str) -> Error {
    let address = address.to_owned();
    Error::Strange { address }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A repository may have a hundred thousand tags.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_stands_for_all_is_reached_at_loopback() {
        for (listen, expected) in [
            ("0.0.0.0:9555", Some("127.0.0.1:9555")),
            ("[::]:9555", Some("[::1]:9555")),
            ("10.0.0.3:80", Some("10.0.0.3:80")),
            ("127.0.0.1:0", None),
        ] {
            let found = reachable(listen.parse().unwrap());
            assert_eq!(found, expected.map(|it| it.parse().unwrap()), "{listen}");
        }
    }

    #[test]
    fn what_was_purged_is_one_line() {
        let purged = |tags, grants, blobs, bytes| {
            told(&PurgedReference {
                reference: "a.io/b".to_owned(),
                kind: "repository".to_owned(),
                tags,
                grants,
                blobs,
                bytes,
            })
        };
        assert_eq!(purged(1, 12, 0, 900), "a.io/b: 1 tag, 12 grants, 900 bytes");
        assert_eq!(purged(0, 0, 1, 1), "a.io/b: 1 blob, 1 byte");
        assert_eq!(purged(0, 0, 0, 0), "a.io/b: nothing was stored");
    }
}
