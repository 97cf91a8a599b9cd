//! Clients that take content as a puller does: over keep-alive connections, copied out of the kernel, and then thrown
//! away.
//!
//! One thread waits for many connections (epoll, level-triggered) and takes from each that is readable what it has, at
//! most [`TAKEN_BYTES`] at a time. Each response must be a 200 of the right length; whether its digest is right too is
//! looked at where [`Load::digest`] is given, which costs a core for each 1.8 GB/s.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll;
use sha2::{Digest, Sha256};

use super::blob::Hasher;
use super::sealed::{Record, Sealed, Sealing};

/// Who pulls what.
#[derive(Clone)]
pub(crate) struct Load<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) path: &'a str,
    pub(crate) clients: usize,
    /// Among which the clients are divided.
    pub(crate) threads: usize,
    /// Of each body.
    pub(crate) length: u64,
    /// Of each body, if it is to be looked at.
    pub(crate) digest: Option<&'a str>,
    /// `None` is in the clear.
    pub(crate) tls: Option<&'a Sealing>,
}

/// What became of clients that pulled once each.
pub(crate) struct Pulled {
    /// Until the last one had everything.
    pub(crate) wall: Duration,
    /// One for each client.
    pub(crate) responses: Vec<Phases>,
}

/// How long the parts of one response took.
#[derive(Clone, Copy)]
pub(crate) struct Phases {
    /// Until the connection that it came over was there.
    pub(crate) connect: Duration,
    /// From the request to the first byte that came back, which is the head's.
    pub(crate) first_byte: Duration,
    /// From the request to the end.
    pub(crate) last_byte: Duration,
}

/// What went through in a time.
pub(crate) struct Sustained {
    pub(crate) seconds: f64,
    pub(crate) body_bytes: u64,
    pub(crate) requests: u64,
    /// CPU seconds of the server.
    pub(crate) cpu: f64,
    /// Of those that ended in it, the quickest first.
    responses: Vec<Phases>,
}

impl Load<'_> {
    /// Each client pulls once, all at once.
    pub(crate) fn pull(&self) -> Pulled {
        let shared = Shared::new(self.threads, Some(1));
        thread::scope(|scope| {
            let threads = self.start(scope, &shared);
            shared.ready.wait();
            let began = Instant::now();
            let responses = join(threads);
            Pulled {
                wall: began.elapsed(),
                responses,
            }
        })
    }

    /// All clients pull again and again. `server_cpu` tells the CPU time of the server so far.
    pub(crate) fn sustain(&self, window: Duration, server_cpu: impl Fn() -> f64) -> Sustained {
        let shared = Shared::new(self.threads, None);
        thread::scope(|scope| {
            let threads = self.start(scope, &shared);
            shared.ready.wait();
            // Until windows and buffers have grown.
            thread::sleep(window / 8);
            let cpu = server_cpu();
            let bytes = shared.body_bytes.load(Ordering::Relaxed);
            let requests = shared.requests.load(Ordering::Relaxed);
            let began = Instant::now();
            shared.timed.store(true, Ordering::Relaxed);
            thread::sleep(window);
            let bytes = shared.body_bytes.load(Ordering::Relaxed) - bytes;
            let requests = shared.requests.load(Ordering::Relaxed) - requests;
            let seconds = began.elapsed().as_secs_f64();
            let cpu = server_cpu() - cpu;
            shared.stop.store(true, Ordering::Relaxed);
            let mut responses = join(threads);
            responses.sort_unstable_by_key(|it| it.last_byte);
            Sustained {
                seconds,
                body_bytes: bytes,
                requests,
                cpu,
                responses,
            }
        })
    }

    fn start<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        shared: &'scope Shared,
    ) -> Vec<thread::ScopedJoinHandle<'scope, Vec<Phases>>> {
        let share = |thread| (self.clients + thread) / self.threads;
        let threads = 0..self.threads;
        threads
            .map(|thread| {
                // Here, so that one that cannot connect is not waited for.
                let clients = (0..share(thread)).map(|_| Client::connect(self, shared.pulls));
                let clients = clients.collect();
                scope.spawn(move || self.work(shared, clients))
            })
            .collect()
    }

    /// One thread of clients; gives how long each response took.
    fn work(&self, shared: &Shared, mut clients: Vec<Client>) -> Vec<Phases> {
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nAccept: {ACCEPTED}\r\n\r\n",
            self.path, self.from
        );
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (at, client) in clients.iter().enumerate() {
            let data = epoll::EventData::new_u64(at as u64);
            epoll::add(&poll, &client.stream, data, epoll::EventFlags::IN).unwrap();
        }
        shared.ready.wait();
        for client in &mut clients {
            client.ask(&request);
        }
        let mut responses = Vec::new();
        let mut events = Vec::with_capacity(clients.len());
        let mut taken = vec![0; TAKEN_BYTES];
        let mut busy = clients.len();
        while busy > 0 && !shared.stop.load(Ordering::Relaxed) {
            events.clear();
            epoll::wait(&poll, spare_capacity(&mut events), Some(&LOOK_UP)).unwrap();
            for event in &events {
                let at = usize::try_from(event.data.u64()).unwrap();
                let client = &mut clients[at];
                let len = client.stream.read(&mut taken).unwrap();
                assert!(len > 0, "{} closed a connection", self.from);
                let body = client.receive(&taken[..len], self);
                shared.body_bytes.fetch_add(body, Ordering::Relaxed);
                if client.left != Some(0) {
                    continue;
                }
                shared.requests.fetch_add(1, Ordering::Relaxed);
                if shared.timed.load(Ordering::Relaxed) {
                    responses.push(client.phases());
                }
                if client.finish(self) {
                    client.ask(&request);
                } else {
                    busy -= 1;
                }
            }
        }
        responses
    }
}

impl Sustained {
    pub(crate) fn gib_per_second(&self) -> f64 {
        gib(self.body_bytes) / self.seconds
    }

    pub(crate) fn cpu_per_gib(&self) -> f64 {
        self.cpu / gib(self.body_bytes)
    }

    pub(crate) fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Milliseconds within which this share of the responses was there; NaN if there was none.
    pub(crate) fn latency(&self, share: f64) -> f64 {
        let last = self.responses.len().saturating_sub(1) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a length"
        )]
        let at = (last * share) as usize;
        let response = self.responses.get(at);
        response.map_or(f64::NAN, |it| millis(it.last_byte))
    }
}

impl Pulled {
    pub(crate) fn seconds(&self) -> f64 {
        self.wall.as_secs_f64()
    }

    /// Milliseconds until each client had its first byte.
    pub(crate) fn first_byte_max(&self) -> f64 {
        let first_bytes = self.responses.iter().map(|it| it.first_byte);
        first_bytes.max().map_or(f64::NAN, millis)
    }
}

/// What the threads of a load have in common.
struct Shared {
    /// Passed when all are connected.
    ready: Barrier,
    /// Of each client; `None` until `stop`.
    pulls: Option<u64>,
    /// Whether how long responses take is kept.
    timed: AtomicBool,
    stop: AtomicBool,
    body_bytes: AtomicU64,
    requests: AtomicU64,
}

impl Shared {
    fn new(threads: usize, pulls: Option<u64>) -> Self {
        Self {
            ready: Barrier::new(threads + 1),
            pulls,
            timed: AtomicBool::new(pulls.is_some()),
            stop: AtomicBool::new(false),
            body_bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }
}

struct Client {
    stream: TcpStream,
    sealed: Option<Sealed>,
    /// The head of the response, as far as it came.
    head: Vec<u8>,
    /// Of the body; `None` before the head is whole.
    left: Option<u64>,
    hasher: Option<Hasher>,
    connect: Duration,
    asked: Instant,
    /// From then on.
    first_byte: Option<Duration>,
    /// How many are still to come; `None` is for ever.
    pulls: Option<u64>,
}

impl Client {
    fn connect(load: &Load<'_>, pulls: Option<u64>) -> Self {
        let began = Instant::now();
        let mut stream = TcpStream::connect(load.from).unwrap();
        let connect = began.elapsed();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        Self {
            sealed: load.tls.map(|it| it.shake(&mut stream)),
            stream,
            head: Vec::new(),
            left: None,
            hasher: None,
            connect,
            asked: Instant::now(),
            first_byte: None,
            pulls,
        }
    }

    fn ask(&mut self, request: &str) {
        self.asked = Instant::now();
        self.first_byte = None;
        match &mut self.sealed {
            Some(sealed) => self.stream.write_all(&sealed.seal(request.as_bytes())),
            None => self.stream.write_all(request.as_bytes()),
        }
        .unwrap();
    }

    /// Takes what came in, sealed or not; gives how much of it is body. Only what is looked at is opened.
    fn receive(&mut self, mut bytes: &[u8], load: &Load<'_>) -> u64 {
        let Some(mut sealed) = self.sealed.take() else {
            return self.take(bytes, load);
        };
        let mut body = 0;
        while !bytes.is_empty() {
            let opens = self.left.is_none() || self.hasher.is_some();
            match sealed.next(&mut bytes, opens) {
                Some(Record::Open(bytes)) => body += self.take(bytes, load),
                Some(Record::Skipped(len)) => body += self.count(len),
                None => {}
            }
        }
        self.sealed = Some(sealed);
        body
    }

    /// Takes what came in; gives how much of it is body.
    fn take(&mut self, mut bytes: &[u8], load: &Load<'_>) -> u64 {
        if self.left.is_none() {
            self.first_byte.get_or_insert_with(|| self.asked.elapsed());
            let had = self.head.len();
            self.head
                .extend_from_slice(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]);
            let Some(end) = self.head.windows(4).position(|it| it == b"\r\n\r\n") else {
                assert!(self.head.len() < HEAD_BYTES_MAX, "a head without end");
                return 0;
            };
            let length = check_head(&self.head[..end], load);
            bytes = &bytes[end + 4 - had..];
            self.left = Some(length);
            self.hasher = load.digest.map(|_| Hasher(Sha256::new()));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.0.update(bytes);
        }
        self.count(bytes.len() as u64)
    }

    /// Counts bytes of the body.
    fn count(&mut self, len: u64) -> u64 {
        self.left = self.left.and_then(|left| left.checked_sub(len));
        assert!(self.left.is_some(), "more than was asked for");
        len
    }

    /// Of the response that has just come to its end.
    fn phases(&self) -> Phases {
        let last_byte = self.asked.elapsed();
        Phases {
            connect: self.connect,
            first_byte: self.first_byte.unwrap_or(last_byte),
            last_byte,
        }
    }

    /// Closes a response; tells whether another one is wanted.
    fn finish(&mut self, load: &Load<'_>) -> bool {
        let digest = self.hasher.take().map(Hasher::digest);
        assert_eq!(digest.as_deref(), load.digest, "the wrong bytes");
        self.head.clear();
        self.left = None;
        self.pulls = self.pulls.map(|it| it - 1);
        self.pulls != Some(0)
    }
}

/// The length that a head announces, which must be that of a 200 with the right one.
fn check_head(head: &[u8], load: &Load<'_>) -> u64 {
    let head = str::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{}: {head}", load.path);
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, length)| length.parse().ok());
    assert_eq!(length, Some(load.length), "{}: {head}", load.path);
    load.length
}

fn join(threads: Vec<thread::ScopedJoinHandle<'_, Vec<Phases>>>) -> Vec<Phases> {
    let joined = threads.into_iter().flat_map(|it| it.join().unwrap());
    joined.collect()
}

pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// As pullers have it; some registries serve no OCI manifest without.
const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// What one read takes at most.
const TAKEN_BYTES: usize = 1 << 20;

const HEAD_BYTES_MAX: usize = 16 << 10;

/// How often a thread with nothing to do looks whether it should stop.
const LOOK_UP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// A server that says nothing for so long has failed the bench.
const SILENCE_MAX: Duration = Duration::from_secs(30);
