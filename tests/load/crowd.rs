//! Clients of which there can be many: a socket each, and hardly a byte of memory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::harness::{APP, Blob, KIB, TlsClient, within};

/// Connects the `n`-th of a crowd. Their addresses differ, so that ports do not run out.
pub(crate) async fn connect(to: SocketAddr, n: usize) -> TcpStream {
    connect_with(to, n, None).await
}

async fn connect_with(to: SocketAddr, n: usize, receive_buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    let of_address = u8::try_from(n / 1000 % 250).unwrap();
    let source = Ipv4Addr::new(127, 0, 7, 1 + of_address);
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0)).unwrap();
    let stream = within("a connection", socket.connect(to)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Makes a crowd, some at a time.
pub(crate) async fn crowd<T, F: Future<Output = T>>(n: usize, one: impl Fn(usize) -> F) -> Vec<T> {
    let mut all = Vec::new();
    while all.len() < n {
        let some = all.len()..n.min(all.len() + AT_ONCE);
        all.extend(join_all(some.map(&one)).await);
    }
    all
}

/// Asks whether this is a registry, and reads the answer to its end; the connection goes on. `None` where it was refused.
pub(crate) async fn ping(stream: &mut TcpStream) -> Option<String> {
    ping_with(stream, "").await
}

/// The same with more headers, each with its line end.
pub(crate) async fn ping_with(stream: &mut TcpStream, headers: &str) -> Option<String> {
    let head = format!("GET /v2/ HTTP/1.1\r\nHost: cache\r\n{headers}\r\n");
    // Whoever refuses need not have read it.
    let _ = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let reading = async {
        while !answer.ends_with(b"{}") {
            if !matches!(stream.read_buf(&mut answer).await, Ok(1..)) {
                break;
            }
        }
    };
    within("an answer", reading).await;
    let text = String::from_utf8_lossy(&answer);
    Some(text.split(' ').nth(1)?.to_owned())
}

/// The head of a request for a blob.
pub(crate) fn blob_head(blob: &Blob) -> String {
    let digest = blob.digest();
    format!("GET /v2/{APP}/blobs/{digest} HTTP/1.1\r\nHost: cache\r\n\r\n")
}

/// Clients that take a blob little by little, each once a second.
pub(crate) struct SlowReaders {
    taken: Vec<Arc<AtomicUsize>>,
    tasks: JoinSet<String>,
}

impl SlowReaders {
    pub(crate) async fn start(to: SocketAddr, n: usize, blob: &Blob) -> Self {
        let one = |n| connect_with(to, n, Some(RECEIVE_BUFFER));
        Self::over(n, one, (blob, KIB)).await
    }

    /// The same, of clients that speak TLS. They take more at once, for where a piece of it is missing there is none.
    pub(crate) async fn start_tls(
        to: SocketAddr,
        n: usize,
        (blob, tls): (&Blob, &TlsClient),
    ) -> Self {
        let one = |n| async move {
            let stream = connect_with(to, n, Some(TLS_RECEIVE_BUFFER)).await;
            tls.over(stream).await.unwrap()
        };
        Self::over(n, one, (blob, 8 * KIB)).await
    }

    /// Nobody is long without anything to say, nor takes nothing for long, however long it takes to make them all.
    async fn over<S, F>(n: usize, one: impl Fn(usize) -> F, taking: (&Blob, usize)) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = S>,
    {
        let mut readers = Self {
            taken: Vec::new(),
            tasks: JoinSet::new(),
        };
        let one = |n| {
            let opening = one(n);
            async {
                let mut stream = opening.await;
                let head = blob_head(taking.0);
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                stream
            }
        };
        for first in (0..n).step_by(AT_ONCE) {
            let some = first..n.min(first + AT_ONCE);
            for stream in join_all(some.map(one)).await {
                let taken = Arc::new(AtomicUsize::new(0));
                readers.taken.push(Arc::clone(&taken));
                readers
                    .tasks
                    .spawn(take_slowly(stream, (taking.0.clone(), taking.1), taken));
            }
        }
        readers
    }

    /// The least that one of them has of the body. Fails the test if one has seen its end.
    pub(crate) fn least(&mut self) -> usize {
        if let Some(ended) = self.tasks.try_join_next() {
            panic!("a slow reader was cut off: {}", ended.unwrap());
        }
        let taken = self.taken.iter().map(|it| it.load(Ordering::SeqCst));
        taken.min().unwrap()
    }
}

async fn take_slowly<S: AsyncRead + Unpin>(
    mut stream: S,
    (blob, at_once): (Blob, usize),
    taken: Arc<AtomicUsize>,
) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) => return format!("{error} within the head"),
        }
    }
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return String::from_utf8_lossy(&head).into_owned();
    }
    let mut at = 0;
    let mut piece = vec![0; at_once];
    loop {
        sleep(Duration::from_secs(1)).await;
        match stream.read(&mut piece).await {
            Ok(0) => return format!("the end after {at} bytes"),
            Ok(n) if blob.bytes().get(at..at + n) != piece.get(..n) => {
                return format!("wrong bytes from {at} on");
            }
            Ok(n) => at += n,
            Err(error) => return format!("{error} after {at} bytes"),
        }
        taken.store(at, Ordering::SeqCst);
    }
}

const AT_ONCE: usize = 200;
/// Little, or the kernel takes minutes of such a client's food at once.
const RECEIVE_BUFFER: u32 = 4096;
/// Nothing is read of a record before all of it is there.
const TLS_RECEIVE_BUFFER: u32 = 32 << 10;
