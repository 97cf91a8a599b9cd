//! What an operator's command line asks of a running proxy, at its admin port, and what it says of the answers.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, SignatureScheme,
    WantsVerifier,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::cache::{Finding, Verify, VerifyProgress, VerifyReport};
use crate::files;
use crate::oci::FullReference;
use crate::server::{PurgeReport, PurgedReference, TlsConfig, VerifyLine};

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

/// Where an admin port is, and how it is known.
#[derive(Clone, Debug)]
pub struct Admin {
    /// A host and a port.
    address: String,
    tls: Option<Arc<ClientConfig>>,
}

/// Why there is no way to an admin port.
#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    /// A file of the configuration is not what it should be.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The TLS library refused its own defaults.
    #[error("no TLS client could be set up")]
    Library(#[from] rustls::Error),
}

impl Admin {
    /// One that speaks in the clear.
    pub fn plain(address: String) -> Self {
        let tls = None;
        Self { address, tls }
    }

    /// One that is known by its name, and by whom the machine trusts.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn trusted(address: String) -> Result<Self, NoWay> {
        let roots = files::roots();
        let client = client()?.with_root_certificates(roots);
        let tls = Some(Arc::new(client.with_no_client_auth()));
        Ok(Self { address, tls })
    }

    /// One that has this certificate and its key, whatever it is called where it listens; to which we show the same, as it
    /// lets whoever has its key in.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn own(address: String, config: &TlsConfig) -> Result<Self, NoWay> {
        let provider = Arc::new(default_provider());
        let ours = files::certified(&config.certificate, &config.key, &provider)?;
        let pinned = Pinned {
            certificate: ours.cert.first().cloned(),
            provider,
        };
        let client = client()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(pinned));
        let shown = SingleCertAndKey::from(ours);
        let tls = Some(Arc::new(client.with_client_cert_resolver(Arc::new(shown))));
        Ok(Self { address, tls })
    }

    async fn connect(&self) -> io::Result<(Box<dyn Stream>, SocketAddr)> {
        let tcp = TcpStream::connect(&self.address).await?;
        let peer = tcp.peer_addr()?;
        let Some(tls) = &self.tls else {
            return Ok((Box::new(tcp), peer));
        };
        let host = self.address.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(tls));
        let tls = connector.connect(name, tcp).await?;
        Ok((Box::new(tls), peer))
    }
}

fn client() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    let provider = Arc::new(default_provider());
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

/// A connection to an admin port.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Knows the one certificate that is in the proxy's own file, and that who shows it has the key.
#[derive(Debug)]
struct Pinned {
    certificate: Option<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.certificate.as_ref() == Some(shown) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Asks this proxy to purge all of these.
///
/// # Errors
///
/// When nobody answers, or the proxy refuses; then some of them may be purged.
pub async fn purge(admin: &Admin, references: &[FullReference]) -> Result<PurgeReport, Error> {
    let texts: Vec<String> = references.iter().map(ToString::to_string).collect();
    let asked = serde_json::json!({ "reference": texts }).to_string();
    let address = admin.address.as_str();
    let answering = async {
        let answer = post(admin, "/purge", asked).await?;
        let body = answer.accepted(address).await?;
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        body.map_err(|_| strange(address))
    };
    let answer = timeout(ANSWER_TIMEOUT, answering).await;
    let body = answer.map_err(|_| strange(address))??.to_bytes();
    serde_json::from_slice(&body).map_err(|_| strange(address))
}

/// Has this proxy check everything that it keeps, which must be the directory of that identity
/// if one is given; a rate of zero leaves that to the proxy. Says now and then how far it is. Dropped, it has the proxy stop.
///
/// # Errors
///
/// When nobody answers, the proxy refuses, or it falls silent.
pub async fn verify(
    admin: &Admin,
    directory: Option<&str>,
    asked: Verify,
    mut progress: impl FnMut(VerifyProgress),
) -> Result<VerifyReport, Error> {
    let rate = (asked.rate > 0).then_some(asked.rate);
    let asked = serde_json::json!({
        "rate": rate,
        "repair": asked.repair,
        "directory": directory,
    });
    let asked = asked.to_string();
    let address = admin.address.as_str();
    let answering = async {
        let answer = post(admin, "/verify", asked).await?;
        answer.accepted(address).await
    };
    let body = timeout(CONNECT_TIMEOUT + SILENCE_MAX, answering).await;
    let mut body = body.map_err(|_| strange(address))??;
    let mut text = Vec::new();
    loop {
        let frame = timeout(SILENCE_MAX, body.frame()).await;
        let frame = frame.ok().flatten().and_then(Result::ok);
        let frame = frame.ok_or_else(|| strange(address))?;
        text.extend_from_slice(&frame.into_data().unwrap_or_default());
        if text.len() > ANSWER_BYTES_MAX {
            return Err(strange(address));
        }
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            match serde_json::from_slice(&line).map_err(|_| strange(address))? {
                VerifyLine::Progress(now) => progress(now),
                VerifyLine::Report(report) => return Ok(*report),
            }
        }
    }
}

/// How far a check is, in one line: of what there is, how fast, and how long it will take.
pub fn told_progress(progress: VerifyProgress, elapsed: Duration) -> String {
    let VerifyProgress { done, total } = progress;
    let line = format!("{} of {}", rough(done), rough(total));
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let rate = done.saturating_mul(1000) / millis.max(1);
    if rate == 0 {
        return line;
    }
    let left = total.saturating_sub(done) / rate;
    let left = match left {
        0..60 => format!("{left}s"),
        60..3600 => format!("{}m{:02}s", left / 60, left % 60),
        _ => format!("{}h{:02}m", left / 3600, left % 3600 / 60),
    };
    format!("{line}, {}/s, {left} left", rough(rate))
}

/// What a check has found, a line for each and one for all.
pub fn told_report(report: &VerifyReport) -> String {
    let mut lines = String::new();
    for finding in &report.findings {
        let Finding {
            kind,
            what,
            repaired,
        } = finding;
        let what = in_line(what);
        let repaired = if *repaired { " (repaired)" } else { "" };
        // A string takes everything.
        let _ = writeln!(lines, "{}: {what}{repaired}", kind.as_str());
    }
    // Whoever sent it need not be able to count.
    let more = report.wrong.saturating_sub(report.findings.len() as u64);
    if more > 0 {
        let _ = writeln!(lines, "and {more} more");
    }
    let VerifyReport {
        blobs,
        bytes,
        grants,
        tags,
        repositories,
        ..
    } = report;
    let _ = writeln!(
        lines,
        "right: {blobs} blobs of {}; {grants} grants and {tags} tags of {repositories} repositories",
        rough(*bytes),
    );
    let verdict = match (report.wrong, report.repaired) {
        (0, _) => "nothing is wrong".to_owned(),
        (wrong, repaired) => format!("wrong: {wrong}, of which repaired: {repaired}"),
    };
    let end = if report.finished {
        ""
    } else {
        "; not everything was looked at"
    };
    let _ = writeln!(lines, "{verdict}{end}");
    lines
}

/// A text that somebody else chose, as part of one line on a terminal.
fn in_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A number of bytes for people, with one decimal.
fn rough(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let whole = bytes >> shift;
            let tenths = ((bytes >> (shift - 10)) % 1024) * 10 / 1024;
            format!("{whole}.{tenths} {unit}")
        }
        None => format!("{bytes} B"),
    }
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
    let mut line = in_line(reference);
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

/// An answer whose body is still to come.
struct Posted {
    response: Response<Incoming>,
    /// The connection's task; nothing else is asked on it.
    serving: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<Result<(), hyper::Error>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answer; dropped, its connection is closed.
struct Answer {
    body: Incoming,
    _serving: AbortOnDrop,
}

impl Posted {
    /// The body, unless it says why the proxy does not do it.
    async fn accepted(self, address: &str) -> Result<Answer, Error> {
        let (head, body) = self.response.into_parts();
        if head.status == StatusCode::OK {
            let _serving = self.serving;
            return Ok(Answer { body, _serving });
        }
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|_| strange(address))?.to_bytes();
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
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

async fn post(admin: &Admin, path: &str, body: String) -> Result<Posted, Error> {
    let address = admin.address.as_str();
    let unreachable = |source| Error::Unreachable {
        address: address.to_owned(),
        source,
    };
    let connecting = timeout(CONNECT_TIMEOUT, admin.connect()).await;
    let (stream, peer) = connecting
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unreachable)?;
    // The address, and not the name: by a name the admin port may have been called by a web page.
    let host = SocketAddr::new(peer.ip(), peer.port()).to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| strange(address))?;
    let serving = AbortOnDrop(tokio::spawn(connection));
    let request = Request::post(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| strange(address))?;
    let response = sender.send_request(request).await;
    let response = response.map_err(|_| strange(address))?;
    Ok(Posted { response, serving })
}

fn strange(address: &str) -> Error {
    let address = address.to_owned();
    Error::Strange { address }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A repository may have a hundred thousand tags.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// A proxy that checks itself says so each second.
const SILENCE_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::FindingKind;

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
    fn progress_is_one_line() {
        let told = |done, total, secs| {
            told_progress(VerifyProgress { done, total }, Duration::from_secs(secs))
        };
        assert_eq!(told(0, 0, 0), "0 B of 0 B");
        assert_eq!(told(0, 3 << 30, 1), "0 B of 3.0 GiB");
        assert_eq!(
            told(3 << 29, 3 << 30, 3),
            "1.5 GiB of 3.0 GiB, 512.0 MiB/s, 3s left"
        );
        assert_eq!(
            told(1 << 20, 100 << 20, 1),
            "1.0 MiB of 100.0 MiB, 1.0 MiB/s, 1m39s left"
        );
        assert_eq!(
            told(1 << 20, 1 << 40, 1),
            "1.0 MiB of 1.0 TiB, 1.0 MiB/s, 291h16m left"
        );
    }

    #[test]
    fn a_report_says_what_is_wrong_and_whether_that_is_all() {
        let mut report = VerifyReport {
            finished: true,
            blobs: 3,
            bytes: 2048,
            ..VerifyReport::default()
        };
        let right = "right: 3 blobs of 2.0 KiB; 0 grants and 0 tags of 0 repositories\n";
        assert_eq!(told_report(&report), format!("{right}nothing is wrong\n"));
        assert!(report.is_clean(Verify::default()));
        report.findings.push(Finding {
            kind: FindingKind::Damaged,
            what: "sha256:ab".to_owned(),
            repaired: true,
        });
        (report.wrong, report.repaired, report.finished) = (3, 1, false);
        let told = told_report(&report);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[..2], ["damaged: sha256:ab (repaired)", "and 2 more"]);
        let last = "wrong: 3, of which repaired: 1; not everything was looked at";
        assert_eq!(lines[3..], [last]);
        assert!(!report.is_clean(Verify::default()));
        // All was looked at, and what was wrong is right: it depends on whether that was asked for.
        (report.repaired, report.finished) = (3, true);
        for repair in [false, true] {
            let asked = Verify { rate: 0, repair };
            assert_eq!(report.is_clean(asked), repair);
        }
    }

    #[test]
    fn a_report_that_does_not_add_up_is_told_as_it_is() {
        let mut report = VerifyReport::default();
        report.findings.push(Finding {
            kind: FindingKind::Foreign,
            what: "blobs/a\n\u{1b}[2Jb".to_owned(),
            repaired: false,
        });
        let told = told_report(&report);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], "foreign: blobs/a  [2Jb");
        assert!(lines[2].starts_with("nothing is wrong"), "{told}");
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
