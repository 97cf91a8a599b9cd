//! A proxy through which requests leave: it tunnels, it forwards, and it notes down what it was asked.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::within;

/// An HTTP proxy on loopback, which knows where some hosts are and reaches addresses as they are written.
pub(crate) struct FakeProxy {
    address: SocketAddr,
    shared: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// What a proxy was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Method, target and version.
    pub(crate) line: String,
    headers: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<String, SocketAddr>,
    /// What it answers instead of doing anything.
    refusal: Option<&'static str>,
    is_silent: bool,
    log: Vec<Asked>,
}

impl FakeProxy {
    /// Listens on a port of its own.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::default();
        Self {
            address: listener.local_addr().unwrap(),
            task: tokio::spawn(accept(listener, Arc::clone(&shared))),
            shared,
        }
    }

    /// Knows where a host is, whatever the port.
    pub(crate) fn knows(self, host: &str, address: SocketAddr) -> Self {
        self.shared.lock().hosts.insert(host.to_owned(), address);
        self
    }

    /// Answers this to everything from now on: what follows `HTTP/1.1 `.
    pub(crate) fn refuse(&self, status: &'static str) {
        self.shared.lock().refusal = Some(status);
    }

    /// Says nothing from now on.
    pub(crate) fn fall_silent(&self) {
        self.shared.lock().is_silent = true;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it is written in a configuration.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it was asked so far.
    pub(crate) fn log(&self) -> Vec<Asked> {
        self.shared.lock().log.clone()
    }

    /// Goes away: connections break, new ones are refused.
    pub(crate) async fn stop(&mut self) {
        self.task.abort();
        let ended = within("the proxy to stop", &mut self.task).await;
        assert!(ended.unwrap_err().is_cancelled());
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Asked {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let meant = |(it, _): &&(String, String)| it.eq_ignore_ascii_case(name);
        let found = self.headers.iter().find(meant);
        found.map(|(_, value)| value.as_str())
    }

    fn parse(head: &str) -> Self {
        let mut lines = head.lines();
        let line = lines.next().unwrap_or_default().to_owned();
        let headers = lines.filter_map(|line| line.split_once(':'));
        Self {
            line,
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
        }
    }

    /// The host and port that it is about, and the path for the host, when there is one.
    fn place(&self) -> (&str, &str) {
        let target = self.line.split(' ').nth(1).unwrap_or_default();
        match target.strip_prefix("http://") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => (target, ""),
        }
    }

    /// The head as the host gets it: without what is the proxy's.
    fn forwarded(&self) -> String {
        let (method, path) = (self.line.split(' ').next().unwrap(), self.place().1);
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        for (name, value) in &self.headers {
            if !name.eq_ignore_ascii_case("proxy-authorization") {
                head += &format!("{name}: {value}\r\n");
            }
        }
        head + "\r\n"
    }
}

async fn accept(listener: TcpListener, shared: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(serve(stream, Arc::clone(&shared)));
    }
}

/// Serves one connection. Whoever leaves it is nobody's fault.
async fn serve(mut client: TcpStream, shared: Arc<Mutex<State>>) -> io::Result<()> {
    let mut unread = Vec::new();
    let Some(asked) = next(&mut client, &mut unread, &shared).await? else {
        return Ok(());
    };
    let (place, _) = asked.place();
    let (refusal, is_silent, address) = {
        let state = shared.lock();
        let host = place.rsplit_once(':').map_or(place, |(host, _)| host);
        let known = state.hosts.get(host).copied();
        (
            state.refusal,
            state.is_silent,
            known.or_else(|| place.parse().ok()),
        )
    };
    if is_silent {
        return std::future::pending().await;
    }
    if let Some(status) = refusal {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
        return client.write_all(answer.as_bytes()).await;
    }
    let reached = match address {
        Some(address) => TcpStream::connect(address).await.ok(),
        None => None,
    };
    let Some(mut server) = reached else {
        let answer = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        return client.write_all(answer.as_bytes()).await;
    };
    if asked.line.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 Here\r\n\r\n").await?;
        copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let questions = async {
        let mut asked = Some(asked);
        while let Some(question) = asked {
            to_server.write_all(question.forwarded().as_bytes()).await?;
            asked = next(&mut from_client, &mut unread, &shared).await?;
        }
        io::Result::Ok(())
    };
    // Either end of the way is the end of it; what is cut off then has nobody to go to.
    tokio::select! {
        ended = questions => ended,
        ended = copy(&mut from_server, &mut to_client) => ended.map(drop),
    }
}

/// Reads a request's head and notes it down; `None` at the end of the connection.
async fn next(
    stream: &mut (impl AsyncReadExt + Unpin),
    unread: &mut Vec<u8>,
    shared: &Mutex<State>,
) -> io::Result<Option<Asked>> {
    loop {
        if let Some(end) = unread.windows(4).position(|it| it == b"\r\n\r\n") {
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            let asked = Asked::parse(&String::from_utf8_lossy(&head));
            shared.lock().log.push(asked.clone());
            return Ok(Some(asked));
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}
