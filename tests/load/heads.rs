//! Clients whose heads are late, or large.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::crowd::{connect, crowd, ping_with};
use crate::harness::{APP, Binary, Blob, FakeRegistry, KIB, MIB, TestProxy};
use crate::process::{Usage, counted, is_as_before, turn};

#[tokio::test]
async fn invariant_10_clients_that_dawdle_over_their_heads_go_and_take_nobody_along() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream)
        .set("timeouts.header_read", "5s")
        .set("limits.connections", i64::try_from(DAWDLERS).unwrap());
    let binary = Binary::start(&builder).await;
    let blob = Blob::random(4 * MIB);
    upstream.serve_blob(APP, &blob);
    binary.wait_for_hit(APP, &blob).await;
    let before = Usage::of(&binary);

    // All places but a few.
    let streams = crowd(DAWDLERS - 50, |n| connect(binary.registry, n)).await;
    let dawdling = join_all(streams.into_iter().map(dawdle));
    let others = async {
        binary.pull_blob(APP, &blob).await;
        let usage = Usage::of(&binary);
        usage.costs(before, ("dawdlers", DAWDLERS), 32 * KIB, 1.0);
        // More than there are places for: whoever comes last gets one of those that are thrown out.
        let more = crowd(100, |n| connect(binary.registry, n)).await;
        binary.pull_blob(APP, &blob).await;
        join_all(more.into_iter().map(dawdle)).await;
    };
    tokio::join!(dawdling, others);
    is_as_before(&binary, before).await;
}

#[tokio::test]
async fn invariant_10_a_flood_of_large_heads_costs_a_buffer_each() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let binary = Binary::start(&TestProxy::in_front_of(&upstream)).await;
    let blob = Blob::random(4 * MIB);
    upstream.serve_blob(APP, &blob);
    binary.wait_for_hit(APP, &blob).await;
    let before = Usage::of(&binary);

    let largest = headers(90, 600);
    let (many, large) = (headers(5000, 1), headers(2, 64 * KIB));
    for round in 0..3 {
        let flood = crowd(HEADS, async |n| {
            let mut stream = connect(binary.registry, n).await;
            let of_many = [&largest, &largest, &many, &large][n % 4];
            (n % 4, ping_with(&mut stream, of_many).await, stream)
        });
        let flood = flood.await;
        let statuses = counted(
            flood
                .iter()
                .map(|(kind, status, _)| (*kind, status.as_deref())),
        );
        println!("round {round}: {statuses:?}");
        let seen: BTreeSet<_> = statuses.keys().copied().collect();
        let is_right = |(kind, status): &(usize, Option<&str>)| match kind {
            0 | 1 => *status == Some("200"),
            _ => matches!(status, Some("431") | None),
        };
        assert!(seen.iter().all(is_right), "{seen:?}");
        let usage = Usage::of(&binary);
        usage.costs(before, ("large heads", HEADS), 128 * KIB, 1.0);
        binary.pull_blob(APP, &blob).await;
    }
    is_as_before(&binary, before).await;
}

/// Sends a head, byte by byte and without end, until it is interrupted.
async fn dawdle(mut stream: TcpStream) {
    let head = b"GET /v2/ HTTP/1.1\r\nX: "
        .iter()
        .chain(std::iter::repeat(&b'x'));
    for byte in head {
        if stream.write_u8(*byte).await.is_err() {
            return;
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// So many headers with values of so many bytes.
fn headers(n: usize, bytes: usize) -> String {
    let value = "v".repeat(bytes);
    let mut text = String::new();
    for n in 0..n {
        write!(text, "X-{n}: {value}\r\n").unwrap();
    }
    text
}

const DAWDLERS: usize = 2000;
const HEADS: usize = 1000;
