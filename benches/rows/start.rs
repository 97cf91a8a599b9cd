//! P12: a start on a directory with many blobs: when the first of them is served, when the index knows them all, and what it
//! costs in memory.
//!
//! On this hangs that there is no database: the directory is the truth, and the index is read from it while the server
//! serves already. With root, the page cache is dropped before each cold turn, so that directories come from the disk.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::blob::Blob;
use crate::lab::block::{Block, Column};
use crate::lab::load::Load;
use crate::lab::scratch::scratch;
use crate::lab::server::Server;
use crate::lab::upstream::{Upstream, digest_of};
use crate::lab::verdicts::Target::AtMost;
use crate::lab::verdicts::Verdicts;

/// Starts on a directory that has so many blobs, with and without a page cache.
pub(crate) fn many_blobs(blobs: u64, rounds: usize, verdicts: &mut Verdicts) {
    let bench = Directory::new();
    let [_, _, before, _] = bench.start_and_wait(1, 0.0);
    bench.fill_up(blobs);
    let title = format!("P12: a start on {blobs} blobs");
    let mut block = Block::new(title, COLUMNS, WARM);
    if drop_page_cache() {
        block.enter(COLD, || {
            drop_page_cache();
            bench.start_and_wait(blobs + 1, before)
        });
    } else {
        println!("a cold start needs root");
    }
    block.enter(WARM, || bench.start_and_wait(blobs + 1, before));
    block.run(rounds);
    for name in [COLD, WARM] {
        let first = block.summary(name, 0);
        verdicts.add("P12", format!("first hit s, {name}"), AtMost(1.0), first);
    }
}

/// A directory with one blob that is pulled, and many that nobody asks for.
struct Directory {
    upstream: Upstream,
    blob: Arc<Blob>,
    path: String,
    dir: tempfile::TempDir,
}

impl Directory {
    /// The server itself makes the directory.
    fn new() -> Self {
        let upstream = Upstream::start();
        let blob = Arc::new(Blob::new(1, 1 << 10));
        let path = upstream.put_blob(&blob);
        let directory = Self {
            upstream,
            blob,
            path,
            dir: scratch(),
        };
        let server = directory.start();
        directory.pull(server.address);
        // Its client has it before the directory does.
        wait_until_known(server.admin, 1);
        directory
    }

    fn start(&self) -> Server {
        Server::start_in(self.dir.path(), self.upstream.address, "warn", "")
    }

    fn pull(&self, from: SocketAddr) {
        let load = Load {
            from,
            path: &self.path,
            clients: 1,
            threads: 1,
            length: self.blob.size,
            digest: Some(&self.blob.digest),
            tls: None,
        };
        load.pull();
    }

    /// Puts blobs into the directory, each right.
    fn fill_up(&self, blobs: u64) {
        let root = self.dir.path().join("cache/blobs/sha256");
        for number in 0..blobs {
            let content = number.to_le_bytes();
            let digest = digest_of(&content);
            let name = digest.strip_prefix("sha256:").unwrap();
            let folder = root.join(&name[..2]);
            // They are all there after some hundreds.
            if fs::write(folder.join(name), content).is_err() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(name), content).unwrap();
            }
        }
    }

    /// Until `blobs` are known: the numbers of a turn, the last of which is what is more than `before` MiB.
    fn start_and_wait(&self, blobs: u64, before: f64) -> [f64; 4] {
        let began = Instant::now();
        let sent = self.upstream.sent();
        let server = self.start();
        self.pull(server.address);
        let first_hit = began.elapsed().as_secs_f64();
        assert_eq!(self.upstream.sent(), sent, "it was no hit");
        wait_until_known(server.admin, blobs);
        let all_known = began.elapsed().as_secs_f64();
        let resident = server.process.resident_mib();
        let each = (resident - before) * f64::from(1 << 20) / blobs as f64;
        [first_hit, all_known, resident, each]
    }
}

/// Whether the next turn comes from the disk.
fn drop_page_cache() -> bool {
    rustix::fs::sync();
    fs::write(Path::new("/proc/sys/vm/drop_caches"), "3").is_ok()
}

fn wait_until_known(admin: SocketAddr, blobs: u64) {
    let began = Instant::now();
    while metric(admin, "layerhold_cache_blobs") != Some(blobs) {
        assert!(began.elapsed() < SCAN_MAX, "not all are found");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A whole number at the admin port.
fn metric(admin: SocketAddr, name: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(admin).ok()?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|it| it.strip_prefix(name))?;
    line.trim().parse().ok()
}

const SCAN_MAX: Duration = Duration::from_secs(300);
const COLD: &str = "cold page cache";
const WARM: &str = "warm page cache";

const COLUMNS: [Column; 4] = [
    Column::plain("first hit s", 3),
    Column::plain("all known s", 2),
    Column::plain("memory MiB", 1),
    Column::plain("bytes a blob", 0),
];
