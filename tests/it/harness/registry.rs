//! A registry that serves what it is given, counts what it is asked, and fails on command.
//!
//! It speaks HTTP by hand, because its faults live below what a library lets through: lengths that lie, connections cut
//! after an exact byte, and counts of the bytes that really left. Tests synchronise with it by [`Gate`]s, which hold an
//! answer until the test has seen what it waits for, and by its log.
//!
//! It judges, too: whoever drops it learns of credentials that were sent here without having been asked for, and of a blob
//! that was asked for whole while it was still being sent.

use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::blob::{Blob, Image, Manifest};
use super::reply::{CHALLENGE, Delivery, Reply, Repository, Trouble};
use super::script::{Fault, Redirect, Script, Target, Turns};
use super::token::{Guard, Issuer, Lock, TokenServer};
use super::within;

/// A registry on loopback.
#[derive(Debug)]
pub(crate) struct FakeRegistry {
    shared: Arc<Shared>,
    address: SocketAddr,
    power: Mutex<Option<Power>>,
}

/// Where a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Before the head.
    Head,
    /// Before this byte of the content, wherever the body began; at its length, before what ends the body.
    Byte(usize),
}

/// Holds the answers to some requests until it is opened or dropped.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Arc<watch::Sender<GateState>>,
}

/// One request as it was seen, and how much was sent for it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    headers: Vec<(String, String)>,
    /// What was sent with it.
    pub(crate) body: String,
    /// Zero until the head is sent.
    pub(crate) status: u16,
    /// Bytes of body that left.
    pub(crate) sent: usize,
}

/// What is switched on or off.
#[derive(Debug)]
enum Power {
    On {
        stop: watch::Sender<bool>,
        task: JoinHandle<()>,
    },
    /// The port stays ours, so that nobody else's fake answers in our place; connections are refused.
    Off(TcpSocket),
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

/// A gate and where it stands.
#[derive(Debug)]
struct Placed {
    target: Target,
    at: At,
    state: Arc<watch::Sender<GateState>>,
}

/// The inside of a gate that an answer waits at.
type Hold = Arc<watch::Sender<GateState>>;

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Ticks whenever the log changes.
    ticks: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    repositories: BTreeMap<String, Repository>,
    /// What is served at paths that are no registry's.
    files: BTreeMap<String, Bytes>,
    script: Script,
    gates: Vec<Placed>,
    log: Vec<Seen>,
    in_flight: BTreeMap<String, usize>,
    busy: usize,
    busiest: usize,
    extra_headers: Vec<(String, String)>,
    redirects: Vec<Redirect>,
    /// Who may come in; nobody need show anything without one.
    guard: Option<Guard>,
    /// The password that everybody needs, where there is one.
    lock: Option<Lock>,
    /// What gives out tokens here.
    issuer: Option<Arc<Issuer>>,
    connections: usize,
    allows_concurrent_transfers: bool,
    violations: Vec<String>,
}

/// Counts a request in while it is being answered.
struct Busy<'a> {
    shared: &'a Shared,
    whole_of: Option<String>,
}

impl FakeRegistry {
    /// Listens on a port of its own.
    pub(crate) async fn start() -> Self {
        Self::start_at("127.0.0.1").await
    }

    /// Listens on a port of its own at one of the addresses of loopback.
    pub(crate) async fn start_at(host: &str) -> Self {
        Self::start_on(TcpListener::bind((host, 0)).await.unwrap())
    }

    /// Two registries at these addresses of loopback, on one port.
    pub(crate) async fn two_at(hosts: [&str; 2]) -> [Self; 2] {
        let [first, second] = neighbours(hosts).await;
        [Self::start_on(first), Self::start_on(second)]
    }

    /// Serves whoever comes to this listener.
    pub(crate) fn start_on(listener: TcpListener) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            ticks: watch::Sender::new(0),
        });
        let address = listener.local_addr().unwrap();
        let power = Power::on(listener, Arc::clone(&shared));
        Self {
            shared,
            address,
            power: Mutex::new(Some(power)),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Goes away: connections break, new ones are refused.
    pub(crate) async fn stop(&self) {
        let power = self.power.lock().take();
        let Some(Power::On { stop, task }) = power else {
            panic!("the fake is off already");
        };
        stop.send_replace(true);
        within("the fake to stop", task).await.unwrap();
        let socket = if self.address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        };
        let socket = socket.unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        *self.power.lock() = Some(Power::Off(socket));
    }

    /// Comes back on the same port.
    pub(crate) fn restart(&self) {
        let mut power = self.power.lock();
        let Some(Power::Off(socket)) = power.take() else {
            panic!("the fake is on already");
        };
        let listener = socket.listen(1024).unwrap();
        *power = Some(Power::on(listener, Arc::clone(&self.shared)));
    }

    /// Serves a blob.
    pub(crate) fn serve_blob(&self, repository: &str, blob: &Blob) {
        let digest = blob.digest().to_owned();
        let bytes = blob.bytes().clone();
        self.repository(repository, |it| it.blobs.insert(digest, bytes));
    }

    /// Serves the bytes of a blob at a path of the test's choice, to whoever comes.
    pub(crate) fn serve_at(&self, path: &str, blob: &Blob) {
        let (path, bytes) = (path.to_owned(), blob.bytes().clone());
        self.shared.state.lock().files.insert(path, bytes);
    }

    /// Serves these bytes under the digest of others.
    pub(crate) fn serve_spoiled(&self, repository: &str, digest: &str, bytes: &Blob) {
        let (digest, bytes) = (digest.to_owned(), bytes.bytes().clone());
        self.repository(repository, |it| it.blobs.insert(digest, bytes));
    }

    /// Serves a manifest by its digest.
    pub(crate) fn serve_manifest(&self, repository: &str, manifest: &Manifest) {
        let digest = manifest.digest().to_owned();
        let manifest = manifest.clone();
        self.repository(repository, |it| it.manifests.insert(digest, manifest));
    }

    /// Serves a manifest under a tag, and takes the tag from whatever had it.
    pub(crate) fn tag(&self, repository: &str, tag: &str, manifest: &Manifest) {
        self.serve_manifest(repository, manifest);
        let (tag, digest) = (tag.to_owned(), manifest.digest().to_owned());
        self.repository(repository, |it| it.tags.insert(tag, digest));
    }

    /// Serves an image with all its blobs under a tag.
    pub(crate) fn serve_image(&self, repository: &str, tag: &str, image: &Image) {
        self.tag(repository, tag, &image.manifest);
        for blob in image.blobs() {
            self.serve_blob(repository, blob);
        }
    }

    /// Serves a referrers listing; without one the endpoint is 404.
    pub(crate) fn serve_referrers(&self, repository: &str, digest: &str, listing: &Manifest) {
        let (digest, bytes) = (digest.to_owned(), listing.bytes().clone());
        self.repository(repository, |it| it.referrers.insert(digest, bytes));
    }

    /// Takes a tag away.
    pub(crate) fn untag(&self, repository: &str, tag: &str) {
        self.repository(repository, |it| it.tags.remove(tag));
    }

    /// Adds a header to every answer.
    pub(crate) fn add_header(&self, name: &str, value: &str) {
        let header = (name.to_owned(), value.to_owned());
        self.shared.state.lock().extra_headers.push(header);
    }

    /// Does this to the requests at `target` whose turn it is.
    pub(crate) fn script(&self, target: Target, turns: Turns, fault: Fault) {
        self.shared.state.lock().script.add(target, turns, fault);
    }

    /// Does this to every request at `target`.
    pub(crate) fn always(&self, target: Target, fault: Fault) {
        self.script(target, Turns::EVERY, fault);
    }

    /// Does this to the next request at `target`.
    pub(crate) fn once(&self, target: Target, fault: Fault) {
        self.script(target, Turns::NEXT, fault);
    }

    /// Forgets all faults.
    pub(crate) fn heal(&self) {
        self.shared.state.lock().script.clear();
    }

    /// Sends the requests at `target` elsewhere; `{n}` in `location` is how many were sent there before. Of several the one
    /// added last is meant, and a fault comes first.
    pub(crate) fn redirect(&self, target: Target, status: u16, location: impl Into<String>) {
        let redirect = Redirect::new(target, status, location.into());
        self.shared.state.lock().redirects.push(redirect);
    }

    /// Answers 401 in every repository until a token comes that this server gave out for it.
    pub(crate) fn require_token(&self, server: &TokenServer) {
        self.challenge(server, BEARER);
    }

    /// As [`FakeRegistry::require_token`], with a challenge of the test's own words; `{realm}` and `{scope}` in it are replaced.
    pub(crate) fn challenge(&self, server: &TokenServer, challenge: &str) {
        let guard = Guard::new(server, challenge);
        self.shared.state.lock().guard = Some(guard);
    }

    /// Answers 401 until this user comes with this password.
    pub(crate) fn lock(&self, user: &str, password: &str) {
        self.lock_and_say(user, password, r#"Basic realm="fake""#);
    }

    /// As [`FakeRegistry::lock`], with a challenge of the test's own words.
    pub(crate) fn lock_and_say(&self, user: &str, password: &str, challenge: &str) {
        let lock = Lock::new(user, password, challenge);
        self.shared.state.lock().lock = Some(lock);
    }

    /// Lets in one more user by a password.
    pub(crate) fn lock_too(&self, user: &str, password: &str) {
        let lock = &mut self.shared.state.lock().lock;
        lock.as_mut().unwrap().add(user, password);
    }

    /// Gives out tokens at `/token`.
    pub(super) fn issue(&self, issuer: Arc<Issuer>) {
        self.shared.state.lock().issuer = Some(issuer);
    }

    /// What was seen that must not be.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.shared.state.lock().violations.clone()
    }

    /// Forgets what was seen that must not be.
    pub(crate) fn forgive(&self) {
        self.shared.state.lock().violations.clear();
    }

    /// Lets a blob be asked for whole while it is being sent, which is otherwise a failure of the test.
    pub(crate) fn allow_concurrent_transfers(&self) {
        self.shared.state.lock().allows_concurrent_transfers = true;
    }

    /// Holds the answers to the requests at `target`, those under way included.
    pub(crate) fn hold(&self, target: Target, at: At) -> Gate {
        let state = Arc::new(watch::Sender::new(GateState::default()));
        self.shared.state.lock().gates.push(Placed {
            target,
            at,
            state: Arc::clone(&state),
        });
        Gate { state }
    }

    /// All requests so far.
    pub(crate) fn log(&self) -> Vec<Seen> {
        self.shared.state.lock().log.clone()
    }

    /// The requests at `target` so far.
    pub(crate) fn seen(&self, target: &Target) -> Vec<Seen> {
        let mut log = self.log();
        log.retain(|it| target.matches(&it.method, &it.path));
        log
    }

    /// How many requests at `target` came so far.
    pub(crate) fn count(&self, target: &Target) -> usize {
        self.seen(target).len()
    }

    /// How many connections were made, whatever came over them.
    pub(crate) fn connections(&self) -> usize {
        self.shared.state.lock().connections
    }

    /// Bytes of body that were sent for the requests at `target`.
    pub(crate) fn sent(&self, target: &Target) -> usize {
        self.seen(target).iter().map(|it| it.sent).sum()
    }

    /// The most requests that were in flight at once.
    pub(crate) fn busiest(&self) -> usize {
        self.shared.state.lock().busiest
    }

    /// Waits until `n` requests at `target` have come.
    pub(crate) async fn wait_for(&self, target: &Target, n: usize) {
        let mut ticks = self.shared.ticks.subscribe();
        let come = async {
            while self.count(target) < n {
                ticks.changed().await.unwrap();
            }
        };
        within(&format!("{n} requests at {target:?}"), come).await;
    }

    /// Waits until nothing is being answered: whatever was cut short by the other side has been noticed.
    pub(crate) async fn quiet(&self) {
        let mut ticks = self.shared.ticks.subscribe();
        let idle = async {
            while self.shared.state.lock().busy > 0 {
                ticks.changed().await.unwrap();
            }
        };
        within("the fake to be idle", idle).await;
    }

    fn repository<T>(&self, name: &str, change: impl FnOnce(&mut Repository) -> T) {
        let mut state = self.shared.state.lock();
        change(state.repositories.entry(name.to_owned()).or_default());
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        let violations = &self.shared.state.lock().violations;
        if !std::thread::panicking() {
            assert!(violations.is_empty(), "the fake saw {violations:#?}");
        }
    }
}

impl Gate {
    /// Waits until an answer is being held.
    pub(crate) async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until this many answers are being held.
    pub(crate) async fn reached_by(&self, n: usize) {
        let mut state = self.state.subscribe();
        let waited = state.wait_for(|it| it.waiting >= n);
        drop(within("an answer at the gate", waited).await.unwrap());
    }

    /// Lets everything through, now and later.
    pub(crate) fn open(&self) {
        self.state.send_modify(|it| it.open = true);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
    }
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let meant = |(it, _): &&(String, String)| it.eq_ignore_ascii_case(name);
        let found = self.headers.iter().find(meant);
        found.map(|(_, value)| value.as_str())
    }

    fn parse(head: &str) -> Self {
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let headers = lines.filter_map(|line| line.split_once(':'));
        Self {
            method,
            path: path.to_owned(),
            query,
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
                .collect(),
            body: String::new(),
            status: 0,
            sent: 0,
        }
    }
}

impl Power {
    fn on(listener: TcpListener, shared: Arc<Shared>) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    // Nothing is lost by cancelling an accept or a wait for a task.
                    accepted = listener.accept() => {
                        let (stream, _) = accepted.unwrap();
                        shared.state.lock().connections += 1;
                        connections.spawn(converse(Arc::clone(&shared), stream));
                    }
                    Some(ended) = connections.join_next() => {
                        if let Err(panic) = ended {
                            let violation = format!("its own panic: {panic}");
                            shared.state.lock().violations.push(violation);
                        }
                    }
                    _ = stopped.wait_for(|it| *it) => break,
                }
            }
            drop(listener);
            connections.shutdown().await;
        });
        Self::On { stop, task }
    }
}

impl Shared {
    fn tick(&self) {
        self.ticks.send_modify(|n| *n += 1);
    }

    /// Notes a request down; what must not be is remembered.
    fn admit(&self, seen: &Seen) -> (usize, Busy<'_>, Option<Fault>) {
        let mut state = self.state.lock();
        let wrong = seen.header("authorization").and_then(|value| {
            let known = state.guard.as_ref().is_some_and(|it| it.knows(value, seen));
            let wanted = state.lock.as_ref().is_some_and(|it| it.wants(value));
            let issuer = state.issuer.as_ref();
            let wanted = wanted || issuer.is_some_and(|it| it.wants(value, seen));
            (!known && !wanted).then(|| format!("credentials at {}: {value}", seen.path))
        });
        state.violations.extend(wrong);
        let whole_of = (seen.method == "GET" && seen.header("range").is_none())
            .then(|| seen.path.split_once("/blobs/"))
            .flatten()
            .map(|(_, digest)| digest.to_owned());
        if let Some(digest) = &whole_of {
            let in_flight = state.in_flight.entry(digest.clone()).or_default();
            *in_flight += 1;
            if *in_flight > 1 && !state.allows_concurrent_transfers {
                let violation = format!("a second transfer of {digest}");
                state.violations.push(violation);
            }
        }
        state.busy += 1;
        state.busiest = state.busiest.max(state.busy);
        state.log.push(seen.clone());
        let place = state.log.len() - 1;
        let fault = state.script.take(&seen.method, &seen.path);
        drop(state);
        self.tick();
        let busy = Busy {
            shared: self,
            whole_of,
        };
        (place, busy, fault)
    }

    fn note(&self, place: usize, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.state.lock().log.get_mut(place) {
            change(seen);
        }
        self.tick();
    }

    /// The nearest closed gate between `from` and `to` in the content; at `None`, one that stands before the head.
    fn gate(&self, seen: &Seen, from: Option<usize>, to: usize) -> Option<(usize, Hold)> {
        let state = self.state.lock();
        let in_the_way = state.gates.iter().filter_map(|gate| {
            let place = match (gate.at, from) {
                (At::Head, None) => 0,
                (At::Byte(n), Some(from)) if (from..to).contains(&n) => n,
                (At::Head | At::Byte(_), _) => return None,
            };
            let meant = gate.target.matches(&seen.method, &seen.path);
            let closed = meant && !gate.state.borrow().open;
            closed.then(|| (place, Arc::clone(&gate.state)))
        });
        in_the_way.min_by_key(|(place, _)| *place)
    }

    /// Answers one request; `false` if the connection is at its end.
    async fn answer(&self, stream: &mut TcpStream, seen: &Seen) -> io::Result<bool> {
        let (place, mut busy, fault) = self.admit(seen);
        match fault {
            Some(Fault::Refuse) => return Ok(false),
            Some(Fault::Silence) => return left(stream).await,
            _ => {}
        }
        // What is held is the answer to the request as it came: whatever changes meanwhile is news.
        let delivery = self.state.lock().delivery(seen, fault);
        if !matches!(delivery.reply.status, 200 | 206) {
            busy.is_no_transfer();
        }
        while let Some((_, gate)) = self.gate(seen, None, 0) {
            held(stream, &gate).await?;
        }
        stream.write_all(delivery.head().as_bytes()).await?;
        self.note(place, |it| it.status = delivery.reply.status);
        if delivery.bodiless {
            return Ok(true);
        }
        let body = &delivery.reply.body;
        let offset = delivery.reply.offset;
        let mut sent = 0;
        loop {
            let trouble = delivery.trouble.filter(|(at, _)| *at <= sent);
            match trouble {
                Some((_, Trouble::Cut)) => return Ok(false),
                Some((_, Trouble::Stall)) => {
                    busy.is_no_transfer();
                    return left(stream).await;
                }
                None if sent == body.len() => break,
                None => {}
            }
            let mut end = body.len().min(sent + PIECE);
            if let Some((at, gate)) = self.gate(seen, Some(offset + sent), offset + end) {
                if at == offset + sent {
                    held(stream, &gate).await?;
                    continue;
                }
                end = at - offset;
            }
            if let Some((at, _)) = delivery.trouble {
                end = end.min(at);
            }
            delivery.write(stream, body.slice(sent..end)).await?;
            self.note(place, |it| it.sent += end - sent);
            sent = end;
        }
        let end = offset + sent;
        while let Some((_, gate)) = self.gate(seen, Some(end), end + 1) {
            held(stream, &gate).await?;
        }
        delivery.finish(stream).await?;
        Ok(true)
    }
}

impl State {
    fn delivery(&mut self, seen: &Seen, fault: Option<Fault>) -> Delivery {
        let mut delivery = match self.instead(seen) {
            Some(reply) => Delivery::whole(reply, seen, fault),
            None => Delivery::of(&self.repositories, seen, fault),
        };
        if let Some(guard) = self.guard.as_ref().filter(|_| delivery.reply.status == 401) {
            delivery.reply.set(CHALLENGE, &guard.challenge(seen));
        }
        if let Some(lock) = self.lock.as_ref().filter(|_| delivery.reply.status == 401) {
            delivery.reply.set(CHALLENGE, &lock.challenge);
        }
        let extra = self.extra_headers.iter().cloned();
        delivery.reply.headers.extend(extra);
        delivery
    }

    /// What is answered to this request before anybody looks for content.
    fn instead(&mut self, seen: &Seen) -> Option<Reply> {
        let is_shut = self.guard.as_ref().is_some_and(|it| !it.admits(seen));
        if is_shut || self.lock.as_ref().is_some_and(|it| !it.opens(seen)) {
            return Some(Reply::error(401));
        }
        let mut redirects = self.redirects.iter_mut().rev();
        if let Some(redirect) = redirects.find(|it| it.is_for(&seen.method, &seen.path)) {
            let reply = Reply::new(redirect.status, "text/html", "<a>here</a>");
            return Some(reply.with("Location", &redirect.next()));
        }
        if let Some(bytes) = self.files.get(&seen.path) {
            return Some(Reply::new(200, "application/octet-stream", bytes.clone()));
        }
        let issuer = self.issuer.as_ref().filter(|it| it.is_meant(seen))?;
        let issued = issuer.issue(seen);
        Some(issued.map_or(Reply::error(401), |it| {
            Reply::new(200, "application/json", it)
        }))
    }
}

impl Busy<'_> {
    /// What has stalled may be asked for again.
    fn is_no_transfer(&mut self) {
        if let Some(digest) = self.whole_of.take() {
            let mut state = self.shared.state.lock();
            *state.in_flight.entry(digest).or_default() -= 1;
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.is_no_transfer();
        self.shared.state.lock().busy -= 1;
        self.shared.tick();
    }
}

/// What registries say who want a token.
const BEARER: &str = r#"Bearer realm="{realm}",service="fake",scope="{scope}""#;

/// Bytes written at once.
const PIECE: usize = 64 << 10;

/// Listens at two addresses on one port, which may take some attempts: it was free at the first of them only.
pub(crate) async fn neighbours([first, second]: [&str; 2]) -> [TcpListener; 2] {
    loop {
        let first = TcpListener::bind((first, 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        if let Ok(second) = TcpListener::bind((second, port)).await {
            return [first, second];
        }
    }
}

/// Speaks with one client until either has enough. A client that leaves is nobody's fault.
async fn converse(shared: Arc<Shared>, mut stream: TcpStream) {
    let mut unread = Vec::new();
    while let Ok(Some(mut seen)) = read_head(&mut stream, &mut unread).await {
        let length = seen.header("content-length").and_then(|it| it.parse().ok());
        match read_body(&mut stream, &mut unread, length.unwrap_or(0)).await {
            Ok(body) => seen.body = body,
            Err(_) => return,
        }
        match shared.answer(&mut stream, &seen).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return,
        }
    }
}

/// Reads a request's head; `None` at the end of the connection.
async fn read_head(stream: &mut TcpStream, unread: &mut Vec<u8>) -> io::Result<Option<Seen>> {
    loop {
        if let Some(end) = unread.windows(4).position(|it| it == b"\r\n\r\n") {
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            return Ok(Some(Seen::parse(&String::from_utf8_lossy(&head))));
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}

/// Reads what comes with a request.
async fn read_body(
    stream: &mut TcpStream,
    unread: &mut Vec<u8>,
    length: usize,
) -> io::Result<String> {
    while unread.len() < length {
        if stream.read_buf(unread).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let body: Vec<u8> = unread.drain(..length).collect();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Waits at a gate, but not for a client that has left.
async fn held(stream: &TcpStream, gate: &watch::Sender<GateState>) -> io::Result<()> {
    gate.send_modify(|it| it.waiting += 1);
    let mut state = gate.subscribe();
    // Both arms only look; nothing is lost by cancelling either.
    let passed = tokio::select! {
        _ = state.wait_for(|it| it.open) => Ok(()),
        left = left(stream) => left.map(drop),
    };
    gate.send_modify(|it| it.waiting -= 1);
    passed
}

/// Waits for the other side to leave: an error, like any other way of losing it.
async fn left(stream: &TcpStream) -> io::Result<bool> {
    match stream.peek(&mut [0]).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        // A pipelined request hides the end; nobody pipelines here.
        _ => pending().await,
    }
}
