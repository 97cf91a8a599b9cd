//! A client that asks for all that there is to ask for, in any order and number, and believes nothing.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::{Instant, sleep};

use crate::content::length;
use crate::harness::{APP, Answer, Connection, End, KIB, MIB};
use crate::scene::Scene;

/// What all clients of a run got.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Requests that were sent.
    pub(crate) asked: AtomicU64,
    /// Answers that were read to their end.
    pub(crate) complete: AtomicU64,
    /// Bytes of bodies that were read.
    pub(crate) taken: AtomicU64,
    /// Those of them that were asked for as one piece of a blob that is large, and were all read.
    large: AtomicU64,
    /// Bytes that whoever left had asked for and did not read.
    pub(crate) left: AtomicU64,
}

/// A request, and what must come.
#[derive(Debug)]
struct Asked {
    head: String,
    expected: Expected,
}

/// An answer.
#[derive(Clone, Debug)]
enum Expected {
    /// A blob, by its number, or a part of it.
    Blob(u16, usize, Range<u64>),
    /// Some parts of a blob, in this order.
    Parts(usize, Vec<Range<u64>>),
    Manifest(usize),
    /// A head, with this length if it is known.
    Bodiless(&'static str, u16, Option<u64>),
    /// An error.
    Refused(u16),
}

impl Tally {
    pub(crate) fn read(counter: &AtomicU64) -> f64 {
        counter.load(Ordering::SeqCst) as f64
    }

    /// Bytes of large pieces of blobs that were read to their end.
    pub(crate) fn large(&self) -> f64 {
        Self::read(&self.large)
    }

    /// Counts anew.
    pub(crate) fn reset(&self) {
        let Self {
            asked,
            complete,
            taken,
            large,
            left,
        } = self;
        for counter in [asked, complete, taken, large, left] {
            counter.store(0, Ordering::SeqCst);
        }
    }
}

/// Pulls until the time is up.
pub(crate) async fn pull(scene: &Scene, mut choices: SmallRng, until: Instant) {
    let mut open = None;
    while Instant::now() < until {
        let connection = match open.take() {
            Some(connection) => connection,
            None => scene.open().await,
        };
        open = exchange(scene, connection, &mut choices).await;
        if choices.random_ratio(1, 50) {
            open = None;
        }
    }
}

/// Sends one request or several at once, and reads the answers. Gives the connection back unless it left in the middle.
async fn exchange(
    scene: &Scene,
    mut connection: Connection,
    choices: &mut SmallRng,
) -> Option<Connection> {
    let requests = match choices.random_range(0..20) {
        0 | 1 => 4,
        2 => 12,
        3 => 2,
        _ => 1,
    };
    let asked: Vec<Asked> = (0..requests).map(|_| Asked::any(scene, choices)).collect();
    let heads: String = asked.iter().map(|it| it.head.as_str()).collect();
    scene.tally.asked.fetch_add(requests, Ordering::SeqCst);
    connection.write(heads.as_bytes()).await.unwrap();
    let mut asked = asked.iter();
    while let Some(it) = asked.next() {
        let (taken, back) = it.read(scene, connection, choices).await;
        scene.tally.taken.fetch_add(taken, Ordering::SeqCst);
        let Some(back) = back else {
            let rest: u64 = asked.map(Asked::len).sum();
            let left = it.len() - taken + rest;
            scene.tally.left.fetch_add(left, Ordering::SeqCst);
            return None;
        };
        scene.tally.complete.fetch_add(1, Ordering::SeqCst);
        connection = back;
    }
    Some(connection)
}

impl Asked {
    fn any(scene: &Scene, choices: &mut SmallRng) -> Self {
        let of = choices.random_range(0..scene.contents.len());
        let content = &scene.contents[of];
        let blob = format!("/v2/{APP}/blobs/{}", content.digest());
        match choices.random_range(0..100) {
            0..50 => {
                let part = any_part(content.len(), choices);
                Self::part(&blob, (of, content.len()), part, choices)
            }
            50..62 => {
                let expected = Expected::Blob(200, of, 0..content.len());
                Self::get(&blob, "", expected)
            }
            62..70 => Self::parts(&blob, of, content.len(), choices),
            70..80 => {
                let n = choices.random_range(0..scene.manifests.len());
                let (tag, manifest) = &scene.manifests[n];
                let reference = match choices.random() {
                    true => tag,
                    false => manifest.digest(),
                };
                let target = format!("/v2/{APP}/manifests/{reference}");
                Self::get(&target, "", Expected::Manifest(n))
            }
            80..88 => {
                let expected = Expected::Bodiless("HEAD", 200, Some(content.len()));
                Self::new("HEAD", &blob, "", expected)
            }
            88..92 => {
                let known = format!("If-None-Match: \"{}\"\r\n", content.digest());
                Self::get(&blob, &known, Expected::Bodiless("GET", 304, None))
            }
            92..96 => {
                let range = format!("Range: bytes={}-\r\n", content.len());
                Self::get(&blob, &range, Expected::Refused(416))
            }
            _ => {
                let target = format!("/v2/{APP}/blobs/sha256:{:064x}", of);
                Self::get(&target, "", Expected::Refused(404))
            }
        }
    }

    fn new(method: &str, target: &str, headers: &str, expected: Expected) -> Self {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: cache\r\n{headers}\r\n");
        Self { head, expected }
    }

    fn get(target: &str, headers: &str, expected: Expected) -> Self {
        Self::new("GET", target, headers, expected)
    }

    /// A range, in one of the ways in which it can be said.
    fn part(
        target: &str,
        (of, len): (usize, u64),
        part: Range<u64>,
        choices: &mut SmallRng,
    ) -> Self {
        let Range { start, end } = part;
        let said = match choices.random_range(0..4) {
            _ if end == len && start > 0 => match choices.random() {
                true => format!("{start}-"),
                false => format!("-{}", end - start),
            },
            0 if end == len => format!("{start}-{}", end + 1000),
            _ => format!("{start}-{}", end - 1),
        };
        let header = format!("Range: bytes={said}\r\n");
        Self::get(target, &header, Expected::Blob(206, of, part))
    }

    fn parts(target: &str, of: usize, len: u64, choices: &mut SmallRng) -> Self {
        let n = choices.random_range(2..6);
        let slot = len / n;
        if slot < 2 {
            return Self::part(target, (of, len), 0..len, choices);
        }
        let mut parts: Vec<Range<u64>> = (0..n)
            .map(|it| {
                let part = any_part(slot, choices);
                // Little of each, for they are held until all have come.
                let end = part.end.min(part.start + 2 * MIB as u64);
                it * slot + part.start..it * slot + end
            })
            .collect();
        if choices.random_ratio(1, 3) {
            parts.reverse();
        }
        let said = parts
            .iter()
            .map(|it| format!("{}-{}", it.start, it.end - 1));
        let said: Vec<String> = said.collect();
        let header = format!("Range: bytes={}\r\n", said.join(","));
        Self::get(target, &header, Expected::Parts(of, parts))
    }

    /// Bytes of a blob that it asks for.
    fn len(&self) -> u64 {
        match &self.expected {
            Expected::Blob(_, _, part) => part.end - part.start,
            Expected::Parts(_, parts) => parts.iter().map(|it| it.end - it.start + 1000).sum(),
            Expected::Manifest(_) | Expected::Refused(_) => 8 * KIB as u64,
            Expected::Bodiless(..) => 0,
        }
    }

    /// Reads an answer, or leaves in the middle: what was read of its body, and the connection if there was an end.
    async fn read(
        &self,
        scene: &Scene,
        connection: Connection,
        choices: &mut SmallRng,
    ) -> (u64, Option<Connection>) {
        let method = match self.expected {
            Expected::Bodiless(method, ..) => method,
            Expected::Blob(..)
            | Expected::Parts(..)
            | Expected::Manifest(_)
            | Expected::Refused(_) => "GET",
        };
        let mut answer = connection.head(method).await;
        let (status, length) = (answer.head.status, answer.head.content_length());
        match &self.expected {
            Expected::Blob(expected, of, part) => {
                assert_eq!(
                    (status, length),
                    (*expected, Some(length_of(part))),
                    "{self:?}"
                );
                return self.read_blob(scene, answer, (*of, part), choices).await;
            }
            Expected::Parts(of, parts) => {
                let whole = self.rest(&mut answer, 206).await;
                let kind = answer.head.header("content-type").unwrap().to_owned();
                scene.check_parts(*of, parts, (&kind, whole.clone()));
                (whole.len() as u64, Some(answer.into_connection()))
            }
            Expected::Manifest(n) => {
                let whole = self.rest(&mut answer, 200).await;
                assert!(whole == scene.manifests[*n].1.bytes(), "{self:?}");
                (whole.len() as u64, Some(answer.into_connection()))
            }
            Expected::Bodiless(_, expected, len) => {
                assert_eq!(status, *expected, "{self:?}");
                let len = len.map(|it| length_of(&(0..it)));
                assert!(
                    len.is_none() || len == length,
                    "{self:?}: {:?}",
                    answer.head
                );
                (0, Some(answer.into_connection()))
            }
            Expected::Refused(expected) => {
                let whole = self.rest(&mut answer, *expected).await;
                (whole.len() as u64, Some(answer.into_connection()))
            }
        }
    }

    /// All of a body that is not large.
    async fn rest(&self, answer: &mut Answer, status: u16) -> Bytes {
        assert_eq!(answer.head.status, status, "{self:?}: {:?}", answer.head);
        let mut whole = BytesMut::new();
        loop {
            match answer.piece().await {
                Ok(piece) => whole.extend_from_slice(&piece),
                Err(end) => {
                    assert_eq!(end, End::Complete, "{self:?}: {} bytes came", whole.len());
                    return whole.freeze();
                }
            }
        }
    }

    async fn read_blob(
        &self,
        scene: &Scene,
        mut answer: Answer,
        (of, part): (usize, &Range<u64>),
        choices: &mut SmallRng,
    ) -> (u64, Option<Connection>) {
        let leaves_at = choices.random_ratio(3, 200);
        let leaves_at = leaves_at.then(|| choices.random_range(part.clone()));
        let mut naps = match choices.random_ratio(1, 30) {
            true => choices.random_range(1..40),
            false => 0,
        };
        let mut at = part.start;
        loop {
            if leaves_at.is_some_and(|it| at >= it) && at < part.end {
                return (at - part.start, None);
            }
            match answer.piece().await {
                Ok(piece) => {
                    let wrong = scene.contents[of].differs(at, &piece);
                    assert_eq!(wrong, None, "from {at} on, {self:?}: {:?}", answer.head);
                    at += piece.len() as u64;
                }
                Err(end) => {
                    let seen = (end, at);
                    assert_eq!(
                        seen,
                        (End::Complete, part.end),
                        "{self:?}: {:?}",
                        answer.head
                    );
                    break;
                }
            }
            if naps > 0 {
                naps -= 1;
                sleep(Duration::from_millis(choices.random_range(1..20))).await;
            }
        }
        let taken = part.end - part.start;
        if taken >= LARGE_BYTES {
            scene.tally.large.fetch_add(taken, Ordering::SeqCst);
        }
        (taken, Some(answer.into_connection()))
    }
}

impl Scene {
    /// Fails the test unless a body has these parts of a blob and nothing else.
    fn check_parts(&self, of: usize, parts: &[Range<u64>], (kind, mut body): (&str, Bytes)) {
        let boundary = kind
            .strip_prefix("multipart/byteranges; boundary=")
            .unwrap();
        let content = &self.contents[of];
        for (n, part) in parts.iter().enumerate() {
            let before = if n == 0 { "" } else { "\r\n" };
            eat(&mut body, &format!("{before}--{boundary}\r\n"));
            let end = body.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(body.split_to(end).to_vec()).unwrap();
            let place = format!("bytes {}-{}/{}", part.start, part.end - 1, content.len());
            assert!(head.ends_with(&format!("Content-Range: {place}")), "{head}");
            body.advance(4);
            let bytes = body.split_to(length(part.clone()));
            assert_eq!(content.differs(part.start, &bytes), None, "{place}");
        }
        eat(&mut body, &format!("\r\n--{boundary}--\r\n"));
        assert!(body.is_empty());
    }
}

fn eat(body: &mut Bytes, text: &str) {
    assert!(body.starts_with(text.as_bytes()), "no {text:?}");
    body.advance(text.len());
}

/// A part that begins anywhere, at the begin and the end more often, and has any order of magnitude.
fn any_part(len: u64, choices: &mut SmallRng) -> Range<u64> {
    let longest = (1 << choices.random_range(0..25))
        .min(PART_BYTES_MAX)
        .min(len);
    let part = choices.random_range(1..=longest);
    let start = match choices.random_range(0..6) {
        0 => 0,
        1 => len - part,
        // Where a page begins, or next to it.
        2 => (choices.random_range(0..=len - part) & !0xfff) + choices.random_range(0..2),
        _ => choices.random_range(0..=len - part),
    };
    let start = start.min(len - part);
    start..start + part
}

fn length_of(part: &Range<u64>) -> usize {
    length(part.clone())
}

/// What goes from its file to the socket by itself, where that is possible.
pub(crate) const LARGE_BYTES: u64 = 1 << 20;
const PART_BYTES_MAX: u64 = 20_000_000;
