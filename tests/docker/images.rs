//! Two versions of an image that differ in one layer, made by a real daemon from a real Debian.
//!
//! Making them takes a minute, so what the daemon pushed is kept with the build's artefacts and
//! copied for each test.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::registry::{REPOSITORY, Registry, hex};
use crate::wait::{bounded, run};

/// The tags under which the two versions are stored.
pub(crate) const FIRST: &str = "first";
pub(crate) const SECOND: &str = "second";

/// Proves in a container that every byte of the added layers arrived, and prints the version.
pub(crate) const CHECK: &str = "cd /opt && sha256sum --quiet --check */sum && cat service/version";

/// A copy in `dir` of a registry's storage that holds both versions.
pub(crate) fn storage_in(dir: &Path) -> PathBuf {
    let kept = kept();
    run(bounded("cp").arg("-a").arg(kept).arg(dir));
    dir.join(STORAGE)
}

/// The kept storage. It is made by whoever needs it first.
fn kept() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(RECIPE);
    fs::create_dir_all(&home).unwrap();
    let finished = home.join("finished");
    let lock = OpenOptions::new().create(true).append(true).open(&finished);
    let lock = lock.unwrap();
    lock.lock().unwrap();
    let storage = home.join(STORAGE);
    if fs::read(&finished).unwrap().is_empty() {
        if storage.exists() {
            fs::remove_dir_all(&storage).unwrap();
        }
        make(&home, &storage);
        fs::write(&finished, "yes\n").unwrap();
    }
    storage
}

/// Fetches a Debian, puts layers on it and pushes the versions.
fn make(home: &Path, storage: &Path) {
    let dir = TempDir::new_in(home).unwrap();
    let registry = Registry::start(storage, dir.path());
    let mut daemon = Daemon::start(dir.path(), "{}");

    let rootfs = rootfs(dir.path());
    daemon.docker(&["import", rootfs.to_str().unwrap(), "rootfs"]);
    let library = layer(dir.path(), "library", "shared", LIBRARY_BYTES);
    add(&daemon, "rootfs", &library, "base");
    for (seed, version) in [(1, FIRST), (2, SECOND)] {
        let service = layer(dir.path(), "service", version, SERVICE_BYTES + seed);
        let name = format!("{}/{REPOSITORY}:{version}", registry.address());
        add(&daemon, "base", &service, &name);
        daemon.docker(&["push", &name]);
    }
    daemon.stop();

    let (first, second) = (registry.image(FIRST), registry.image(SECOND));
    assert!(first.layers.len() >= LAYERS_MIN);
    assert!(first.bytes() >= BYTES_MIN, "{} bytes", first.bytes());
    assert_eq!(first.layers.len(), second.layers.len());
    assert_ne!(first.layers.last(), second.layers.last());
}

/// A file tree with `size` bytes that no compression makes smaller, and their sum.
pub(crate) fn layer(dir: &Path, name: &str, version: &str, size: u64) -> PathBuf {
    let tree = dir.join(version);
    let inner = tree.join(name);
    fs::create_dir_all(&inner).unwrap();
    let mut payload = vec![0; usize::try_from(size).unwrap()];
    // The size differs for each layer, which makes it a seed.
    StdRng::seed_from_u64(size).fill_bytes(&mut payload);
    fs::write(inner.join("payload"), &payload).unwrap();
    let sum = format!("{}  {name}/payload\n", hex(&payload));
    fs::write(inner.join("sum"), sum).unwrap();
    fs::write(inner.join("version"), version).unwrap();
    tree
}

/// Makes an image of another one and a tree that lies in `/opt`.
fn add(daemon: &Daemon, from: &str, tree: &Path, to: &str) {
    let container = daemon.docker(&["create", "--network", "none", from, "true"]);
    let container = container.trim();
    let tree = format!("{}/.", tree.display());
    daemon.docker(&["cp", &tree, &format!("{container}:/opt")]);
    daemon.docker(&["commit", container, to]);
    daemon.docker(&["rm", container]);
}

/// A minimal Debian, as a tar archive.
fn rootfs(dir: &Path) -> PathBuf {
    let (root, archive) = (dir.join("rootfs"), dir.join("rootfs.tar"));
    // It mounts `/proc` in there; in a namespace of its own that cannot stay behind.
    let mut debootstrap = bounded("unshare");
    debootstrap.args(["--mount", "debootstrap", "--variant=minbase", SUITE]);
    debootstrap.arg(&root).arg(mirror());
    if !debootstrap.output().unwrap().status.success() {
        // A mirror may have a bad moment; what was fetched is not fetched again.
        run(&mut debootstrap);
    }
    let mut tar = Command::new("tar");
    run(tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."));
    archive
}

/// The mirror that this machine gets its own packages from.
fn mirror() -> String {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(parts.map(|entry| entry.unwrap().path()));
    }
    files.sort();
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    let mirror = texts.filter_map(|text| mirror_in(&text)).next();
    mirror.unwrap_or_else(|| "http://deb.debian.org/debian".to_owned())
}

/// The first mirror of [`SUITE`] in a list of either form: stanzas, or one line each.
fn mirror_in(sources: &str) -> Option<String> {
    let lines = sources.lines().filter(|line| line.starts_with("deb "));
    let stanzas = sources.split("\n\n").filter(|it| it.contains("URIs:"));
    lines.chain(stanzas).find_map(|source| {
        let words: Vec<&str> = source
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(str::split_whitespace)
            .collect();
        let uri = words.iter().find(|word| word.starts_with("http"))?;
        let ours = words.contains(&SUITE) && words.contains(&"main");
        ours.then(|| (*uri).to_owned())
    })
}

/// Names what is kept; another recipe needs another name.
const RECIPE: &str = "docker-images-1";
const STORAGE: &str = "storage";

const SUITE: &str = "bookworm";

/// What the versions share and what they differ in. With Debian's 90 MB, over [`BYTES_MIN`].
const LIBRARY_BYTES: u64 = 64 << 20;
const SERVICE_BYTES: u64 = 24 << 20;

const LAYERS_MIN: usize = 3;
const BYTES_MIN: u64 = 150_000_000;
