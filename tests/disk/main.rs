//! The real binary on real file systems that are full, read-only or damaged.
//!
//! Needs root, to mount, and `e2fsprogs` and `bindfs`; so it is run by name, best where no mount can stay behind:
//!
//! ```text
//! unshare --mount cargo test --test disk
//! ```
//!
//! Which operation fails at which moment with which error is tried in `tests/it/disk.rs`, on order. Here a kernel says it,
//! with all that comes along: what is told of the room that there is, what can still be read, what is left behind. A file
//! system on which a file is open for writing, as `LOCK` is, cannot be remounted read-only by anybody but the kernel, which
//! does so when it finds an error; permissions do not bind root, and are not tried.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up has failed")]
#![expect(
    clippy::print_stdout,
    reason = "seeds are printed, and shown when a test fails"
)]

mod hang;
mod volume;

#[path = "../it/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    clippy::panic,
    reason = "it is made for other tests, which need all of it"
)]
mod harness;

use std::fs;

use serde_json::Value;

use crate::harness::proxy::{Front, published, staging};
use crate::harness::{
    APP, At, Binary, Blob, FakeRegistry, KIB, MIB, ProxyBuilder, TestProxy, get, poll,
};
use crate::volume::{Ballast, Volume};

const LEN: usize = 6 * MIB;

/// A proxy whose cache directory is to be a file system of its own.
async fn scene() -> (FakeRegistry, ProxyBuilder) {
    let upstream = FakeRegistry::start().await;
    // Who goes around the cache has a transfer of his own.
    upstream.allow_concurrent_transfers();
    let builder = TestProxy::in_front_of(&upstream).set("cache.scrub_rate", "0B");
    fs::create_dir(builder.dir()).unwrap();
    (upstream, builder)
}

fn serve(upstream: &FakeRegistry, len: usize) -> Blob {
    let blob = Blob::random(len);
    upstream.serve_blob(APP, &blob);
    blob
}

/// The disk is told to be broken, which is no reason to take requests elsewhere.
async fn assert_degraded(front: &Front) {
    front
        .wait_for_metric("layerhold_degraded", &[], |it| it == 1.0)
        .await;
    let ready = front.admin("/readyz").await;
    assert_eq!(ready.head.status, 200);
    assert!(ready.text().starts_with("degraded"), "{}", ready.text());
}

/// The proxy finds out by itself that the disk works, and nothing is left over or wrong.
async fn assert_recovers(front: &Front) {
    front
        .wait_for_metric("layerhold_degraded", &[], |it| it == 0.0)
        .await;
    let reserved = [("state", "reserved")];
    front
        .wait_for_metric("layerhold_cache_bytes", &reserved, |it| it == 0.0)
        .await;
    let report = front.verify().await;
    assert_eq!(report["wrong"], 0, "{report}");
    assert_eq!(report["accounted_bytes"], report["stored_bytes"]);
}

/// What the command finds in a store that nobody holds.
async fn findings(builder: &ProxyBuilder) -> Value {
    let file = builder.file();
    let words = ["verify", "--json", "--config", file.to_str().unwrap()];
    let (_, said, error) = Binary::command(&words).await;
    let mut report: Value = serde_json::from_str(&said).unwrap_or_else(|_| error.into());
    report["findings"].take()
}

#[tokio::test]
async fn pitfall_43_a_file_system_that_is_full_or_becomes_full_costs_no_pull() {
    for make in [Volume::tmpfs, Volume::ext4] {
        let (upstream, builder) = scene().await;
        let volume = make(&builder.dir(), 24);
        let proxy = Binary::start(&builder).await;
        let blobs = [MIB, LEN, LEN].map(|len| serve(&upstream, len));
        let [kept, during, after] = &blobs;
        proxy.wait_for_hit(APP, kept).await;

        // Full in the middle of a fill that had found room.
        let gate = upstream.hold(get(during.digest()), At::Byte(2 * MIB));
        let mut readers = Vec::new();
        for _ in 0..2 {
            let mut reader = proxy.blob(APP, during.digest()).send().await;
            reader.read(MIB).await;
            readers.push(reader);
        }
        gate.reached().await;
        let ballast = Ballast::fill(volume.at());
        gate.open();
        for reader in readers {
            reader.continues(during, MIB).await;
        }
        assert_degraded(&proxy).await;
        // And before one.
        let head = proxy.pull_blob(APP, after).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
        let head = proxy.pull_blob(APP, kept).await;
        assert_eq!(head.cache_status(), "layerhold; hit");

        drop(ballast);
        assert_recovers(&proxy).await;
        for blob in &blobs {
            proxy.wait_for_hit(APP, blob).await;
        }
        proxy.kill().await;
        assert_eq!(findings(&builder).await, serde_json::json!([]));
        let proxy = Binary::start(&builder).await;
        for blob in &blobs {
            let head = proxy.pull_blob(APP, blob).await;
            assert_eq!(head.cache_status(), "layerhold; hit");
        }
    }
}

#[tokio::test]
async fn a_file_system_without_a_name_to_spare_costs_no_pull() {
    let (upstream, builder) = scene().await;
    let volume = Volume::tmpfs_with(&builder.dir(), "size=24m,nr_inodes=64");
    let proxy = Binary::start(&builder).await;
    let [kept, other] = [KIB, KIB].map(|len| serve(&upstream, len));
    proxy.wait_for_hit(APP, &kept).await;
    let names = Ballast::names(volume.at());
    // There is room for bytes, and none for a file.
    for _ in 0..2 {
        proxy.pull_blob(APP, &other).await;
    }
    assert_degraded(&proxy).await;
    drop(names);
    assert_recovers(&proxy).await;
    proxy.wait_for_hit(APP, &other).await;
    proxy.wait_for_hit(APP, &kept).await;
    assert_recovers(&proxy).await;
}

#[tokio::test]
async fn pitfall_43_what_becomes_read_only_and_writable_again_costs_no_pull() {
    for make in [Volume::tmpfs, Volume::ext4] {
        let (upstream, builder) = scene().await;
        let _volume = make(&builder.dir(), 48);
        let proxy = Binary::start(&builder).await;
        let blobs = [LEN, LEN, LEN].map(|len| serve(&upstream, len));
        let [kept, during, after] = &blobs;
        proxy.wait_for_hit(APP, kept).await;
        let gate = upstream.hold(get(during.digest()), At::Byte(2 * MIB));
        let mut reader = proxy.blob(APP, during.digest()).send().await;
        reader.read(MIB).await;
        gate.reached().await;
        let folder = builder.dir().join("staging");
        // What is opened through the second mount while it is made keeps it from being read-only.
        poll("a mark", async || {
            let files = staging(&builder.dir());
            let mut names = files.iter().filter_map(|it| it.extension());
            names.any(|it| it == "mark").then_some(())
        })
        .await;
        let over = Volume::read_only_over(&folder);
        gate.open();
        reader.continues(during, MIB).await;
        for _ in 0..2 {
            let head = proxy.pull_blob(APP, after).await;
            assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
        }
        let head = proxy.pull_blob(APP, kept).await;
        assert_eq!(head.cache_status(), "layerhold; hit");
        assert_degraded(&proxy).await;

        drop(over);
        assert_recovers(&proxy).await;
        for blob in &blobs {
            proxy.wait_for_hit(APP, blob).await;
        }
        assert_recovers(&proxy).await;
    }
}

#[tokio::test]
async fn pitfall_43_a_kernel_that_gives_a_file_system_up_costs_no_pull() {
    let (upstream, builder) = scene().await;
    let volume = Volume::ext4(&builder.dir(), 48);
    let proxy = Binary::start(&builder).await;
    let blobs = [LEN, LEN, LEN].map(|len| serve(&upstream, len));
    let [kept, during, after] = &blobs;
    proxy.wait_for_hit(APP, kept).await;
    let gate = upstream.hold(get(during.digest()), At::Byte(2 * MIB));
    let mut reader = proxy.blob(APP, during.digest()).send().await;
    reader.read(MIB).await;
    gate.reached().await;
    volume.give_up();
    gate.open();
    reader.continues(during, MIB).await;
    assert_degraded(&proxy).await;
    for blob in [during, after] {
        let head = proxy.pull_blob(APP, blob).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    }
    let head = proxy.pull_blob(APP, kept).await;
    assert_eq!(head.cache_status(), "layerhold; hit");

    // Only a new mount makes it writable: nothing was written to it that it could not keep.
    proxy.kill().await;
    let volume = volume.repaired();
    assert_eq!(findings(&builder).await, serde_json::json!([]));
    let proxy = Binary::start(&builder).await;
    for blob in &blobs {
        proxy.wait_for_hit(APP, blob).await;
    }
    assert_recovers(&proxy).await;
    drop(proxy);
    drop(volume);
}

#[tokio::test]
async fn pitfall_21_a_blob_whose_inode_is_damaged_costs_no_pull_and_no_start() {
    let (upstream, builder) = scene().await;
    let volume = Volume::ext4(&builder.dir(), 48);
    let proxy = Binary::start(&builder).await;
    let blobs = [LEN, LEN].map(|len| serve(&upstream, len));
    for blob in &blobs {
        proxy.wait_for_hit(APP, blob).await;
    }
    proxy.terminate();
    proxy.exited().await;
    let path = published(&builder.dir(), blobs[0].digest());
    let volume = volume.with_damaged_inode(path.strip_prefix(builder.dir()).unwrap());
    assert!(fs::metadata(&path).is_err());

    let proxy = Binary::start(&builder).await;
    for _ in 0..3 {
        for blob in &blobs {
            proxy.pull_blob(APP, blob).await;
        }
    }
    assert_eq!(upstream.count(&get(blobs[1].digest())), 1);
    let errors = proxy.metric("layerhold_disk_errors_total", &[]).await;
    assert!(errors >= 1.0);
    proxy.kill().await;
    let volume = volume.repaired();
    let proxy = Binary::start(&builder).await;
    for blob in &blobs {
        proxy.wait_for_hit(APP, blob).await;
    }
    assert_recovers(&proxy).await;
    drop(proxy);
    drop(volume);
}

#[tokio::test]
async fn a_directory_that_is_removed_is_made_again_where_it_was_mounted() {
    let (upstream, builder) = scene().await;
    let volume = Volume::tmpfs(&builder.dir(), 24);
    let proxy = Binary::start(&builder).await;
    let blob = serve(&upstream, LEN);
    proxy.wait_for_hit(APP, &blob).await;
    // The mount point itself stays.
    for entry in fs::read_dir(volume.at()).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => harness::lose(&path),
        }
    }
    proxy.pull_blob(APP, &blob).await;
    poll("the directory to be taken again", async || {
        volume.at().join("VERSION").exists().then_some(())
    })
    .await;
    poll("the books to be put right", async || {
        let report = proxy.verify().await;
        (report["accounted_bytes"] == report["stored_bytes"]).then_some(())
    })
    .await;
    proxy.wait_for_hit(APP, &blob).await;
    assert_recovers(&proxy).await;
}

#[tokio::test]
async fn a_start_on_a_read_only_file_system_is_refused_in_one_line() {
    let (upstream, builder) = scene().await;
    let volume = Volume::tmpfs(&builder.dir(), 24);
    let proxy = Binary::start(&builder).await;
    let blob = serve(&upstream, KIB);
    proxy.wait_for_hit(APP, &blob).await;
    proxy.terminate();
    proxy.exited().await;
    volume.remount("ro");
    let (status, said) = Binary::refused(&builder).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    volume.remount("rw");
    let proxy = Binary::start(&builder).await;
    proxy.wait_for_hit(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 1);
}
