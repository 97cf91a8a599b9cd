//! A registry that gives each connection only so much at once, as content delivery networks do.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::blob::Blob;

/// A registry with one blob, whole or by range, and a limit for each connection.
pub(crate) struct Limited {
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    shelf: Arc<Shelf>,
}

struct Shelf {
    bytes: Vec<u8>,
    digest: String,
    /// Bytes a second, for each connection.
    rate: f64,
    /// From a request to its answer.
    delay: Duration,
    sent: AtomicU64,
}

impl Limited {
    pub(crate) fn start(blob: &Blob, rate: f64, delay: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut bytes = Vec::new();
        blob.write_to(&mut bytes).unwrap();
        let shelf = Arc::new(Shelf {
            bytes,
            digest: blob.digest.clone(),
            rate,
            delay,
            sent: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shelf);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shelf = Arc::clone(&accepting);
                // It ends when the client has left, with an error or not.
                thread::spawn(move || shelf.serve(&stream?));
            }
        });
        let path = format!("/v2/bench/image/blobs/{}", blob.digest);
        Self {
            address,
            path,
            shelf,
        }
    }

    /// Body bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shelf.sent.load(Ordering::Relaxed)
    }
}

impl Shelf {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut requests = BufReader::new(stream);
        while let Some(range) = next_range(&mut requests)? {
            thread::sleep(self.delay);
            self.answer(stream, range)?;
        }
        Ok(())
    }

    fn answer(&self, mut stream: &TcpStream, range: Option<(usize, usize)>) -> io::Result<()> {
        let size = self.bytes.len();
        let (from, until) = range.unwrap_or((0, size));
        let until = until.min(size);
        let status = match range {
            Some(_) => format!(
                "206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}",
                until - 1
            ),
            None => "200 OK".to_owned(),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\
             Docker-Content-Digest: {}\r\n\r\n",
            until - from,
            self.digest
        );
        stream.write_all(head.as_bytes())?;
        let (began, mut given) = (Instant::now(), 0);
        for piece in self.bytes[from..until].chunks(PIECE_BYTES) {
            stream.write_all(piece)?;
            self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            given += piece.len();
            let due = Duration::from_secs_f64(given as f64 / self.rate);
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
        Ok(())
    }
}

/// The range that the next request asks for, `Some(None)` where it is the whole; `None` when there is no request.
fn next_range(from: &mut impl BufRead) -> io::Result<Option<Option<(usize, usize)>>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut range = None;
    loop {
        line.clear();
        if from.read_line(&mut line)? <= 2 {
            return Ok(Some(range));
        }
        let lower = line.trim_end().to_ascii_lowercase();
        if let Some((first, last)) = lower
            .strip_prefix("range: bytes=")
            .and_then(|it| it.split_once('-'))
        {
            let until = last.parse().map_or(usize::MAX, |it: usize| it + 1);
            range = Some((first.parse().unwrap(), until));
        }
    }
}

const PIECE_BYTES: usize = 64 << 10;
