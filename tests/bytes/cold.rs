//! Blobs that are being read while they arrive.

use std::ops::Range;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::content::Content;
use crate::harness::{APP, End};
use crate::process::turn;
use crate::scene::{Counted, Scene, Way, choices};
use crate::source::Pace;
use crate::{CLIENTS, Usage, is_small, run_length, seed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_while_it_arrives() {
    let _turn = turn().await;
    followed(Way::Plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_over_tls_while_it_arrives() {
    let _turn = turn().await;
    followed(Way::Tls).await;
}

/// Blob after blob comes in, by fits and starts, and everybody follows it from anywhere; some are not what they should be.
async fn followed(way: Way) {
    let change = |it: crate::harness::ProxyBuilder| it.set("cache.size", "256MiB");
    let scene = Arc::new(Scene::start(seed(), (way, &[]), change).await);
    let mut choices = choices(scene.seed, 0);
    // What the process needs once it has had some.
    let first = Content::new(choices.random(), 20 << 20);
    assert_eq!(round(&scene, (&first, None), &mut choices).await, 1);
    let (before, used) = (Counted::by(&scene.binary).await, Usage::of(&scene.binary));
    let until = Instant::now() + run_length();
    let (mut rounds, mut right) = (0, 0);
    while Instant::now() < until || rounds < 4 {
        let content = Content::new(choices.random(), choices.random_range(1..24 << 20));
        let spoiled = (rounds % 4 == 3).then(|| choices.random_range(0..content.len()));
        let transfers = round(&scene, (&content, spoiled), &mut choices).await;
        if spoiled.is_none() {
            // One for all of them, and parts for who is far ahead.
            assert_eq!(transfers, 1);
            right += 1;
        }
        rounds += 1;
    }
    println!("{rounds} blobs, {right} of them right");
    let counted = Counted::by(&scene.binary).await;
    assert!(counted.complete > before.complete, "{counted:?}");
    assert!(counted.failed > before.failed, "{counted:?}");
    is_small(&scene, used).await;
}

/// Everybody pulls some of a blob that is not here yet: how often it was asked for whole upstream.
async fn round(
    scene: &Arc<Scene>,
    (content, spoiled): (&Content, Option<u64>),
    choices: &mut SmallRng,
) -> usize {
    let transfers = scene.source.transfers();
    match spoiled {
        None => scene.source.serve(content, Pace::Bursty),
        Some(at) => scene.source.serve_spoiled(content, Pace::Bursty, at),
    }
    let mut readers = JoinSet::new();
    for n in 0..CLIENTS {
        let len = content.len();
        let part = match n {
            0..4 => 0..len,
            _ => {
                let start = choices.random_range(0..len);
                let end = choices.random_range(start..len) + 1;
                start..if choices.random() { len } else { end }
            }
        };
        let (scene, content) = (Arc::clone(scene), content.clone());
        readers.spawn(async move { follow(&scene, (&content, spoiled), part).await });
    }
    while let Some(ended) = readers.join_next().await {
        ended.unwrap();
    }
    scene.nobody_is_left().await;
    scene.source.transfers() - transfers
}

/// Reads a part. All of it comes and is right; or nobody gets the last byte of what is wrong.
async fn follow(scene: &Scene, (content, spoiled): (&Content, Option<u64>), part: Range<u64>) {
    let mut connection = scene.open().await;
    let is_whole = part == (0..content.len());
    let range = match is_whole {
        true => String::new(),
        false => format!("Range: bytes={}-{}\r\n", part.start, part.end - 1),
    };
    let digest = content.digest();
    let head = format!("GET /v2/{APP}/blobs/{digest} HTTP/1.1\r\nHost: cache\r\n{range}\r\n");
    connection.write(head.as_bytes()).await.unwrap();
    let mut answer = connection.head("GET").await;
    if spoiled.is_some() && answer.head.status >= 500 {
        // It came after the end.
        return;
    }
    let expected = if is_whole { 200 } else { 206 };
    assert_eq!(answer.head.status, expected, "{:?}", answer.head);
    let mut at = part.start;
    let end = loop {
        match answer.piece().await {
            Ok(piece) => {
                let wrong = match content.differs(at, &piece) {
                    // Parts are not verified that are gone before the end is here.
                    Some(wrong) if Some(wrong) == spoiled => {
                        let rest = usize::try_from(wrong - at).unwrap() + 1;
                        content.differs(wrong + 1, &piece[rest..])
                    }
                    other => other,
                };
                assert_eq!(wrong, None, "{part:?} of {}", content.len());
                at += piece.len() as u64;
            }
            Err(end) => break end,
        }
    };
    match spoiled {
        None => assert_eq!((end, at), (End::Complete, part.end), "{:?}", answer.head),
        Some(_) if part.end < content.len() => {}
        Some(_) => {
            assert_ne!(end, End::Complete, "{part:?} of {}", content.len());
            assert!(at < content.len());
        }
    }
}
