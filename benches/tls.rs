//! Warm over TLS: beside nginx with OpenSSL; and HTTP/1.1 with a connection for each client beside HTTP/2 with one connection
//! for all of them.
//!
//! On this hang what is encrypted at once, and whether HTTP/2 is offered unasked: `benches/README.md` says which number decides
//! what. All take turns within each round.
//!
//! Beside nginx the clients shake hands, look at the head of each answer, and open nothing else, so that only the servers
//! encrypt; the digest is looked at once before the rounds, and by every client in the short mode. The clients of HTTP/2 are
//! tasks of the bench on hyper and rustls, as those of HTTP/1.1 beside them, so that their own cost is everybody's. What
//! limits an HTTP/2 client is its window, so there is a row with that of Go's clients, which are most of them (4 MiB a
//! stream), and one with that of the protocol (64 KiB).

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod lab;
mod peers;
mod rows;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use lab::args::Args;
use lab::certificate::Certificate;
use lab::scratch::{clean_up_on_signal, scratch};
use lab::server::Server;
use lab::summary::Summary;
use lab::verdicts::Verdicts;
use rows::{Stage, hit};

fn main() {
    clean_up_on_signal();
    let args = Args::parse();
    let stage = Stage::new(&args);
    let mut verdicts = Verdicts::default();
    hit::blobs_over_tls(&stage, &mut verdicts);
    verdicts.print();
    println!();
    let files = scratch();
    let certificate = Certificate::write(files.path());
    let keys = certificate.keys("http2 = true");
    let plain = Server::start(stage.upstream.address, &args.log_level);
    let secure = Server::start_with(stage.upstream.address, &args.log_level, &keys);
    let bench = Bench {
        args: &args,
        plain: &plain,
        secure: &secure,
        connector: connector(&certificate.pem),
        runtime: tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap(),
    };
    for clients in [1, 8] {
        bench.rows(&stage.blob_path, stage.blob.size, clients);
    }
    bench.rows(&stage.by_digest, stage.manifest.len() as u64, 64);
}

struct Bench<'a> {
    args: &'a Args,
    plain: &'a Server,
    secure: &'a Server,
    connector: TlsConnector,
    runtime: Runtime,
}

/// How the clients speak.
#[derive(Clone, Copy, Debug)]
enum Way {
    Plain,
    Http1,
    /// With this window for a stream, and four times that for the connection.
    Http2(u32),
}

impl Way {
    const ALL: [Self; 4] = [
        Self::Plain,
        Self::Http1,
        Self::Http2(4 << 20),
        Self::Http2(65_535),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "HTTP/1.1 in the clear",
            Self::Http1 => "HTTP/1.1",
            Self::Http2(65_535) => "HTTP/2, 64 KiB window",
            Self::Http2(_) => "HTTP/2, 4 MiB window",
        }
    }
}

/// What one turn came to.
struct Measured {
    mib_per_second: f64,
    requests_per_second: f64,
    cpu_per_gib: f64,
}

impl Bench<'_> {
    fn rows(&self, path: &str, length: u64, clients: usize) {
        println!(
            "{length} bytes, {clients} clients, {} rounds of {:?}: median [min-max]\n{:<26}{:<28}{:<30}{:<22}x HTTP/1.1",
            self.args.rounds(),
            self.args.window(),
            "",
            "MiB/s",
            "requests/s",
            "CPU s/GiB",
        );
        let mut rounds: [Vec<Measured>; 4] = Default::default();
        for _ in 0..self.args.rounds() {
            for (way, measured) in Way::ALL.into_iter().zip(&mut rounds) {
                measured.push(self.turn(way, path, length, clients));
            }
        }
        for (way, measured) in Way::ALL.into_iter().zip(&rounds) {
            let of = |value: fn(&Measured) -> f64| Summary::of(measured.iter().map(value));
            let pairs = measured.iter().zip(&rounds[1]);
            let against =
                pairs.map(|(it, http1)| it.requests_per_second / http1.requests_per_second);
            println!(
                "{:<26}{:<28.0}{:<30.0}{:<22.3}{:.2}",
                way.name(),
                of(|it| it.mib_per_second),
                of(|it| it.requests_per_second),
                of(|it| it.cpu_per_gib),
                Summary::of(against).median(),
            );
        }
        println!();
    }

    /// Has so many clients ask again and again for as long as a window.
    fn turn(&self, way: Way, path: &str, length: u64, clients: usize) -> Measured {
        let server = match way {
            Way::Plain => self.plain,
            Way::Http1 | Way::Http2(_) => self.secure,
        };
        let asked = Asked {
            path: path.to_owned(),
            length,
            address: server.address,
            over: Arc::default(),
            bytes: Arc::default(),
            requests: Arc::default(),
        };
        let (bytes, requests) = (Arc::clone(&asked.bytes), Arc::clone(&asked.requests));
        let cpu = server.process.cpu();
        let began = Instant::now();
        let window = self.args.window();
        self.runtime
            .block_on(asked.ask(way, &self.connector, clients, window));
        let elapsed = began.elapsed().as_secs_f64();
        let bytes = bytes.load(Ordering::Relaxed) as f64;
        let requests = requests.load(Ordering::Relaxed);
        assert!(requests >= clients as u64, "{way:?}: {requests} requests");
        Measured {
            mib_per_second: bytes / elapsed / f64::from(1 << 20),
            requests_per_second: requests as f64 / elapsed,
            cpu_per_gib: (server.process.cpu() - cpu) / (bytes / f64::from(1 << 30)),
        }
    }
}

/// What clients ask for, and how often they have.
#[derive(Clone)]
struct Asked {
    path: String,
    length: u64,
    address: SocketAddr,
    over: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
}

impl Asked {
    async fn ask(self, way: Way, connector: &TlsConnector, clients: usize, window: Duration) {
        let mut asking = JoinSet::new();
        let over = Arc::clone(&self.over);
        if let Way::Http2(stream_window) = way {
            let stream = self.secure(connector, "h2").await;
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .initial_stream_window_size(stream_window)
                .initial_connection_window_size(stream_window * 4)
                .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
                .await
                .unwrap();
            tokio::spawn(connection);
            for _ in 0..clients {
                let (asked, mut sender) = (self.clone(), sender.clone());
                asking.spawn(async move {
                    while !asked.over.load(Ordering::Relaxed) {
                        asked.took(sender.send_request(asked.request()).await).await;
                    }
                });
            }
        } else {
            for _ in 0..clients {
                let asked = self.clone();
                let mut sender = match way {
                    Way::Plain => {
                        let stream = TcpStream::connect(self.address).await.unwrap();
                        http1_over(stream).await
                    }
                    Way::Http1 | Way::Http2(_) => {
                        http1_over(self.secure(connector, "http/1.1").await).await
                    }
                };
                asking.spawn(async move {
                    while !asked.over.load(Ordering::Relaxed) {
                        asked.took(sender.send_request(asked.request()).await).await;
                        sender.ready().await.unwrap();
                    }
                });
            }
        }
        tokio::time::sleep(window).await;
        over.store(true, Ordering::Relaxed);
        while let Some(ended) = asking.join_next().await {
            ended.unwrap();
        }
    }

    async fn secure(
        &self,
        connector: &TlsConnector,
        protocol: &str,
    ) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut config = ClientConfig::clone(connector.config());
        config.alpn_protocols = vec![protocol.into()];
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(Certificate::NAME).unwrap();
        connector.connect(name, stream).await.unwrap()
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        Request::get(format!("https://{}{}", Certificate::NAME, self.path))
            .header("Host", Certificate::NAME)
            .body(Empty::new())
            .unwrap()
    }

    async fn took(&self, response: hyper::Result<http::Response<hyper::body::Incoming>>) {
        let response = response.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().into_data().map_or(0, |it| it.len() as u64);
        }
        assert_eq!(length, self.length);
        self.bytes.fetch_add(length, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }
}

async fn http1_over<S>(stream: S) -> http1::SendRequest<Empty<Bytes>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn connector(certificate: &str) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}
