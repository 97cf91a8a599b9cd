//! The real binary in front of a registry, what it has, and clients that pull it.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::{Tally, pull};
use crate::content::Content;
use crate::harness::proxy::{published, sum};
use crate::harness::{
    APP, Answer, Authority, Binary, Blob, Connection, End, MIB, Manifest, NAME, ProxyBuilder,
    TlsClient, poll,
};
use crate::source::{Pace, Source};

/// What clients know.
pub(crate) struct Scene {
    pub(crate) seed: u64,
    pub(crate) source: Source,
    pub(crate) builder: ProxyBuilder,
    pub(crate) binary: Binary,
    pub(crate) contents: Vec<Content>,
    pub(crate) manifests: Vec<(String, Manifest)>,
    pub(crate) tally: Tally,
    tls: Option<TlsClient>,
}

/// Asks for a blob, from somewhere on to its end; the head is there.
pub(crate) async fn ask(mut connection: Connection, content: &Content, from: u64) -> Answer {
    let range = match from {
        0 => String::new(),
        from => format!("Range: bytes={from}-\r\n"),
    };
    let digest = content.digest();
    let head = format!("GET /v2/{APP}/blobs/{digest} HTTP/1.1\r\nHost: cache\r\n{range}\r\n");
    connection.write(head.as_bytes()).await.unwrap();
    let answer = connection.head("GET").await;
    let status = if from == 0 { 200 } else { 206 };
    assert_eq!(answer.head.status, status, "{:?}", answer.head);
    answer
}

/// Pulls a blob, whole and right: how the cache came by it.
pub(crate) async fn whole(connection: Connection, content: &Content) -> String {
    let mut answer = ask(connection, content, 0).await;
    let mut at = 0;
    let end = loop {
        match answer.piece().await {
            Ok(piece) => {
                assert_eq!(content.differs(at, &piece), None);
                at += piece.len() as u64;
            }
            Err(end) => break end,
        }
    };
    assert_eq!((at, end), (content.len(), End::Complete));
    answer.head.cache_status().to_owned()
}

/// How clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Plain,
    Tls,
}

impl Scene {
    /// Starts everything; nothing is pulled yet. `change` is made to the configuration.
    pub(crate) async fn start(
        seed: u64,
        (way, lens): (Way, &[u64]),
        change: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
    ) -> Self {
        Self::start_by(seed, (way, lens), change, Binary::start).await
    }

    /// The same, with a way of its own to start the binary.
    pub(crate) async fn start_by(
        seed: u64,
        (way, lens): (Way, &[u64]),
        change: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
        start: impl AsyncFnOnce(&ProxyBuilder) -> Binary,
    ) -> Self {
        let source = Source::start().await;
        let mut choices = choices(seed, 0);
        let contents = lens.iter().map(|len| Content::new(choices.random(), *len));
        let contents: Vec<Content> = contents.collect();
        for content in &contents {
            source.serve(content, Pace::Even);
        }
        let manifests = (1..4).map(|n| {
            let layers: Vec<Blob> = (0..n * n).map(|n| Blob::seeded(seed + n, 1)).collect();
            let manifest = Manifest::oci(&layers[0], &layers.iter().collect::<Vec<_>>());
            source.tag(&format!("v{n}"), &manifest);
            (format!("v{n}"), manifest)
        });
        let manifests = manifests.collect();
        let builder = source.builder().set("freshness.fresh_for", "1h");
        let authority = Authority::new();
        let builder = match way {
            Way::Plain => builder,
            Way::Tls => with_tls(builder, &authority),
        };
        let builder = change(builder);
        Self {
            seed,
            binary: start(&builder).await,
            tls: (way == Way::Tls).then(|| authority.client()),
            source,
            builder,
            contents,
            manifests,
            tally: Tally::default(),
        }
    }

    /// A new connection.
    pub(crate) async fn open(&self) -> Connection {
        match &self.tls {
            None => Connection::open(self.binary.registry).await,
            Some(tls) => tls.open(self.binary.registry).await,
        }
    }

    /// Speaks to it in its way.
    pub(crate) fn tls(&self) -> &TlsClient {
        self.tls.as_ref().unwrap()
    }

    /// Pulls all blobs until they are hits.
    pub(crate) async fn warm(&self) {
        for content in &self.contents {
            poll("a hit", async || {
                let status = self.pull(content).await;
                status.starts_with("layerhold; hit").then_some(())
            })
            .await;
        }
    }

    /// Pulls one blob, whole and right: how the cache came by it.
    pub(crate) async fn pull(&self, content: &Content) -> String {
        whole(self.open().await, content).await
    }

    /// Has so many clients pull for so long.
    pub(crate) async fn crowd(self: &Arc<Self>, clients: u64, length: Duration) {
        let (mut tasks, until) = (JoinSet::new(), Instant::now() + length);
        for n in 1..=clients {
            let (scene, choices) = (Arc::clone(self), choices(self.seed, n));
            tasks.spawn(async move { pull(&scene, choices, until).await });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap_or_else(|panic| panic!("{}: {panic}", self.seed));
        }
        self.nobody_is_left().await;
    }

    /// Waits until no connection is.
    pub(crate) async fn nobody_is_left(&self) {
        let name = "layerhold_connections";
        self.binary.wait_for_metric(name, &[], |it| it == 0.0).await;
    }

    /// The file of a blob.
    pub(crate) fn file(&self, content: &Content) -> std::path::PathBuf {
        published(&self.builder.dir(), content.digest())
    }
}

/// What the binary has counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(crate) requests: f64,
    pub(crate) complete: f64,
    pub(crate) abandoned: f64,
    pub(crate) failed: f64,
    pub(crate) bytes: f64,
    pub(crate) hits: f64,
    /// Bytes that the kernel sent from files.
    pub(crate) by_kernel: f64,
}

impl Counted {
    pub(crate) async fn by(binary: &Binary) -> Self {
        let text = binary.metrics().await;
        let ended = |end| sum(&text, "layerhold_responses_total", &[("end", end)]);
        let outcome = |it| sum(&text, "layerhold_requests_total", &[("outcome", it)]);
        Self {
            requests: sum(&text, "layerhold_requests_total", &[]),
            complete: ended("complete"),
            abandoned: ended("abandoned"),
            failed: ended("failed"),
            bytes: sum(&text, "layerhold_response_bytes_total", &[]),
            hits: outcome("hit"),
            by_kernel: sum(&text, "layerhold_response_sendfile_bytes_total", &[]),
        }
    }

    /// Fails the test unless what was counted since `before` is what clients got.
    pub(crate) fn agrees(self, before: Self, tally: &Tally) {
        let [asked, complete, taken, left] =
            [&tally.asked, &tally.complete, &tally.taken, &tally.left].map(Tally::read);
        let requests = self.requests - before.requests;
        let ended = self.complete - before.complete;
        let abandoned = self.abandoned - before.abandoned;
        let bytes = self.bytes - before.bytes;
        println!(
            "{asked} requests, {complete} read to their end, {:.0} MiB; {abandoned} abandoned",
            taken / MIB as f64
        );
        let told = format!("{self:?} after {before:?}: {tally:?}");
        assert_eq!(self.failed, before.failed, "{told}");
        // Who left may have got all, and nobody says how much of what was in the kernel he had.
        assert!((complete..=asked).contains(&ended), "{told}");
        assert!((complete..=asked).contains(&requests), "{told}");
        assert_eq!(requests, ended + abandoned, "{told}");
        assert!((taken..=taken + left).contains(&bytes), "{told}");
    }
}

/// A binary that speaks TLS, by the word of `authority`.
pub(crate) fn with_tls(builder: ProxyBuilder, authority: &Authority) -> ProxyBuilder {
    let identity = authority.vouch(&[NAME]);
    let certificate = builder.write("tls.crt", &identity.certificate_pem);
    let key = builder.write("tls.key", &identity.key_pem);
    builder
        .set("tls.certificate", certificate)
        .set("tls.key", key)
        .set("tls.http2", true)
}

/// The choices of one of many.
pub(crate) fn choices(seed: u64, n: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(n))
}
