//! Clients: what they ask for, and how they take it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use crate::Run;
use crate::fleet::Instance;
use crate::harness::{Connection, End, Head};
use crate::judge::judge;
use crate::trouble::Subject;
use crate::world::{Repository, SECRET, World};

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) repository: usize,
    pub(crate) object: Object,
    pub(crate) is_head: bool,
    pub(crate) range: Option<Range>,
    /// The manifest that the client has already.
    pub(crate) known: Option<usize>,
    pub(crate) reading: Reading,
    /// How the registry is named.
    way: u8,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// A blob, by number, whether the repository holds it or not.
    Blob(usize),
    /// A manifest of the repository, by its number there.
    Manifest(usize),
    Tag(String),
    List,
}

/// A part of it, as it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Range {
    Closed(usize, usize),
    From(usize),
    Last(usize),
}

/// How a client takes what comes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reading {
    Whole,
    /// It leaves after this many bytes.
    Leave(usize),
    /// It pauses between pieces.
    Slow(Duration),
}

/// What came of a request.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) asked: Instant,
    pub(crate) headed: Instant,
    pub(crate) ended: Instant,
    /// None: the connection broke before.
    pub(crate) head: Option<Head>,
    pub(crate) bytes: Bytes,
    /// None: the client left.
    pub(crate) end: Option<End>,
    /// Whether the process was told to end before it was over.
    pub(crate) was_ending: bool,
}

/// One client, which asks until the time is up.
pub(crate) async fn pull_until_over(run: Arc<Run>, n: u64) {
    let mut choices = run.choices(100 + n);
    while !run.is_over() {
        let ask = Ask::random(&run.world, &mut choices);
        let herd = if choices.random_bool(0.03) { HERD } else { 1 };
        join_all((0..herd).map(|_| pull(&run, &ask))).await;
        let pause = Duration::from_millis(choices.random_range(0..60));
        run.pause(pause).await;
    }
}

/// Asks once, and judges the answer. Gives whether it was whole.
pub(crate) async fn pull(run: &Run, ask: &Ask) -> bool {
    let instance = run.fleet.current().await;
    let outcome = ask.send(run, &instance).await;
    let object = ask.name(&run.world);
    let what = format!("{}: {}", ask.text(&run.world), outcome.summary());
    run.journal.note(&object, outcome.asked, what.clone());
    run.journal.count(outcome.kind());
    if let Err(wrong) = judge(&run.world, ask, &outcome) {
        run.journal.violation(
            run,
            &object,
            &format!("{wrong}: {what}: {:?}", outcome.head),
        );
    }
    outcome.end == Some(End::Complete)
}

impl Ask {
    /// The whole of something.
    pub(crate) fn whole(repository: usize, object: Object) -> Self {
        Self {
            repository,
            object,
            is_head: false,
            range: None,
            known: None,
            reading: Reading::Whole,
            way: 0,
        }
    }

    fn random(world: &World, choices: &mut SmallRng) -> Self {
        let repository = choices.random_range(0..world.repositories.len());
        let it = &world.repositories[repository];
        let object = match choices.random_range(0..100) {
            0..50 => Object::Blob(it.blobs[choices.random_range(0..it.blobs.len())]),
            // Most often somebody else's.
            50..58 => Object::Blob(choices.random_range(0..world.blobs.len())),
            58..62 => {
                let secrets = &world.repositories[SECRET].blobs;
                Object::Blob(secrets[choices.random_range(0..secrets.len())])
            }
            62..72 => Object::Manifest(choices.random_range(0..it.manifests.len())),
            72..96 => Object::Tag(it.tags[choices.random_range(0..it.tags.len())].clone()),
            _ => Object::List,
        };
        let mut ask = Self::whole(repository, object);
        ask.way = choices.random_range(0..3);
        ask.is_head = choices.random_bool(0.2) && !matches!(ask.object, Object::List);
        if let Object::Blob(n) = ask.object {
            let len = world.blobs[n].len();
            ask.range = Range::random(len, choices);
            ask.reading = match choices.random_range(0..10) {
                0 | 1 => Reading::Leave(choices.random_range(0..=len)),
                2 => Reading::Slow(Duration::from_millis(choices.random_range(1..80))),
                _ => Reading::Whole,
            };
        } else if choices.random_bool(0.2) && !matches!(ask.object, Object::List) {
            ask.known = Some(choices.random_range(0..it.manifests.len()));
        }
        ask
    }

    /// What it is about, for the journal.
    pub(crate) fn name(&self, world: &World) -> String {
        let repository = &world.repositories[self.repository];
        match &self.object {
            Object::Blob(n) => world.blobs[*n].digest().to_owned(),
            Object::Manifest(n) => repository.manifests[*n].digest().to_owned(),
            Object::Tag(tag) => format!("{}:{tag}", repository.name),
            Object::List => format!("list of {}", repository.name),
        }
    }

    /// What it is about, as far as trouble differs by it.
    pub(crate) fn subject<'a>(&self, world: &'a World) -> Subject<'a> {
        let repository = &world.repositories[self.repository];
        match &self.object {
            Object::Blob(n) => Subject::Blob(world.blobs[*n].digest()),
            Object::Manifest(n) => Subject::Manifest(repository.manifests[*n].digest()),
            Object::Tag(_) | Object::List => Subject::Name,
        }
    }

    /// The request as it goes out, and the name that the client calls the repository.
    pub(crate) fn head(&self, world: &World) -> (String, String) {
        let repository = &world.repositories[self.repository];
        let (name, query) = repository.called(self.way);
        let path = match &self.object {
            Object::Blob(n) => format!("blobs/{}", world.blobs[*n].digest()),
            Object::Manifest(n) => format!("manifests/{}", repository.manifests[*n].digest()),
            Object::Tag(tag) => format!("manifests/{tag}"),
            Object::List => "tags/list".to_owned(),
        };
        let method = if self.is_head { "HEAD" } else { "GET" };
        let mut head = format!("{method} /v2/{name}/{path}{query} HTTP/1.1\r\nHost: cache\r\n");
        if let Some(range) = self.range {
            head += &format!("Range: bytes={}\r\n", range.text());
        }
        if let Some(known) = self.known {
            let digest = repository.manifests[known].digest();
            head += &format!("If-None-Match: \"{digest}\"\r\n");
        }
        (head + "\r\n", name)
    }

    /// The request on one line.
    fn text(&self, world: &World) -> String {
        let (head, _) = self.head(world);
        let head = head.replace("\r\nHost: cache", "").replace("\r\n", " ");
        format!("{}({:?})", head, self.reading)
    }

    async fn send(&self, run: &Run, instance: &Instance) -> Outcome {
        let asked = Instant::now();
        let mut outcome = Outcome {
            asked,
            headed: asked,
            ended: asked,
            head: None,
            bytes: Bytes::new(),
            end: Some(End::Cut),
            was_ending: false,
        };
        self.take(run, instance, &mut outcome).await;
        outcome.ended = Instant::now();
        outcome.was_ending = instance.is_ending();
        outcome
    }

    async fn take(&self, run: &Run, instance: &Instance, outcome: &mut Outcome) {
        let Ok(mut connection) = Connection::try_open(instance.front.registry).await else {
            return;
        };
        instance.sent.fetch_add(1, Ordering::SeqCst);
        let (head, _) = self.head(&run.world);
        if connection.write(head.as_bytes()).await.is_err() {
            return;
        }
        let method = if self.is_head { "HEAD" } else { "GET" };
        let Ok(mut answer) = connection.try_head(method).await else {
            return;
        };
        instance.has_answered(&answer.head);
        outcome.headed = Instant::now();
        outcome.head = Some(answer.head.clone());
        let mut bytes = BytesMut::new();
        outcome.end = loop {
            if matches!(self.reading, Reading::Leave(n) if bytes.len() >= n) {
                break None;
            }
            if let Reading::Slow(pause) = self.reading {
                run.pause(pause).await;
            }
            match answer.piece().await {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(end) => break Some(end),
            }
        };
        outcome.bytes = bytes.freeze();
    }
}

impl Range {
    fn random(len: usize, choices: &mut SmallRng) -> Option<Self> {
        let place = choices.random_range(0..=len + len / 20);
        match choices.random_range(0..10) {
            0 => Some(Self::Closed(place, place + choices.random_range(0..=len))),
            1 => Some(Self::From(place)),
            2 => Some(Self::Last(choices.random_range(0..=len + 1))),
            3 => Some(Self::From(0)),
            _ => None,
        }
    }

    /// Which bytes of so many it means, the end exclusive; none that are there: `None`.
    pub(crate) fn of(self, len: usize) -> Option<(usize, usize)> {
        let (start, end) = match self {
            Self::Closed(first, last) => (first, len.min(last + 1)),
            Self::From(first) => (first, len),
            Self::Last(n) => (len.saturating_sub(n), len),
        };
        (start < end).then_some((start, end))
    }

    fn text(self) -> String {
        match self {
            Self::Closed(first, last) => format!("{first}-{last}"),
            Self::From(first) => format!("{first}-"),
            Self::Last(n) => format!("-{n}"),
        }
    }
}

impl Repository {
    /// Its name as a client calls it, and the query that goes with it.
    fn called(&self, way: u8) -> (String, String) {
        let namespace = self.namespace();
        match way {
            0 => (self.name.to_owned(), format!("?ns={namespace}")),
            1 if self.of == 0 => (self.name.to_owned(), String::new()),
            _ => (format!("{namespace}/{}", self.name), String::new()),
        }
    }
}

impl Outcome {
    /// What there may be many of.
    fn kind(&self) -> String {
        let Some(head) = &self.head else {
            return "no head".to_owned();
        };
        let end = self.end.map_or("left".to_owned(), |it| format!("{it:?}"));
        format!("{} {} {end}", head.status, head.cache_status())
    }

    fn summary(&self) -> String {
        let Some(head) = &self.head else {
            return "no head".to_owned();
        };
        let (status, how) = (head.status, head.cache_status());
        format!(
            "{status} ({how}), {} bytes, {:?}",
            self.bytes.len(),
            self.end
        )
    }
}

/// How many ask for the same at once, now and then.
const HERD: usize = 12;
