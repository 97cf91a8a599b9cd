//! The registry behind the server: as little as will do, so that its share of the machine is small.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::blob::{Blob, Hasher};

/// A registry that serves what it is given, whole: it knows no range, so that every byte it sends again is seen in
/// [`Upstream::sent`].
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    shelf: Arc<Shelf>,
}

#[derive(Default)]
struct Shelf {
    /// By path.
    content: Mutex<HashMap<String, Content>>,
    /// Bytes a second of a connection; as fast as it goes if there is none.
    rate: Option<f64>,
    sent: AtomicU64,
}

#[derive(Clone)]
enum Content {
    Blob(Arc<Blob>),
    Manifest(Arc<Vec<u8>>, String),
}

impl Upstream {
    pub(crate) fn start() -> Self {
        Self::start_on(Shelf::default())
    }

    /// The same at the end of a link that takes so many bytes a second, for one connection at a time.
    pub(crate) fn behind_link(rate: f64) -> Self {
        Self::start_on(Shelf {
            rate: Some(rate),
            ..Shelf::default()
        })
    }

    fn start_on(shelf: Shelf) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shelf = Arc::new(shelf);
        let accepting = Arc::clone(&shelf);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shelf = Arc::clone(&accepting);
                // It ends when the client has left, with an error or not.
                thread::spawn(move || shelf.serve(&stream?));
            }
        });
        Self { address, shelf }
    }

    /// Serves a blob from now on; gives its path.
    pub(crate) fn put_blob(&self, blob: &Arc<Blob>) -> String {
        let path = format!("/v2/{REPOSITORY}/blobs/{}", blob.digest);
        self.put(&path, Content::Blob(Arc::clone(blob)));
        path
    }

    /// Serves a manifest from now on; gives its paths by digest and by tag.
    pub(crate) fn put_manifest(&self, bytes: Vec<u8>) -> [String; 2] {
        let digest = digest_of(&bytes);
        let content = Content::Manifest(Arc::new(bytes), digest.clone());
        [&*digest, "latest"].map(|reference| {
            let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
            self.put(&path, content.clone());
            path
        })
    }

    /// Body bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shelf.sent.load(Ordering::Relaxed)
    }

    fn put(&self, path: &str, content: Content) {
        self.shelf.content.lock().insert(path.to_owned(), content);
    }
}

impl Shelf {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut requests = BufReader::new(stream);
        while let Some((method, path)) = next_request(&mut requests)? {
            if path == "/v2/" {
                Self::greet(stream)?;
                continue;
            }
            let content = self.content.lock().get(&path).cloned();
            self.answer(stream, content, method == "HEAD")?;
        }
        Ok(())
    }

    /// That it is a registry, which wants no login.
    fn greet(mut stream: &TcpStream) -> io::Result<()> {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\
              Docker-Distribution-Api-Version: registry/2.0\r\n\r\n{}",
        )
    }

    fn answer(
        &self,
        mut stream: &TcpStream,
        content: Option<Content>,
        head: bool,
    ) -> io::Result<()> {
        let (media_type, digest, size) = match &content {
            Some(Content::Blob(blob)) => ("application/octet-stream", &blob.digest, blob.size),
            Some(Content::Manifest(bytes, digest)) => (MANIFEST, digest, bytes.len() as u64),
            None => {
                return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
            }
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {size}\r\n\
             Docker-Content-Digest: {digest}\r\n\r\n"
        );
        stream.write_all(answer.as_bytes())?;
        let mut body = Sent {
            stream,
            shelf: self,
            began: Instant::now(),
            bytes: 0,
        };
        match content.filter(|_| !head) {
            Some(Content::Blob(blob)) => blob.write_to(&mut body),
            Some(Content::Manifest(bytes, _)) => body.write_all(&bytes),
            None => Ok(()),
        }
    }
}

/// A body on its way, counted, and held back where the link is slow.
struct Sent<'a> {
    stream: &'a TcpStream,
    shelf: &'a Shelf,
    began: Instant,
    bytes: u64,
}

impl Write for Sent<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(rate) = self.shelf.rate else {
            let written = self.stream.write(bytes)?;
            self.shelf.sent.fetch_add(written as u64, Ordering::Relaxed);
            return Ok(written);
        };
        let written = self.stream.write(&bytes[..bytes.len().min(PACED_BYTES)])?;
        self.shelf.sent.fetch_add(written as u64, Ordering::Relaxed);
        self.bytes += written as u64;
        let due = Duration::from_secs_f64(self.bytes as f64 / rate);
        thread::sleep(due.saturating_sub(self.began.elapsed()));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A manifest of exactly this many bytes.
pub(crate) fn manifest_of(bytes: usize) -> Vec<u8> {
    let open = format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","annotations":{{"a":""#);
    let close = r#""}}"#;
    let filling = "x".repeat(bytes - open.len() - close.len());
    format!("{open}{filling}{close}").into_bytes()
}

/// The digest of some bytes, as registries write it.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    let mut hasher = Hasher(sha2::Digest::new());
    hasher.write_all(bytes).unwrap();
    hasher.digest()
}

/// The method and the path of the next request; `None` when there is none. The servers of a bench read no more of it.
pub(crate) fn next_request(from: &mut impl BufRead) -> io::Result<Option<(String, String)>> {
    let mut first = String::new();
    if from.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    while from.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut words = first.split(' ').map(str::to_owned);
    Ok(words.next().zip(words.next()))
}

/// What goes through a slow link at once.
const PACED_BYTES: usize = 64 << 10;

const REPOSITORY: &str = "bench/image";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
