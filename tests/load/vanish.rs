//! Clients that are gone without a word.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::crowd::{blob_head, connect, crowd, ping};
use crate::harness::{APP, At, Binary, Blob, FakeRegistry, MIB, TestProxy, get, within};
use crate::process::{Usage, eventually, is_as_before, turn};

/// When a client goes.
#[derive(Clone, Copy, Debug)]
enum Gone {
    AtOnce,
    WithinHead,
    BeforeAnswer,
    WithinHit,
    WithinMiss,
    Idle,
}

#[tokio::test]
async fn invariant_5_clients_that_vanish_leave_nothing_behind() {
    let _turn = turn().await;
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream)
        // For those whose end nobody tells.
        .set("timeouts.header_read", "3s")
        .set("timeouts.write_idle", "3s");
    let binary = Binary::start(&builder).await;
    let [hit, cold] = [(); 2].map(|()| Blob::random(32 * MIB));
    upstream.serve_blob(APP, &hit);
    upstream.serve_blob(APP, &cold);
    binary.wait_for_hit(APP, &hit).await;
    let before = Usage::of(&binary);

    let gate = upstream.hold(get(cold.digest()), At::Byte(16 * MIB));
    let all = [
        Gone::AtOnce,
        Gone::WithinHead,
        Gone::BeforeAnswer,
        Gone::WithinHit,
        Gone::WithinMiss,
        Gone::Idle,
    ];
    for gone in all {
        // A reset, an orderly end, and silence.
        let silent = crowd(300, async |n| {
            let mut stream = connect(binary.registry, n).await;
            gone.behave(&mut stream, [&hit, &cold]).await;
            match n % 3 {
                0 => {
                    let linger = Some(Duration::ZERO);
                    rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
                    None
                }
                1 => None,
                _ => Some(stream),
            }
        });
        let silent = silent.await;
        binary.pull_blob(APP, &hit).await;
        eventually("the silent ones to be left", async || {
            let open = binary.metric("layerhold_connections", &[]).await;
            // What waits for a fill that does not come is in nobody's way.
            let waits = matches!(gone, Gone::WithinMiss | Gone::BeforeAnswer);
            let allowed = if waits { 100.0 } else { 0.0 };
            (open <= allowed)
                .then_some(())
                .ok_or(format!("{gone:?}: {open}"))
        })
        .await;
        drop(silent);
    }
    // What they asked for comes in all the same.
    gate.open();
    binary.wait_for_fills("published", 2.0).await;
    binary.pull_blob(APP, &cold).await;
    assert_eq!(upstream.count(&get(cold.digest())), 1);
    is_as_before(&binary, before).await;
}

impl Gone {
    /// Does what comes before.
    async fn behave(self, stream: &mut TcpStream, [hit, cold]: [&Blob; 2]) {
        let mut some = vec![0; 100_000];
        match self {
            Self::AtOnce => {}
            Self::WithinHead => stream.write_all(b"GET /v2/ HT").await.unwrap(),
            Self::BeforeAnswer => {
                let head = blob_head(cold);
                stream.write_all(head.as_bytes()).await.unwrap();
            }
            Self::WithinHit | Self::WithinMiss => {
                let blob = if matches!(self, Self::WithinHit) {
                    hit
                } else {
                    cold
                };
                let head = blob_head(blob);
                stream.write_all(head.as_bytes()).await.unwrap();
                let read = within("bytes", stream.read_exact(&mut some)).await;
                read.unwrap();
            }
            Self::Idle => {
                ping(stream).await.unwrap();
            }
        }
    }
}
