//! A long way from here: a network namespace at the other end of two TUN devices, and a relay between them that holds every
//! packet for a while.
//!
//! ```text
//! the binary -- device -- relay (waits) -- device -- clients
//! `------- our namespace ------´          `- another one -´
//! ```
#![expect(
    unsafe_code,
    reason = "a TUN device is made by an ioctl, and a namespace by unshare, which no safe function offers"
)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, sleep};
use std::time::Duration;

use rand::Rng;
use rustix::ioctl::{Updater, ioctl};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Two places that are far from each other, for as long as the process runs.
pub(crate) struct Distance {
    /// Where somebody who is here can listen.
    pub(crate) here: Ipv4Addr,
    /// Where clients are.
    pub(crate) there: Ipv4Addr,
    namespace: Arc<File>,
}

impl Distance {
    /// It takes a packet so long to get to the other side.
    pub(crate) fn new(delay: Duration) -> Self {
        // Of the network for benchmarks (RFC 2544), so that nobody is cut off.
        let n: u16 = rand::rng().random_range(0..16384);
        let address =
            |last| Ipv4Addr::from_bits((198 << 24) + (18 << 16) + u32::from(n) * 4 + last);
        let (here, there) = (address(1), address(2));
        let name = format!("far{n}");
        let near_end = device(&name, here);
        // A thread may be elsewhere, alone.
        let far_end = thread::spawn(move || {
            // SAFETY: descriptors stay shared, and nothing else of this thread is used by another one.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            run("link", &["set", "lo", "up"]);
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            (device(&name, there), namespace)
        });
        let (far_end, namespace) = far_end.join().unwrap();
        let (near_end, far_end) = (Arc::new(near_end), Arc::new(far_end));
        relay(Arc::clone(&near_end), Arc::clone(&far_end), delay);
        relay(far_end, near_end, delay);
        Self {
            here,
            there,
            namespace: Arc::new(namespace),
        }
    }

    /// Connects from there.
    pub(crate) async fn connect(&self, to: SocketAddr) -> TcpStream {
        let namespace = Arc::clone(&self.namespace);
        let (done, connected) = tokio::sync::oneshot::channel();
        thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&*namespace), network).unwrap();
            let stream = std::net::TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            stream.set_nonblocking(true).unwrap();
            // Who asked may have failed.
            let _ = done.send(stream);
        });
        TcpStream::from_std(connected.await.unwrap()).unwrap()
    }
}

/// Makes a device with this address in the namespace of this thread. It is gone with its file.
fn device(name: &str, address: Ipv4Addr) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let file = file.unwrap();
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI,
        unused: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the operation reads and writes a `struct ifreq`, whose layout this is (netdevice(7)), and keeps nothing of it.
    unsafe { ioctl(&file, Updater::<TUNSETIFF, _>::new(&mut request)) }.unwrap();
    run("addr", &["add", &format!("{address}/30"), "dev", name]);
    // Large packets, for each takes the relay some microseconds.
    run(
        "link",
        &["set", name, "mtu", "9000", "txqueuelen", "10000", "up"],
    );
    file
}

fn run(object: &str, words: &[&str]) {
    let done = Command::new("ip").arg(object).args(words).output().unwrap();
    assert!(done.status.success(), "ip {object} {words:?}: {done:?}");
}

/// Passes on what comes, each packet after so long.
fn relay(from: Arc<File>, to: Arc<File>, delay: Duration) {
    let (passed, held) = channel();
    thread::spawn(move || take(&from, &passed, delay));
    thread::spawn(move || give(&to, &held));
}

fn take(mut from: &File, passed: &Sender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut packet = vec![0; 1 << 16];
    while let Ok(len) = from.read(&mut packet) {
        let due = Instant::now() + delay;
        if passed.send((due, packet[..len].to_vec())).is_err() {
            return;
        }
    }
}

fn give(mut to: &File, held: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, packet)) = held.recv() {
        sleep(due.saturating_duration_since(Instant::now()));
        // A packet may be lost.
        let _ = to.write(&packet);
    }
}

/// What names a device to make (`struct ifreq`).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    unused: [u8; 22],
}

const IFF_TUN: i16 = 1;
const IFF_NO_PI: i16 = 0x1000;
/// `_IOW('T', 202, int)`.
const TUNSETIFF: u32 = 0x4004_54ca;
const PATIENCE: Duration = Duration::from_secs(10);
