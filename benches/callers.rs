//! Whether the time of an answer tells what is here: where the callers' own rights decide, somebody who may not have it asks
//! for what is in the cache and for what is nowhere.
//!
//! The registry refuses both, and layerhold asks it the same for both before it looks at anything of its own. So what is told
//! is how well one time tells the two apart: the chance that an answer about what is here was the slower of a pair. 0.50 is a
//! coin's; a distance from it that is the same in each round would be one that a client can hear.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(
    clippy::disallowed_methods,
    reason = "a bench takes real time and writes files of its own"
)]

mod lab;

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use parking_lot::Mutex;

use lab::args::Args;
use lab::server::Server;
use lab::summary::Summary;
use lab::upstream::digest_of;

fn main() {
    let args = Args::parse();
    let registry = Registry::start();
    let server = Server::start_with(registry.address, &args.log_level, "access = \"caller\"\n");
    let pairs = if args.short { 50 } else { 1000 };
    println!(
        "{pairs} pairs of answers to somebody who is refused, {} rounds: median [min-max]\n{:<16}{:<24}{:<24}{:<24}{:<24}slower if here",
        args.rounds(),
        "question",
        "here, p50 ms",
        "not here, p50 ms",
        "here, p99 ms",
        "not here, p99 ms",
    );
    for question in [Question::Head, Question::Get, Question::Range] {
        let rounds: Vec<Round> = (0..args.rounds())
            .map(|_| round(&registry, &server, question, pairs))
            .collect();
        let of = |value: fn(&Round) -> f64| Summary::of(rounds.iter().map(value));
        println!(
            "{:<16}{:<24.3}{:<24.3}{:<24.3}{:<24.3}{:.3}",
            question.name(),
            of(|it| percentile(&it.here, 50)),
            of(|it| percentile(&it.nowhere, 50)),
            of(|it| percentile(&it.here, 99)),
            of(|it| percentile(&it.nowhere, 99)),
            of(Round::slower_if_here),
        );
    }
}

/// How something is asked for.
#[derive(Clone, Copy)]
enum Question {
    Head,
    Get,
    Range,
}

impl Question {
    fn name(self) -> &'static str {
        match self {
            Self::Head => "HEAD",
            Self::Get => "GET",
            Self::Range => "GET of a range",
        }
    }

    fn head(self, target: &str, who: &str) -> String {
        let (method, range) = match self {
            Self::Head => ("HEAD", ""),
            Self::Get => ("GET", ""),
            Self::Range => ("GET", "Range: bytes=0-99\r\n"),
        };
        let shown = STANDARD.encode(who);
        format!(
            "{method} {target} HTTP/1.1\r\nHost: cache.example\r\n{range}Authorization: Basic {shown}\r\n\r\n"
        )
    }
}

/// The times of a round, sorted.
struct Round {
    here: Vec<Duration>,
    nowhere: Vec<Duration>,
}

impl Round {
    /// The chance that of two answers the one about what is here was the slower.
    fn slower_if_here(&self) -> f64 {
        let slower = self.here.iter().map(|it| {
            let less = self.nowhere.partition_point(|other| other < it);
            let not_more = self.nowhere.partition_point(|other| other <= it);
            less + not_more
        });
        let pairs = self.here.len() * self.nowhere.len();
        slower.sum::<usize>() as f64 / (2 * pairs) as f64
    }
}

/// Asks for each thing once: a refusal that is remembered is answered unasked, whatever it is about.
fn round(registry: &Registry, server: &Server, question: Question, pairs: usize) -> Round {
    let blobs: Vec<Vec<u8>> = (0..pairs).map(|_| random()).collect();
    let here: Vec<String> = blobs.iter().map(|it| registry.put(it.clone())).collect();
    let nowhere: Vec<String> = blobs.iter().map(|_| target(&random())).collect();
    let mut client = Client::open(server.address);
    for (target, blob) in here.iter().zip(&blobs) {
        let pulled = client.ask(Question::Get, target, MEMBER);
        assert_eq!((pulled.status, &pulled.body), (200, blob));
    }
    let mut client = Client::open(server.address);
    let asked = registry.asked();
    let (mut of_here, mut of_nowhere) = (Vec::new(), Vec::new());
    for (n, (here, nowhere)) in here.iter().zip(&nowhere).enumerate() {
        // Neither is always the first.
        let (one, other) = if n % 2 == 0 {
            (here, nowhere)
        } else {
            (nowhere, here)
        };
        let answers = [one, other].map(|target| client.ask(question, target, STRANGER));
        let [first, second] = answers;
        assert!(matches!(first.status, 401 | 403 | 404), "{}", first.status);
        assert_eq!(first.status, second.status);
        assert_eq!(
            (&first.headers, &first.body),
            (&second.headers, &second.body)
        );
        let (here, nowhere) = if n % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        };
        of_here.push(here.took);
        of_nowhere.push(nowhere.took);
    }
    // Each of them was asked for upstream.
    assert!(
        registry.asked() - asked >= 2 * pairs,
        "nothing is remembered"
    );
    of_here.sort_unstable();
    of_nowhere.sort_unstable();
    Round {
        here: of_here,
        nowhere: of_nowhere,
    }
}

/// Milliseconds, of times that are sorted.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3
}

fn random() -> Vec<u8> {
    (0..BLOB_BYTES).map(|_| rand::random()).collect()
}

fn target(blob: &[u8]) -> String {
    format!("/v2/{REPOSITORY}/blobs/{}", digest_of(blob))
}

/// One connection to the server.
struct Client(BufReader<TcpStream>);

/// What a client sees.
struct Answered {
    status: u16,
    /// But for what is another one each time.
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    took: Duration,
}

impl Client {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn ask(&mut self, question: Question, target: &str, who: &str) -> Answered {
        let head = question.head(target, who);
        let began = Instant::now();
        self.0.get_mut().write_all(head.as_bytes()).unwrap();
        let (first, mut headers) = read_head(&mut self.0).unwrap().unwrap();
        let took = began.elapsed();
        let length = headers.get("content-length").map_or("0", |it| it);
        let length = match question {
            Question::Head => 0,
            Question::Get | Question::Range => length.parse().unwrap(),
        };
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        for other_each_time in ["x-request-id", "date"] {
            headers.remove(other_each_time);
        }
        Answered {
            status: first.split(' ').nth(1).unwrap().parse().unwrap(),
            headers,
            body,
            took,
        }
    }
}

/// A registry with one member, who may have everything, and strangers, who may have nothing.
struct Registry {
    address: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Default)]
struct Shelf {
    /// By path.
    blobs: BTreeMap<String, Vec<u8>>,
    asked: usize,
}

impl Registry {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let accepting = Arc::clone(&shelf);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shelf = Arc::clone(&accepting);
                // It ends when the client has left, with an error or not.
                thread::spawn(move || serve(&stream?, &shelf));
            }
        });
        Self { address, shelf }
    }

    /// Serves a blob from now on; gives its path.
    fn put(&self, blob: Vec<u8>) -> String {
        let path = target(&blob);
        self.shelf.lock().blobs.insert(path.clone(), blob);
        path
    }

    /// Requests so far.
    fn asked(&self) -> usize {
        self.shelf.lock().asked
    }
}

fn serve(mut stream: &TcpStream, shelf: &Mutex<Shelf>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let member = format!("Basic {}", STANDARD.encode(MEMBER));
    let mut requests = BufReader::new(stream);
    while let Some((first, headers)) = read_head(&mut requests)? {
        let mut words = first.split(' ');
        let (method, path) = (
            words.next().unwrap_or_default(),
            words.next().unwrap_or_default(),
        );
        let blob = {
            let mut shelf = shelf.lock();
            shelf.asked += 1;
            shelf.blobs.get(path).cloned()
        };
        let answer = match (headers.get("authorization"), blob) {
            (None, _) => UNKNOWN.to_owned(),
            (Some(shown), _) if *shown != member => {
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned()
            }
            (Some(_), None) => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            (Some(_), Some(blob)) => {
                let length = blob.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes())?;
                if method == "GET" {
                    stream.write_all(&blob)?;
                }
                continue;
            }
        };
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// The first line of a request or response, and its fields; `None` when there is none.
fn read_head(from: &mut impl BufRead) -> io::Result<Option<(String, BTreeMap<String, String>)>> {
    let mut first = String::new();
    if from.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            return Ok(Some((first, headers)));
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
}

const UNKNOWN: &str = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"bench\"\r\nContent-Length: 0\r\n\r\n";
const REPOSITORY: &str = "bench/secret";
const MEMBER: &str = "ann:horse-a";
const STRANGER: &str = "bob:horse-b";
const BLOB_BYTES: usize = 4096;
