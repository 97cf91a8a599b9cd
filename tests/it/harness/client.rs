//! A puller that speaks HTTP/1.1 by hand: it can stop anywhere, tell a clean end from a cut, and say what no polite library
//! would say.

use std::fmt::{Debug, Write as _};
use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::blob::{Blob, sha256};
use super::within;

/// A request being put together.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    address: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

/// One connection with nothing in flight.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    buffer: BytesMut,
}

/// What requests are written to: a socket, or TLS over one.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + Sync + Debug {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync + Debug> Stream for S {}

/// Status and headers.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
}

/// A head, and a body that is still on the wire. Dropped, it closes the connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) head: Head,
    connection: Connection,
    framing: Framing,
    /// Bytes that came together with the last that were asked for.
    unread: Bytes,
}

/// An answer read to its end, however that came.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    pub(crate) head: Head,
    pub(crate) bytes: Bytes,
    pub(crate) end: End,
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As its framing promised.
    Complete,
    /// The connection was closed before.
    Cut,
    /// The connection was reset before.
    Reset,
}

/// What tells the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// This many bytes are to come.
    Length(usize),
    /// This many bytes of the chunk are to come; none: a chunk size is next.
    Chunk(usize),
    /// The end of the connection.
    Close,
    /// Nothing more comes.
    Over,
}

impl Request {
    pub(crate) fn new(address: SocketAddr, method: &str, target: impl Into<String>) -> Self {
        Self {
            address,
            method: method.to_owned(),
            target: target.into(),
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// Sends this behind the head, with its length.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("Content-Length", length)
    }

    /// Adds a header; `Host` replaces the usual one.
    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Asks for a range of bytes.
    pub(crate) fn range(self, range: &str) -> Self {
        self.header("Range", range)
    }

    /// Sends the request on a connection of its own and waits for the head.
    pub(crate) async fn send(&self) -> Answer {
        self.dispatch().await.head(&self.method).await
    }

    /// As [`Request::send`], where nobody may listen, or who does may go away.
    pub(crate) async fn try_send(&self) -> io::Result<Answer> {
        let mut connection = Connection::try_open(self.address).await?;
        connection.write(self.head().as_bytes()).await?;
        connection.try_head(&self.method).await
    }

    /// Sends the request on a connection of its own and waits for nothing.
    pub(crate) async fn dispatch(&self) -> Connection {
        let mut connection = Connection::open(self.address).await;
        connection.write(self.head().as_bytes()).await.unwrap();
        // Refused before it is read, perhaps.
        let _ = connection.write(&self.body).await;
        connection
    }

    /// Sends the request on a connection that is there already.
    pub(crate) async fn send_on(&self, mut connection: Connection) -> Answer {
        connection.write(self.head().as_bytes()).await.unwrap();
        connection.head(&self.method).await
    }

    /// Sends the request and reads the answer to its end.
    pub(crate) async fn whole(&self) -> Whole {
        self.send().await.whole().await
    }

    fn head(&self) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        let is_host = |(name, _): &(String, String)| name.eq_ignore_ascii_case("host");
        if !self.headers.iter().any(is_host) {
            write!(text, "Host: {}\r\n", self.address).unwrap();
        }
        for (name, value) in &self.headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        text + "\r\n"
    }
}

impl Connection {
    /// Connects, and fails the test if that cannot be.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::try_open(address).await.unwrap()
    }

    /// Connects from an address of this machine: all of 127.0.0.0/8 are.
    pub(crate) async fn open_from(source: IpAddr, address: SocketAddr) -> Self {
        Self::try_open_from(source, address).await.unwrap()
    }

    /// The same, if somebody listens.
    pub(crate) async fn try_open_from(source: IpAddr, address: SocketAddr) -> io::Result<Self> {
        let socket = if source.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        };
        let socket = socket.unwrap();
        socket.bind(SocketAddr::new(source, 0)).unwrap();
        Self::of(within("a connection", socket.connect(address)).await?)
    }

    /// Connects if somebody listens.
    pub(crate) async fn try_open(address: SocketAddr) -> io::Result<Self> {
        Self::of(within("a connection", TcpStream::connect(address)).await?)
    }

    fn of(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// What is there already.
    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            buffer: BytesMut::new(),
        }
    }

    /// Writes raw bytes.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let writing = async {
            self.stream.write_all(bytes).await?;
            // TLS keeps to itself what the socket would not take at once.
            self.stream.flush().await
        };
        within("the peer to take a request", writing).await
    }

    /// Says that nothing more will be asked.
    pub(crate) async fn finish(&mut self) {
        // Whoever has closed already need not be told.
        let _ = self.stream.shutdown().await;
    }

    /// Waits for the head of an answer to a request of this method.
    pub(crate) async fn head(self, method: &str) -> Answer {
        self.try_head(method).await.unwrap()
    }

    /// Waits for the head of an answer, or for the peer to close instead.
    pub(crate) async fn try_head(mut self, method: &str) -> io::Result<Answer> {
        let line = self.line().await?;
        let status = line.split(' ').nth(1).and_then(|it| it.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("not a status line: {line:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap();
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let head = Head { status, headers };
        let framing = head.framing(method);
        Ok(Answer {
            head,
            connection: self,
            framing,
            unread: Bytes::new(),
        })
    }

    /// Waits for the peer to close this idle connection; `false` if bytes come instead.
    pub(crate) async fn closed(mut self) -> bool {
        matches!(self.fill().await, Ok(0) | Err(_))
    }

    /// Waits for the peer to end this idle connection, and says how it did. Fails the test if bytes come instead.
    pub(crate) async fn end(mut self) -> End {
        match self.fill().await {
            Ok(0) => End::Cut,
            Ok(_) => panic!("bytes nobody asked for: {:?}", self.buffer),
            Err(error) => End::of(&error),
        }
    }

    /// Reads to the end of the connection, however that comes.
    pub(crate) async fn rest(mut self) -> Bytes {
        while matches!(self.fill().await, Ok(1..)) {}
        self.buffer.freeze()
    }

    /// Reads one line without its end.
    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(end);
                self.buffer.advance(2);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads what there is into the buffer; zero is the end of the connection.
    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(256 << 10);
        within("bytes", self.stream.read_buf(&mut self.buffer)).await
    }
}

impl Head {
    /// All headers, as they came.
    pub(crate) fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The value of a header that comes at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let values = self.all(name);
        assert!(values.len() < 2, "{name} comes twice: {self:?}");
        values.first().copied()
    }

    /// The values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(it, _)| it.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// How the cache says it came by the answer.
    pub(crate) fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or_default()
    }

    /// The declared length.
    pub(crate) fn content_length(&self) -> Option<usize> {
        Some(self.header("content-length")?.parse().unwrap())
    }

    fn framing(&self, method: &str) -> Framing {
        let chunked = self
            .header("transfer-encoding")
            .is_some_and(|it| it.eq_ignore_ascii_case("chunked"));
        match self.content_length() {
            _ if method == "HEAD" || matches!(self.status, 100..200 | 204 | 304) => Framing::Over,
            _ if chunked => Framing::Chunk(0),
            Some(0) => Framing::Over,
            Some(length) => Framing::Length(length),
            None => Framing::Close,
        }
    }
}

impl Answer {
    /// Reads the next piece of the body; the error is how it ended.
    pub(crate) async fn piece(&mut self) -> Result<Bytes, End> {
        if !self.unread.is_empty() {
            return Ok(std::mem::take(&mut self.unread));
        }
        loop {
            match self.framing {
                Framing::Over => return Err(End::Complete),
                Framing::Chunk(0) => self.chunk_size().await?,
                Framing::Length(left) => {
                    let piece = self.at_most(left).await?;
                    self.framing = match left - piece.len() {
                        0 => Framing::Over,
                        left => Framing::Length(left),
                    };
                    return Ok(piece);
                }
                Framing::Chunk(left) => {
                    let piece = self.at_most(left).await?;
                    self.framing = Framing::Chunk(left - piece.len());
                    if left == piece.len() {
                        self.line().await?;
                    }
                    return Ok(piece);
                }
                Framing::Close => {
                    return match self.at_most(usize::MAX).await {
                        Err(End::Cut) => Err(End::Complete),
                        piece => piece,
                    };
                }
            }
        }
    }

    /// Reads `len` bytes of the body, or to its end if that comes first.
    pub(crate) async fn read(&mut self, len: usize) -> Bytes {
        let mut bytes = BytesMut::new();
        while bytes.len() < len {
            match self.piece().await {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(_) => break,
            }
        }
        assert!(
            bytes.len() >= len || self.framing == Framing::Over,
            "the body ended after {} bytes of {len}",
            bytes.len(),
        );
        if bytes.len() > len {
            self.unread = bytes.split_off(len).freeze();
        }
        bytes.freeze()
    }

    /// Reads everything, however it ends.
    pub(crate) async fn whole(self) -> Whole {
        self.whole_and_connection().await.0
    }

    /// Reads everything; the connection is as good as the end was.
    pub(crate) async fn whole_and_connection(mut self) -> (Whole, Connection) {
        let mut bytes = BytesMut::new();
        let end = loop {
            match self.piece().await {
                Ok(piece) if bytes.is_empty() => bytes = BytesMut::from(piece),
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(end) => break end,
            }
        };
        let whole = Whole {
            head: self.head,
            bytes: bytes.freeze(),
            end,
        };
        (whole, self.connection)
    }

    /// The connection, for the next answer. Fails the test unless this one was read to its end.
    pub(crate) fn into_connection(self) -> Connection {
        assert_eq!(self.framing, Framing::Over, "{:?}", self.head);
        self.connection
    }

    /// Reads everything and fails the test unless it is `blob`, whole. Holds only a piece at a time.
    pub(crate) async fn is(self, blob: &Blob) -> Head {
        self.continues(blob, 0).await
    }

    /// As [`Answer::is`], when `from` bytes have been read before.
    pub(crate) async fn continues(mut self, blob: &Blob, from: usize) -> Head {
        assert_eq!(self.head.status, 200, "{:?}", self.head);
        let mut at = from;
        let end = loop {
            match self.piece().await {
                Ok(piece) => {
                    let expected = blob.bytes().get(at..at + piece.len());
                    assert!(expected == Some(&*piece), "wrong bytes from {at} on");
                    at += piece.len();
                }
                Err(end) => break end,
            }
        };
        assert_eq!((at, end), (blob.len(), End::Complete), "{:?}", self.head);
        self.head
    }

    async fn chunk_size(&mut self) -> Result<(), End> {
        let line = self.line().await?;
        let size = usize::from_str_radix(line.split(';').next().unwrap().trim(), 16).unwrap();
        self.framing = Framing::Chunk(size);
        if size == 0 {
            while !self.line().await?.is_empty() {}
            self.framing = Framing::Over;
        }
        Ok(())
    }

    async fn at_most(&mut self, len: usize) -> Result<Bytes, End> {
        if self.connection.buffer.is_empty()
            && self
                .connection
                .fill()
                .await
                .map_err(|error| End::of(&error))?
                == 0
        {
            return Err(End::Cut);
        }
        let len = len.min(self.connection.buffer.len());
        Ok(self.connection.buffer.split_to(len).freeze())
    }

    async fn line(&mut self) -> Result<String, End> {
        self.connection
            .line()
            .await
            .map_err(|error| End::of(&error))
    }
}

impl Whole {
    /// The digest of what came.
    pub(crate) fn digest(&self) -> String {
        sha256(&self.bytes)
    }

    /// Fails the test unless this is exactly these bytes, ended as promised, with this status.
    pub(crate) fn is(&self, status: u16, bytes: &[u8]) -> &Head {
        let Self { head, end, .. } = self;
        assert_eq!((head.status, *end), (status, End::Complete), "{head:?}");
        assert!(
            self.bytes == bytes,
            "{} bytes that are not the {} expected: {head:?}",
            self.bytes.len(),
            bytes.len(),
        );
        head
    }

    /// The code in an OCI error body; none if the body is no such thing.
    pub(crate) fn code(&self) -> Option<String> {
        let json: serde_json::Value = serde_json::from_slice(&self.bytes).ok()?;
        Some(json["errors"][0]["code"].as_str()?.to_owned())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl End {
    fn of(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::ConnectionReset {
            return Self::Reset;
        }
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        Self::Cut
    }
}
