//! A registry whose content is made as it is sent, at the pace that a test wants.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;

use crate::content::{Content, length};
use crate::harness::{APP, FakeRegistry, Manifest, ProxyBuilder, TestProxy};

/// The registry. It answers until the process ends, or until it is told to go away.
pub(crate) struct Source {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// The harness wants to have one.
    fake: FakeRegistry,
}

#[derive(Default)]
struct Shared {
    blobs: Mutex<BTreeMap<String, Served>>,
    manifests: Mutex<BTreeMap<String, Manifest>>,
    is_gone: AtomicBool,
    transfers: AtomicUsize,
}

#[derive(Clone)]
struct Served {
    content: Content,
    pace: Pace,
    /// A byte that is not what it should be.
    spoiled: Option<u64>,
}

/// How a blob comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As fast as it is taken.
    Even,
    /// In pieces of a byte to a megabyte, with pauses.
    Bursty,
}

impl Source {
    /// Listens on a port of its own.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, shared) = (listener.local_addr().unwrap(), Arc::<Shared>::default());
        let ours = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let ours = Arc::clone(&ours);
                // Who leaves is nobody's fault.
                thread::spawn(move || ours.converse(stream));
            }
        });
        let fake = FakeRegistry::start().await;
        Self {
            address,
            shared,
            fake,
        }
    }

    /// What a proxy in front of it is configured with.
    pub(crate) fn builder(&self) -> ProxyBuilder {
        let url = format!("http://{}", self.address);
        TestProxy::in_front_of(&self.fake).upstream("url", url)
    }

    pub(crate) fn serve(&self, content: &Content, pace: Pace) {
        self.add(content, pace, None);
    }

    /// Serves it with one byte turned over.
    pub(crate) fn serve_spoiled(&self, content: &Content, pace: Pace, at: u64) {
        self.add(content, pace, Some(at));
    }

    fn add(&self, content: &Content, pace: Pace, spoiled: Option<u64>) {
        let served = Served {
            content: content.clone(),
            pace,
            spoiled,
        };
        let digest = content.digest().to_owned();
        self.shared.blobs.lock().insert(digest, served);
    }

    /// Serves a manifest by its digest and a tag.
    pub(crate) fn tag(&self, tag: &str, manifest: &Manifest) {
        let mut manifests = self.shared.manifests.lock();
        manifests.insert(tag.to_owned(), manifest.clone());
        manifests.insert(manifest.digest().to_owned(), manifest.clone());
    }

    /// From now on nobody gets anything, nor the rest of what is under way.
    pub(crate) fn go_away(&self) {
        self.shared.is_gone.store(true, Ordering::SeqCst);
    }

    /// How many times a blob was asked for whole.
    pub(crate) fn transfers(&self) -> usize {
        self.shared.transfers.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn converse(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut unread = Vec::new();
        loop {
            let Some(end) = unread.windows(4).position(|it| it == b"\r\n\r\n") else {
                let mut some = [0; 4096];
                match stream.read(&mut some)? {
                    0 => return Ok(()),
                    n => unread.extend_from_slice(&some[..n]),
                }
                continue;
            };
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            if self.is_gone.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.answer(&mut stream, &String::from_utf8_lossy(&head))?;
        }
    }

    fn answer(&self, stream: &mut TcpStream, head: &str) -> io::Result<()> {
        let mut words = head.split(' ');
        let (method, path) = (words.next(), words.next().unwrap_or_default());
        let (path, is_get) = (
            path.split('?').next().unwrap_or(path),
            method == Some("GET"),
        );
        let reference = path.rsplit('/').next().unwrap_or_default();
        if path.starts_with(&format!("/v2/{APP}/blobs/")) {
            let served = self.blobs.lock().get(reference).cloned();
            if let Some(served) = served {
                return self.blob(stream, &served, (is_get, head));
            }
        } else if path.starts_with(&format!("/v2/{APP}/manifests/")) {
            let manifest = self.manifests.lock().get(reference).cloned();
            if let Some(manifest) = manifest {
                let digest = manifest.digest();
                let more = format!(
                    "Content-Type: {}\r\nDocker-Content-Digest: {digest}\r\n",
                    manifest.media_type()
                );
                return small(stream, ("200 OK", &more), manifest.bytes(), is_get);
            }
        } else if path == "/v2/" {
            return small(stream, ("200 OK", ""), &Bytes::from_static(b"{}"), is_get);
        }
        let nothing = Bytes::from_static(br#"{"errors":[{"code":"UNKNOWN","message":"nothing"}]}"#);
        small(stream, ("404 Not Found", ""), &nothing, is_get)
    }

    fn blob(
        &self,
        stream: &mut TcpStream,
        served: &Served,
        (is_get, head): (bool, &str),
    ) -> io::Result<()> {
        let (len, digest) = (served.content.len(), served.content.digest());
        let (range, part) = match asked(head, len) {
            Some(range) => {
                let place = format!("{}-{}/{len}", range.start, range.end - 1);
                (
                    range,
                    format!("206 Partial Content\r\nContent-Range: bytes {place}"),
                )
            }
            None => (0..len, "200 OK".to_owned()),
        };
        let head = format!(
            "HTTP/1.1 {part}\r\nContent-Length: {}\r\nContent-Type: application/octet-stream\r\n\
             Docker-Content-Digest: {digest}\r\nETag: \"{digest}\"\r\nAccept-Ranges: bytes\r\n\r\n",
            range.end - range.start
        );
        stream.write_all(head.as_bytes())?;
        if is_get {
            let is_whole = range.end - range.start == len;
            self.transfers
                .fetch_add(usize::from(is_whole), Ordering::SeqCst);
            self.send(stream, served, range)?;
        }
        Ok(())
    }

    fn send(&self, stream: &mut TcpStream, served: &Served, range: Range<u64>) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        let mut at = range.start;
        while at < range.end {
            let most = match served.pace {
                Pace::Even => PIECE as u64,
                Pace::Bursty => 1 << rand::rng().random_range(0..=20),
            };
            let end = range.end.min(at + most);
            let piece = &mut piece[..length(at..end)];
            served.content.write(at, piece);
            if let Some(spoiled) = served.spoiled.filter(|it| (at..end).contains(it)) {
                piece[length(at..spoiled)] ^= 0x55;
            }
            if self.is_gone.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            stream.write_all(piece)?;
            if served.pace == Pace::Bursty && rand::rng().random_ratio(1, 3) {
                sleep(Duration::from_millis(rand::rng().random_range(1..12)));
            }
            at = end;
        }
        Ok(())
    }
}

/// The one range that is asked for.
fn asked(head: &str, len: u64) -> Option<Range<u64>> {
    let mut lines = head.lines().filter_map(|it| it.split_once(": "));
    let (_, value) = lines.find(|(name, _)| name.eq_ignore_ascii_case("range"))?;
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let end = last.parse::<u64>().map_or(len, |it| len.min(it + 1));
    Some(first.parse().ok()?..end).filter(|it| it.start < it.end)
}

fn small(
    stream: &mut TcpStream,
    (status, more): (&str, &str),
    body: &Bytes,
    is_get: bool,
) -> io::Result<()> {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n",
        body.len()
    );
    if is_get {
        answer += &String::from_utf8_lossy(body);
    }
    stream.write_all(answer.as_bytes())
}

/// Bytes made at once.
const PIECE: usize = 1 << 20;
