//! What waits in the kernel for a client: little where it is near, and as much as the way is long where it is far.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng;
use tokio::net::TcpStream;

use crate::content::Content;
use crate::harness::{Binary, Connection, KIB, MIB};
use crate::process::turn;
use crate::scene::{Scene, Way, choices, whole};
use crate::seed;
use crate::source::{Pace, Source};
use crate::tun::Distance;

/// What the kernel says of a connection of the binary.
#[derive(Clone, Copy, Debug, Default)]
struct Socket {
    /// Bytes that its send buffer may have.
    buffer: usize,
    /// Bytes on their way, which the client has not said to have.
    in_flight: usize,
    /// Bytes that were sent so far.
    sent: usize,
}

impl Socket {
    /// Those from a place to another one.
    fn all(from: SocketAddr, to: IpAddr) -> Vec<Self> {
        let filter = format!("src {from} and dst {to}");
        let told = Command::new("ss").args(["-tinmOH"]).arg(filter).output();
        let told = told.unwrap();
        assert!(told.status.success(), "{told:?}");
        let text = String::from_utf8(told.stdout).unwrap();
        text.lines().map(Self::parse).collect()
    }

    fn parse(line: &str) -> Self {
        let number = |name: &str| {
            let (_, rest) = line.split_once(name)?;
            let end = rest.find(|it: char| !it.is_ascii_digit());
            rest[..end.unwrap_or(rest.len())].parse::<usize>().ok()
        };
        let packets = number(" unacked:").unwrap_or(0);
        Self {
            buffer: number(",tb").unwrap(),
            in_flight: packets * number(" mss:").unwrap_or(0),
            sent: number(" bytes_sent:").unwrap_or(0),
        }
    }
}

/// Looks at the socket that a blob comes from, to an address, while it is pulled: the most that was seen once some of it had
/// come.
async fn watched(from: SocketAddr, to: IpAddr, pulling: impl Future<Output = String>) -> Socket {
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let looking = tokio::task::spawn_blocking(move || {
        let mut most = Socket::default();
        while !over.load(Ordering::SeqCst) {
            for it in Socket::all(from, to) {
                if it.sent >= BEGUN {
                    most.buffer = most.buffer.max(it.buffer);
                    most.in_flight = most.in_flight.max(it.in_flight);
                    most.sent = most.sent.max(it.sent);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        most
    });
    pulling.await;
    is_over.store(true, Ordering::SeqCst);
    looking.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_to_a_client_that_is_far_is_filled() {
    let _turn = turn().await;
    let distance = Distance::new(Duration::from_millis(10));
    let source = Source::start().await;
    let content = Content::new(choices(seed(), 0).random(), 64 << 20);
    source.serve(&content, Pace::Even);
    let builder = source
        .builder()
        .set("listen", vec![format!("{}:0", distance.here)]);
    let binary = Binary::start(&builder).await;
    let mut most = Socket::default();
    for _ in 0..10 {
        let stream = distance.connect(binary.registry).await;
        let to = stream.local_addr().unwrap().ip();
        assert_eq!(to, distance.there);
        let pulling = whole(Connection::over(stream), &content);
        let seen = watched(binary.registry, to, pulling).await;
        println!("{seen:?}");
        most.buffer = most.buffer.max(seen.buffer);
        most.in_flight = most.in_flight.max(seen.in_flight);
        // More than a client that is near may have waiting, and more of that on its way.
        if most.buffer > 2 * NEAR_BYTES && most.in_flight > NEAR_BYTES {
            return;
        }
    }
    panic!("{most:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_waits_for_a_client_that_is_near() {
    let _turn = turn().await;
    for way in [Way::Plain, Way::Tls] {
        let scene = Scene::start(seed(), (way, &[128 << 20]), |it| it).await;
        let content = &scene.contents[0];
        scene.warm().await;
        let from = scene.binary.registry;
        let mut sent = 0;
        for _ in 0..3 {
            let stream = TcpStream::connect(from).await.unwrap();
            let to = stream.local_addr().unwrap().ip();
            let connection = match way {
                Way::Plain => Connection::over(stream),
                Way::Tls => Connection::over(scene.tls().over(stream).await.unwrap()),
            };
            let seen = watched(from, to, whole(connection, content)).await;
            println!("{way:?}: {seen:?}");
            assert!(seen.buffer <= NEAR_BYTES + 64 * KIB, "{way:?}: {seen:?}");
            sent = sent.max(seen.sent);
        }
        assert!(sent >= BEGUN, "{way:?}: it was never looked at");
    }
}

/// Twice what is asked for (socket(7)), for a client that is near.
const NEAR_BYTES: usize = 416 * KIB;
/// From here on everything has been seen to.
const BEGUN: usize = 4 * MIB;
