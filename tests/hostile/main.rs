//! Thousands of requests that no client would send, at the real binary.
//!
//! ```text
//! cargo test --test hostile                      # from a new seed, which is printed
//! HOSTILE_SEED=7 HOSTILE_REQUESTS=100000 cargo test --test hostile -- --nocapture
//! ```
//!
//! Each exchange is one request that is wrong, or odd, in one way (`shapes`): its framing, the form of its head, its target, host or
//! path, its size. Good requests come before it on the same connection, and others behind it; it comes at once, in pieces, byte by
//! byte, or only in part. For each is known how it must be answered, and whether the connection may go on (`exchange`):
//!
//! - its status is one of those allowed, its body is the spec's where the answer is ours, and no header is there that is not meant;
//! - there is one answer for each request and none for what is part of another one: behind what can be read in two ways, nothing
//!   is answered;
//! - upstream hears nothing of any of it;
//! - each line of the log is one object in visible characters, none of them is what a client wrote, and each answer has exactly one (`log`).
//!
//! Meanwhile somebody pulls as usual, and at the end nothing is left: connections, descriptors, memory.
//!
//! A second test changes good requests at random, where only what holds for every answer is known, and a third does so where clients have
//! to show who they are. In a fourth it is the registry that sends what it should not. In a fifth all is as in the first, and encrypted.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up has failed"
)]
#![expect(clippy::print_stdout, reason = "seeds are printed")]

mod log;
mod registry;
mod exchange;
mod answers;
mod bridge;
mod shapes;

#[path = "../load/process.rs"]
#[allow(dead_code, reason = "it is made for other tests, which need all of it")]
mod process;

#[path = "../it/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "it is made for other tests, which need all of it"
)]
mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::bridge::bridge;
use crate::exchange::Exchange;
use crate::harness::proxy::Front;
use crate::harness::{
    APP, Authority, Binary, Blob, FakeRegistry, Image, KIB, NAME, ProxyBuilder, TestProxy,
};
use crate::log::Log;
use crate::process::{Usage, is_as_before, turn};
use crate::shapes::Shapes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_39_what_no_client_would_send_is_refused_and_leaves_nothing() {
    let _turn = turn().await;
    let (seed, requests) = (seed(), number("HOSTILE_REQUESTS").unwrap_or(6000));
    println!("HOSTILE_SEED={seed}, {requests} requests");
    let upstream = FakeRegistry::start().await;
    let (binary, image) = started(&upstream).await;
    let target = Target::of(&binary, &image);
    let heard = upstream.log().len();
    // What the process needs once it has had many of them.
    let mut shapes = Shapes::new(seed, &target);
    let mut seen = throw(binary.registry, (0..500).map(|_| shapes.next())).await;
    let before = Usage::of(&binary);

    let over = Arc::new(AtomicBool::new(false));
    let pulling = async {
        let mut pulls = 0;
        while !over.load(Ordering::SeqCst) {
            binary.pull_blob(APP, &image.layers[0]).await;
            binary.pull_manifest(APP, "v1").await;
            pulls += 1;
        }
        assert!(pulls > 0);
    };
    let throwing = async {
        seen.extend(throw(binary.registry, (0..requests).map(|_| shapes.next())).await);
        over.store(true, Ordering::SeqCst);
    };
    tokio::join!(pulling, throwing);
    assert_eq!(upstream.log().len(), heard, "{:?}", upstream.log().last());
    is_as_before(&binary, before).await;
    Log::of(&binary).await.is_sane(&seen);
    let ambiguous = [("reason", "ambiguous")];
    assert!(binary.metric("layerhold_refusals_total", &ambiguous).await > 0.0);
    let cold = Blob::random(KIB);
    upstream.serve_blob(APP, &cold);
    binary.pull_blob(APP, &cold).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_requests_that_are_changed_at_random_get_no_answer_that_is_not_one() {
    let _turn = turn().await;
    let (seed, requests) = (seed(), number("HOSTILE_REQUESTS").unwrap_or(6000) / 3);
    println!("HOSTILE_SEED={seed}, {requests} requests");
    let upstream = FakeRegistry::start().await;
    upstream.allow_concurrent_transfers();
    let (binary, image) = started(&upstream).await;
    changed_at_random(&binary, &image, seed, requests).await;
    for asked in upstream.log() {
        let is_plain = asked.path.bytes().all(|it| it.is_ascii_graphic());
        assert!(is_plain && asked.path.starts_with("/v2/"), "{asked:?}");
        for name in ["x-smuggled", "authorization", "x-forwarded-for"] {
            assert_eq!(asked.header(name), None, "{asked:?}");
        }
    }
    binary.pull_manifest(APP, "v1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_shows_something_like_a_password_gets_and_leaves_nothing() {
    let _turn = turn().await;
    let (seed, requests) = (seed(), number("HOSTILE_REQUESTS").unwrap_or(6000) / 3);
    println!("HOSTILE_SEED={seed}, {requests} requests");
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[4 * KIB]);
    let builder = builder(&upstream);
    let hash = bcrypt::hash("hunter2", 4).unwrap();
    let file = builder.write("htpasswd", &format!("ann:{hash}\n"));
    let binary = Binary::start(&builder.set("access.htpasswd_file", file)).await;
    changed_at_random(&binary, &image, seed, requests).await;
    let log = Log::of(&binary).await;
    log.has_none_of(&["hunter2", shapes::PASSWORD]);
    // Who is who it says is served, whoever guessed from there.
    let login = binary
        .get("/v2/")
        .header("Authorization", format!("Basic {}", shapes::PASSWORD));
    login.whole().await.is(200, b"{}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pitfall_39_what_no_client_would_send_is_refused_over_tls_as_well() {
    let _turn = turn().await;
    let (seed, requests) = (seed(), number("HOSTILE_REQUESTS").unwrap_or(6000) / 6);
    println!("HOSTILE_SEED={seed}, {requests} requests");
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[4 * KIB]);
    upstream.serve_image(APP, "v1", &image);
    let authority = Authority::new();
    let identity = authority.vouch(&[NAME]);
    let builder = builder(&upstream);
    let certificate = builder.write("tls.crt", &identity.certificate_pem);
    let key = builder.write("tls.key", &identity.key_pem);
    let builder = builder.set("tls.certificate", certificate);
    let binary = Binary::start(&builder.set("tls.key", key)).await;
    let front = Front {
        registry: bridge(binary.registry, authority.client()).await,
        admin: binary.admin,
    };
    front.pull_manifest(APP, "v1").await;
    front.wait_for_hit(APP, &image.layers[0]).await;
    let heard = upstream.log().len();
    let mut shapes = Shapes::new(seed, &Target::of(&binary, &image));
    let seen = throw(front.registry, (0..requests).map(|_| shapes.next())).await;
    assert_eq!(upstream.log().len(), heard, "{:?}", upstream.log().last());
    Log::through(&front, &binary).await.is_sane(&seen);
    let ambiguous = [("reason", "ambiguous")];
    assert!(front.metric("layerhold_refusals_total", &ambiguous).await > 0.0);
}

async fn changed_at_random(binary: &Binary, image: &Image, seed: u64, requests: u64) {
    let mut shapes = Shapes::new(seed, &Target::of(binary, image));
    let login = binary
        .get("/v2/")
        .header("Authorization", format!("Basic {}", shapes::PASSWORD));
    login.whole().await.is(200, b"{}");
    let seen = throw(binary.registry, (0..requests).map(|_| shapes.changed())).await;
    Log::of(binary).await.is_sane(&seen);
    let failed = [("status", "500")];
    let failed = binary.metric("layerhold_requests_total", &failed).await;
    assert_eq!(failed, 0.0, "a request's code panicked");
}

/// What is there to be asked for.
pub(crate) struct Target {
    pub(crate) blob: String,
}

impl Target {
    fn of(_: &Binary, image: &Image) -> Self {
        let blob = image.layers[0].digest().to_owned();
        Self { blob }
    }
}

/// The binary in front of a registry, with an image in its cache.
async fn started(upstream: &FakeRegistry) -> (Binary, Image) {
    let image = Image::random(&[4 * KIB]);
    upstream.serve_image(APP, "v1", &image);
    let binary = Binary::start(&builder(upstream)).await;
    binary.pull_manifest(APP, "v1").await;
    binary.wait_for_hit(APP, &image.layers[0]).await;
    (binary, image)
}

fn builder(upstream: &FakeRegistry) -> ProxyBuilder {
    TestProxy::in_front_of(upstream)
        .set("freshness.fresh_for", "1h")
        // Whoever does not go on is hung up on.
        .set("timeouts.header_read", "3s")
        .set("log_level", "debug")
}

/// Sends all of them, some at a time: the ids of the requests that were answered.
async fn throw(to: SocketAddr, exchanges: impl Iterator<Item = Exchange>) -> Vec<String> {
    let (mut thrown, mut seen) = (JoinSet::new(), Vec::new());
    for exchange in exchanges {
        thrown.spawn(exchange.run(to));
        if thrown.len() >= AT_ONCE
            && let Some(ended) = thrown.join_next().await
        {
            seen.extend(ended.unwrap());
        }
    }
    while let Some(ended) = thrown.join_next().await {
        seen.extend(ended.unwrap());
    }
    seen
}

fn seed() -> u64 {
    number("HOSTILE_SEED").unwrap_or_else(|| rand::rng().random_range(0..1 << 32))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// The choices that follow from a seed.
pub(crate) fn choices(seed: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed)
}

/// Connections at once.
const AT_ONCE: usize = 64;
