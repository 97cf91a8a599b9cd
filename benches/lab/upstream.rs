//! The registry behind the server: as little as will do, so that its share of the machine is small.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

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
    sent: AtomicU64,
}

#[derive(Clone)]
enum Content {
    Blob(Arc<Blob>),
    Manifest(Arc<Vec<u8>>, String),
}

impl Upstream {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shelf = Arc::new(Shelf::default());
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
            let content = self.content.lock().get(&path).cloned();
            self.answer(stream, content, method == "HEAD")?;
        }
        Ok(())
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
        let mut body = Counted(stream, &self.sent);
        match content.filter(|_| !head) {
            Some(Content::Blob(blob)) => blob.write_to(&mut body),
            Some(Content::Manifest(bytes, _)) => body.write_all(&bytes),
            None => Ok(()),
        }
    }
}

struct Counted<'a>(&'a TcpStream, &'a AtomicU64);

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.fetch_add(written as u64, Ordering::Relaxed);
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

const REPOSITORY: &str = "bench/image";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
