//! Bodies that share a connection.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::harness::{APP, NAME, within};
use crate::process::turn;
use crate::scene::{Counted, Scene, Way, choices};
use crate::{LENS, Usage, is_small, run_length, seed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_over_http2() {
    let _turn = turn().await;
    let scene = Arc::new(Scene::start(seed(), (Way::Tls, LENS), |it| it).await);
    scene.warm().await;
    let (before, used) = (Counted::by(&scene.binary).await, Usage::of(&scene.binary));
    let (mut tasks, until) = (JoinSet::new(), Instant::now() + run_length());
    for n in 0..CONNECTIONS {
        let stream = scene.tls().clone().offering(&["h2"]);
        let stream = stream.try_open(scene.binary.registry).await.unwrap();
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        for m in 0..STREAMS {
            let (scene, sender) = (Arc::clone(&scene), sender.clone());
            let choices = choices(scene.seed, 1 + n * STREAMS + m);
            tasks.spawn(async move { pull(&scene, sender, choices, until).await });
        }
    }
    let (mut streams, mut left) = (0, 0);
    while let Some(ended) = tasks.join_next().await {
        let (complete, gone) = ended.unwrap();
        (streams, left) = (streams + complete, left + gone);
    }
    scene.nobody_is_left().await;
    let counted = Counted::by(&scene.binary).await;
    println!("{streams} streams, {left} left");
    assert_eq!(counted.failed, before.failed);
    let complete = counted.complete - before.complete;
    let all = f64::from(streams + left);
    assert!((f64::from(streams)..=all).contains(&complete), "{complete}");
    assert_eq!(counted.requests - before.requests, all);
    is_small(&scene, used).await;
}

/// Pulls parts of anything: how many it read to the end, and how many not.
async fn pull(
    scene: &Scene,
    mut sender: SendRequest<Empty<Bytes>>,
    mut choices: SmallRng,
    until: Instant,
) -> (u32, u32) {
    let (mut complete, mut gone) = (0, 0);
    while Instant::now() < until {
        let content = &scene.contents[choices.random_range(0..scene.contents.len())];
        let start = choices.random_range(0..content.len());
        let longest = 1 << choices.random_range(0..24);
        let end = content.len().min(start + choices.random_range(1..=longest));
        let request = Request::get(format!(
            "https://{NAME}/v2/{APP}/blobs/{}",
            content.digest()
        ))
        .header("Range", format!("bytes={start}-{}", end - 1))
        .body(Empty::new());
        let answer = within("a response", sender.send_request(request.unwrap())).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 206);
        let leaves_at = choices.random_ratio(1, 60);
        let leaves_at = leaves_at.then(|| choices.random_range(start..end));
        let (mut body, mut at) = (answer.into_body(), start);
        let is_whole = loop {
            if leaves_at.is_some_and(|it| at >= it) {
                break false;
            }
            match within("a frame", body.frame()).await {
                Some(frame) => {
                    let bytes = frame.unwrap().into_data().unwrap();
                    assert_eq!(content.differs(at, &bytes), None, "{start} to {end}");
                    at += bytes.len() as u64;
                }
                None => break true,
            }
        };
        match is_whole {
            true => {
                assert_eq!(at, end);
                complete += 1;
            }
            false => gone += 1,
        }
    }
    (complete, gone)
}

const CONNECTIONS: u64 = 4;
const STREAMS: u64 = 6;
