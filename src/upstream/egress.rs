//! The HTTP proxies through which requests leave where there is no other way out.
//!
//! A request for https goes through a tunnel (`CONNECT`, RFC 9110 §9.3.6) and is none of the proxy's business; one for http
//! is handed to the proxy itself (RFC 9112 §3.2.2). The user and the password in a proxy's address are for the proxy alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::uri::Scheme;
use http::{HeaderValue, StatusCode, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::config::Egress;
use super::party;

/// Which requests leave through which proxy.
#[derive(Debug)]
pub(super) struct Proxies {
    /// `None` when all are sent directly.
    matcher: Option<Matcher>,
}

/// A proxy that one request leaves through.
#[derive(Clone, Debug)]
pub(super) struct Hop {
    /// Where it is: a host and perhaps a port.
    pub(super) proxy: Uri,
    /// What it is told about who we are.
    authorization: Option<HeaderValue>,
}

/// A connection, and whether a proxy reads what is sent over it.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TokioIo<TcpStream>,
    is_proxied: bool,
}

/// Why a proxy made no way out.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    /// No connection to it could be made.
    #[error("the proxy {proxy} could not be reached")]
    Unreachable {
        proxy: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It was reached, and then did not say that the tunnel is there.
    #[error("the proxy {proxy} made no tunnel in time")]
    Silent { proxy: String },
    /// The connection to it broke.
    #[error("the proxy {proxy} broke off")]
    Cut {
        proxy: String,
        #[source]
        source: io::Error,
    },
    /// It does not want to.
    #[error("the proxy {proxy} answered {status}")]
    Refused { proxy: String, status: StatusCode },
    /// What it said is not HTTP, or more than an answer.
    #[error("the proxy {proxy} gave an answer that cannot be right")]
    Invalid { proxy: String },
}

impl Proxies {
    /// As the configuration says. What it says of exceptions is read as curl reads `NO_PROXY`, and `*.example` as `.example`.
    pub(super) fn new(egress: &Egress) -> Self {
        let except = egress.except.as_deref().unwrap_or_default();
        let except: Vec<&str> = except.split(',').map(str::trim).collect();
        let has_none = egress.http.is_none() && egress.https.is_none();
        if has_none || except.contains(&"*") {
            return Self { matcher: None };
        }
        let bare = |host: &&str| {
            let host = host.strip_prefix('*').unwrap_or(host);
            host.trim_matches(['[', ']']).to_owned()
        };
        let except: Vec<String> = except.iter().map(bare).collect();
        let matcher = Matcher::builder()
            .http(egress.http.as_deref().unwrap_or_default())
            .https(egress.https.as_deref().unwrap_or_default())
            .no(except.join(","))
            .build();
        Self {
            matcher: Some(matcher),
        }
    }

    /// The proxy that a request leaves through.
    pub(super) fn before(&self, uri: &Uri) -> Option<Hop> {
        let found = self.matcher.as_ref()?.intercept(uri)?;
        Some(Hop {
            proxy: found.uri().clone(),
            authorization: found.basic_auth().cloned(),
        })
    }

    /// What is told the proxy in the head of a request, which only a request for http shows it.
    pub(super) fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let is_plain = uri.scheme() == Some(&Scheme::HTTP);
        self.before(uri).filter(|_| is_plain)?.authorization
    }
}

impl Hop {
    /// Where it is, for messages.
    pub(super) fn name(&self) -> String {
        let authority = self.proxy.authority();
        authority.map(ToString::to_string).unwrap_or_default()
    }

    /// Makes of a connection to the proxy one to `target`, as far as the proxy can. Not cancel-safe: the connection is then
    /// of no use.
    pub(super) async fn open(
        &self,
        tcp: TokioIo<TcpStream>,
        target: &Uri,
    ) -> Result<Stream, ProxyError> {
        let is_tunnel = target.scheme() == Some(&Scheme::HTTPS);
        let mut tcp = tcp.into_inner();
        if is_tunnel {
            self.tunnel(&mut tcp, target).await?;
        }
        Ok(Stream {
            tcp: TokioIo::new(tcp),
            is_proxied: !is_tunnel,
        })
    }

    async fn tunnel(&self, tcp: &mut TcpStream, target: &Uri) -> Result<(), ProxyError> {
        let proxy = self.name();
        let place = format!(
            "{}:{}",
            target.host().unwrap_or_default(),
            party::port(target)
        );
        let mut head = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(authorization.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        let cut = |source| ProxyError::Cut {
            proxy: proxy.clone(),
            source,
        };
        tcp.write_all(&head).await.map_err(cut)?;
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = answer.windows(4).position(|it| it == b"\r\n\r\n") {
                break end + 4;
            }
            if answer.len() >= ANSWER_BYTES_MAX {
                return Err(ProxyError::Invalid { proxy });
            }
            if tcp.read_buf(&mut answer).await.map_err(cut)? == 0 {
                return Err(cut(io::ErrorKind::UnexpectedEof.into()));
            }
        };
        match status(&answer) {
            // Nobody speaks in a tunnel before us: TLS begins with the client.
            Some(status) if status.is_success() && answer.len() == end => Ok(()),
            Some(status) if !status.is_success() => Err(ProxyError::Refused { proxy, status }),
            Some(_) | None => Err(ProxyError::Invalid { proxy }),
        }
    }
}

impl Stream {
    /// A connection to whom the request is for.
    pub(super) fn direct(tcp: TokioIo<TcpStream>) -> Self {
        Self {
            tcp,
            is_proxied: false,
        }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.tcp.connected().proxy(self.is_proxied)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }
}

/// The head of an answer to `CONNECT`.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The status in the first line of an answer (RFC 9112 §4).
fn status(answer: &[u8]) -> Option<StatusCode> {
    let (minor, rest) = answer.strip_prefix(b"HTTP/1.")?.split_first()?;
    let code = rest.strip_prefix(b" ")?.get(..3)?;
    let is_version = minor.is_ascii_digit();
    StatusCode::from_bytes(code).ok().filter(|_| is_version)
}

/// Reads anything without panicking: a line that lists exceptions, and one that has an address. Whether that is reached
/// directly.
pub fn fuzz_no_proxy(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let (except, uri) = text.split_once('\n').unwrap_or(("", &text));
    let Ok(uri) = uri.parse() else {
        return false;
    };
    let proxy = Some("http://egress:3128".to_owned());
    let proxies = Proxies::new(&Egress {
        http: proxy.clone(),
        https: proxy,
        except: Some(except.to_owned()),
    });
    let hop = proxies.before(&uri);
    if let Some(hop) = &hop {
        assert_eq!(hop.name(), "egress:3128", "there is but one proxy");
    }
    hop.is_none()
}

/// Reads anything without panicking; the status is what the first line has after its version. Whether there is one.
pub fn fuzz_tunnel_answer(input: &[u8]) -> bool {
    let found = status(input);
    if let Some(status) = found {
        let words = input.get(8..12).unwrap_or_default();
        assert_eq!(words, format!(" {}", status.as_u16()).as_bytes());
    }
    found.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(except: &str) -> Proxies {
        let proxy = Some("http://u:p%40s@egress:3128".to_owned());
        Proxies::new(&Egress {
            http: proxy.clone(),
            https: proxy,
            except: Some(except.to_owned()),
        })
    }

    #[test]
    fn exceptions_are_read_as_others_read_them() {
        for (except, host, is_proxied) in [
            ("", "a.example.com", true),
            ("*", "a.example.com", false),
            ("x, *", "10.0.0.1", false),
            ("example.com", "example.com", false),
            ("example.com", "a.example.com", false),
            ("example.com", "A.EXAMPLE.com", false),
            ("example.com", "anexample.com", true),
            (".example.com", "a.example.com", false),
            ("*.example.com", "a.example.com", false),
            ("*.example.com", "example.org", true),
            ("10.0.0.0/8,::1", "10.1.2.3", false),
            ("10.0.0.0/8,::1", "[::1]", false),
            ("[::1]", "[::1]", false),
            ("10.0.0.0/8", "11.1.2.3", true),
            // Nothing is an exception that nobody named.
            ("", "localhost", true),
            ("", "127.0.0.1", true),
        ] {
            let uri = format!("http://{host}:5000/").parse().unwrap();
            let hop = proxies(except).before(&uri);
            assert_eq!(hop.is_some(), is_proxied, "{host} but for {except}");
        }
    }

    #[test]
    fn who_we_are_is_for_the_proxy_and_told_where_it_reads() {
        let proxies = proxies("example.org");
        let told = |uri: &str| proxies.authorization(&uri.parse().unwrap());
        let expected = HeaderValue::from_static("Basic dTpwQHM=");
        assert_eq!(told("http://example.com/"), Some(expected));
        assert_eq!(told("https://example.com/"), None);
        assert_eq!(told("http://example.org/"), None);
        assert!(!format!("{proxies:?}").contains("p@s"));
    }

    #[test]
    fn the_status_of_a_tunnel_is_in_its_first_line() {
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(200)),
            ("HTTP/1.0 200\r\n\r\n", Some(200)),
            ("HTTP/1.1 407 Who?\r\n\r\n", Some(407)),
            ("HTTP/2 200\r\n\r\n", None),
            ("SSH-2.0-OpenSSH\r\n\r\n", None),
            ("HTTP/1.1 2\r\n\r\n", None),
            ("HTTP/1.1!200\r\n\r\n", None),
            ("HTTP/1.x 200\r\n\r\n", None),
        ] {
            let status = status(answer.as_bytes()).map(|it| it.as_u16());
            assert_eq!(status, expected, "{answer}");
        }
    }
}
