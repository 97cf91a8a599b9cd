//! A disk that fails: whichever operation, with whichever error, at whichever moment, every client gets the whole right
//! blob, the store stays consistent, and all is as before when the disk works again.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use layerhold::cache::{Area, Operation};

use crate::harness::{
    APP, At, Blob, FakeRegistry, Image, KIB, MIB, TestProxy, get, lose, pair, poll,
};

const EIO: i32 = 5;
const ENOENT: i32 = 2;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const EDQUOT: i32 = 122;

const ERRORS: [i32; 6] = [EIO, ENOENT, EMFILE, ENOSPC, EROFS, EDQUOT];

/// An operation, where, and how often it goes well before it fails.
type Trouble = (Operation, Area, u64);

/// A blob of which several writes and reads are made.
const LEN: usize = 3 * MIB + 123;

async fn scene() -> (FakeRegistry, TestProxy) {
    let upstream = FakeRegistry::start().await;
    // Who goes around the cache has a transfer of his own.
    upstream.allow_concurrent_transfers();
    let builder = TestProxy::in_front_of(&upstream).set("cache.scrub_rate", "0B");
    let proxy = builder.start().await;
    (upstream, proxy)
}

fn serve(upstream: &FakeRegistry, len: usize) -> Blob {
    let blob = Blob::random(len);
    upstream.serve_blob(APP, &blob);
    blob
}

/// Waits until the proxy has found out by itself that the disk works again.
async fn assert_recovers(proxy: &TestProxy) {
    proxy.faults().heal();
    proxy
        .wait_for_metric("layerhold_degraded", &[], |it| it == 0.0)
        .await;
    let ready = proxy.admin("/readyz").await;
    assert_eq!((ready.head.status, ready.text().as_str()), (200, "ok\n"));
}

/// Nothing is left over, everything that is there is right, and what counts is what is there.
async fn assert_consistent(proxy: &TestProxy, what: &str) {
    proxy
        .wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
        .await;
    let reserved = [("state", "reserved")];
    proxy
        .wait_for_metric("layerhold_cache_bytes", &reserved, |it| it == 0.0)
        .await;
    let report = proxy.verify().await;
    assert_eq!(report["finished"], true, "{what}: {report}");
    assert_eq!(report["wrong"], report["repaired"], "{what}: {report}");
    let report = proxy.verify().await;
    assert_eq!(report["wrong"], 0, "{what}: {report}");
    assert_eq!(
        report["accounted_bytes"], report["stored_bytes"],
        "{what}: {report}"
    );
}

/// The disk is told to be broken, and pulls go on.
async fn assert_degraded(proxy: &TestProxy, what: &str) {
    // What fails after the last byte is told a moment later.
    proxy
        .wait_for_metric("layerhold_degraded", &[], |it| it == 1.0)
        .await;
    let errors = proxy.metric("layerhold_disk_errors_total", &[]).await;
    assert!(errors >= 1.0, "{what}");
    let ready = proxy.admin("/readyz").await;
    assert_eq!(ready.head.status, 200, "{what}");
    assert!(ready.text().starts_with("degraded"), "{what}");
}

/// Two clients of a blob that is not here while the disk is broken in this way, and one who comes later.
async fn fill_on_a_broken_disk((operation, place, skip): Trouble, error: i32) {
    let what = format!("{operation:?} at {place:?} after {skip}: error {error}");
    let (upstream, proxy) = scene().await;
    let [blob, other] = [LEN, LEN].map(|len| serve(&upstream, len));
    proxy.faults().fail(operation, place, error, skip);
    let pull = || proxy.pull_blob(APP, &blob);
    tokio::join!(pull(), pull());
    pull().await;
    // What fails after the last byte does so a moment later.
    poll("the fault", async || {
        (proxy.faults().struck() > 0).then_some(())
    })
    .await;
    // A folder that is not there is made.
    let is_trouble = error != ENOENT || operation != Operation::Create;
    // Folders are not made when the disk is tried, so that one may soon be over; and so is a record that is not written
    // when its blob is published right after it.
    let is_over = operation == Operation::MakeFolder || (operation, skip) == (Operation::Space, 1);
    if is_trouble && !is_over {
        assert_degraded(&proxy, &what).await;
    }
    assert_recovers(&proxy).await;
    assert_consistent(&proxy, &what).await;
    proxy.wait_for_hit(APP, &blob).await;
    proxy.wait_for_hit(APP, &other).await;
    assert_consistent(&proxy, &what).await;
    proxy.wait_for_empty_staging().await;
}

#[tokio::test]
async fn invariant_09_pitfall_43_a_fill_outlives_whatever_its_disk_refuses() {
    let troubles: [Trouble; 9] = [
        (Operation::Create, Area::Staging, 0),
        (Operation::Write, Area::Staging, 0),
        // In the middle.
        (Operation::Write, Area::Staging, 1),
        (Operation::Sync, Area::Staging, 0),
        (Operation::Rename, Area::Blobs, 0),
        (Operation::MakeFolder, Area::Blobs, 0),
        (Operation::SyncFolder, Area::Blobs, 0),
        (Operation::Space, Area::Blobs, 0),
        (Operation::Space, Area::Blobs, 1),
    ];
    for trouble in troubles {
        join_all(ERRORS.map(|error| fill_on_a_broken_disk(trouble, error))).await;
    }
}

#[tokio::test]
async fn a_disk_that_neither_writes_nor_removes_is_cleared_up_when_it_works_again() {
    for error in [EIO, ENOSPC, EROFS] {
        let (upstream, proxy) = scene().await;
        let blob = serve(&upstream, LEN);
        let faults = proxy.faults();
        faults.fail(Operation::Write, Area::Staging, error, 1);
        faults.fail(Operation::Remove, Area::Staging, error, 0);
        proxy.pull_blob(APP, &blob).await;
        assert_degraded(&proxy, "neither").await;
        assert_recovers(&proxy).await;
        proxy.wait_for_empty_staging().await;
        assert_consistent(&proxy, "neither").await;
    }
}

/// A blob that is here and not open, and a disk that breaks in this way.
async fn hit_on_a_broken_disk((operation, place, skip): Trouble, error: i32, len: usize) {
    let what = format!("{operation:?} at {place:?} after {skip}: error {error}, {len} bytes");
    let (upstream, proxy) = scene().await;
    let blob = serve(&upstream, len);
    proxy.wait_for_hit(APP, &blob).await;
    let proxy = proxy.restart().await;
    let published = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], published)
        .await;
    let used = [("state", "used")];
    let before = proxy.metric("layerhold_cache_bytes", &used).await;
    proxy.faults().fail(operation, place, error, skip);

    let pull = || proxy.pull_blob(APP, &blob);
    tokio::join!(pull(), pull());
    pull().await;
    assert!(proxy.faults().struck() > 0, "{what}");
    assert_recovers(&proxy).await;
    proxy.wait_for_hit(APP, &blob).await;
    assert_consistent(&proxy, &what).await;
    assert_eq!(proxy.metric("layerhold_cache_bytes", &used).await, before);
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    // What is lost is fetched again; what cannot be had now is still there.
    let is_lost = error == EIO;
    assert_eq!(quarantined >= 1.0, is_lost, "{what}");
}

#[tokio::test]
async fn pitfall_21_a_hit_outlives_whatever_its_disk_refuses() {
    let troubles: [(Trouble, usize); 6] = [
        ((Operation::Open, Area::Blobs, 0), LEN),
        ((Operation::Stat, Area::Blobs, 0), LEN),
        ((Operation::Read, Area::Blobs, 0), LEN),
        // In the middle of it, and at its last bytes.
        ((Operation::Read, Area::Blobs, 9), LEN),
        ((Operation::Read, Area::Blobs, 24), LEN),
        ((Operation::Read, Area::Blobs, 0), KIB),
    ];
    for (trouble, len) in troubles {
        join_all(ERRORS.map(|error| hit_on_a_broken_disk(trouble, error, len))).await;
    }
}

#[tokio::test]
async fn where_descriptors_run_out_a_file_that_is_kept_open_is_closed_for_another() {
    let (upstream, proxy) = scene().await;
    let [first, second] = [(); 2].map(|()| serve(&upstream, LEN));
    for blob in [&first, &second] {
        proxy.wait_for_hit(APP, blob).await;
    }
    let proxy = proxy.restart().await;
    let pull = async |blob: &Blob| {
        let head = proxy.pull_blob(APP, blob).await;
        assert_eq!(head.cache_status(), "layerhold; hit");
        upstream.count(&get(blob.digest()))
    };
    assert_eq!(pull(&first).await, 1);
    proxy
        .faults()
        .fail_once(Operation::Open, Area::Blobs, EMFILE, 0);
    assert_eq!(pull(&second).await, 1);
    assert_eq!(proxy.faults().struck(), 1);
    let failed = [("operation", "open")];
    let failed = proxy.metric("layerhold_disk_errors_total", &failed).await;
    assert_eq!(failed, 0.0);
    // The other is not kept any more; and where closing does not help, it ends.
    proxy.faults().fail(Operation::Open, Area::Blobs, EMFILE, 0);
    proxy.pull_blob(APP, &first).await;
    assert_eq!(upstream.count(&get(first.digest())), 2);
    assert_recovers(&proxy).await;
    assert_consistent(&proxy, "closed for another").await;
}

#[tokio::test]
async fn what_cannot_be_set_aside_is_neither_served_nor_forgotten() {
    let (upstream, proxy) = scene().await;
    let blob = serve(&upstream, LEN);
    proxy.wait_for_hit(APP, &blob).await;
    let proxy = proxy.restart().await;
    let faults = proxy.faults();
    faults.fail(Operation::Read, Area::Blobs, EIO, 0);
    faults.fail(Operation::Rename, Area::Staging, EROFS, 0);
    for _ in 0..2 {
        proxy.pull_blob(APP, &blob).await;
    }
    let asked = upstream.count(&get(blob.digest()));
    assert_eq!(proxy.metric("layerhold_cache_blobs", &[]).await, 1.0);
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 0.0);
    assert_degraded(&proxy, "set aside").await;
    assert_recovers(&proxy).await;
    // It was there all the time.
    let head = proxy.pull_blob(APP, &blob).await;
    assert_eq!(head.cache_status(), "layerhold; hit");
    assert_eq!(upstream.count(&get(blob.digest())), asked);
    assert_consistent(&proxy, "set aside").await;
}

/// An image pulled by its tag while records cannot be written or read.
async fn records_on_a_broken_disk((operation, place, skip): Trouble, error: i32) {
    let what = format!("{operation:?} at {place:?} after {skip}: error {error}");
    let (upstream, proxy) = scene().await;
    let image = Image::random(&[LEN, KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.faults().fail(operation, place, error, skip);
    let pull = async || {
        proxy.pull_manifest(APP, "v1").await;
        for blob in image.blobs() {
            proxy.pull_blob(APP, blob).await;
        }
    };
    pull().await;
    pull().await;
    assert!(proxy.faults().struck() > 0, "{what}");
    assert_recovers(&proxy).await;
    pull().await;
    assert_consistent(&proxy, &what).await;
    // What could not be written down is asked again after a restart, and no more.
    let proxy = proxy.restart().await;
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    assert_consistent(&proxy, &what).await;
}

#[tokio::test]
async fn invariant_09_records_that_cannot_be_written_or_read_cost_questions() {
    let troubles: [Trouble; 7] = [
        (Operation::Create, Area::Records, 0),
        (Operation::Write, Area::Records, 0),
        (Operation::Write, Area::Records, 2),
        (Operation::Sync, Area::Records, 0),
        (Operation::Rename, Area::Records, 0),
        (Operation::MakeFolder, Area::Records, 0),
        (Operation::Read, Area::Records, 0),
    ];
    // A record that is not there is none.
    let errors = [EIO, EMFILE, ENOSPC, EROFS, EDQUOT];
    for trouble in troubles {
        join_all(errors.map(|error| records_on_a_broken_disk(trouble, error))).await;
    }
}

/// A start on a store of which the disk does not tell everything.
async fn start_on_a_broken_disk((operation, place, skip): Trouble, error: i32) {
    let what = format!("{operation:?} at {place:?} after {skip}: error {error}");
    let (upstream, proxy) = scene().await;
    let image = Image::random(&[LEN, MIB, KIB]);
    upstream.serve_image(APP, "v1", &image);
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    proxy.shut_down();
    let builder = proxy.stopped().await;
    fs::write(builder.dir().join("staging/left"), "of a crash").unwrap();
    let remainder = builder.dir().join("staging/of a broken disk");
    fs::create_dir(&remainder).unwrap();
    fs::write(remainder.join("file"), "in a folder").unwrap();

    builder.faults().fail(operation, place, error, skip);
    let proxy = builder.start().await;
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.pull_blob(APP, blob).await;
    }
    assert!(proxy.faults().struck() > 0, "{what}");
    assert_recovers(&proxy).await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    // Records that could not be listed are not counted before the next start: a few bytes.
    if (operation, place) != (Operation::List, Area::Records) {
        assert_consistent(&proxy, &what).await;
    }
    let proxy = proxy.restart().await;
    proxy.wait_for_empty_staging().await;
    assert_consistent(&proxy, &what).await;
}

#[tokio::test]
async fn pitfall_23_what_the_disk_does_not_tell_at_a_start_costs_a_pull_and_no_start() {
    let troubles: [Trouble; 8] = [
        (Operation::Stat, Area::Blobs, 0),
        (Operation::Stat, Area::Blobs, 2),
        (Operation::List, Area::Blobs, 0),
        (Operation::List, Area::Blobs, 3),
        (Operation::List, Area::Records, 0),
        (Operation::Read, Area::Records, 0),
        (Operation::List, Area::Staging, 0),
        (Operation::Remove, Area::Staging, 0),
    ];
    for trouble in troubles {
        let errors = [EIO, EMFILE].map(|error| start_on_a_broken_disk(trouble, error));
        join_all(errors).await;
    }
}

#[tokio::test]
async fn invariant_07_what_cannot_be_evicted_makes_no_room() {
    let upstream = FakeRegistry::start().await;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.size", "10MiB")
        .set("cache.scrub_rate", "0B")
        .start()
        .await;
    let blobs: Vec<Blob> = (0..4).map(|_| serve(&upstream, 3 * MIB)).collect();
    for blob in &blobs[..3] {
        proxy.wait_for_hit(APP, blob).await;
    }
    for error in [EIO, EROFS] {
        proxy
            .faults()
            .fail(Operation::Remove, Area::Blobs, error, 0);
        let head = proxy.pull_blob(APP, &blobs[3]).await;
        assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
        assert_degraded(&proxy, "evict").await;
        for blob in &blobs[..3] {
            proxy.wait_for_hit(APP, blob).await;
            assert_eq!(upstream.count(&get(blob.digest())), 1);
        }
        assert_recovers(&proxy).await;
        assert_consistent(&proxy, "evict").await;
        let evicted = proxy.metric("layerhold_evictions_total", &[]).await;
        assert_eq!(evicted, 0.0);
    }
    proxy.wait_for_hit(APP, &blobs[3]).await;
    let evicted = proxy.metric("layerhold_evictions_total", &[]).await;
    assert_eq!(evicted, 1.0);
    assert_consistent(&proxy, "evict").await;
}

#[tokio::test]
async fn a_directory_that_is_removed_is_made_again() {
    // The directory itself, or all that is in it.
    for whole in [true, false] {
        let (upstream, proxy) = scene().await;
        let image = Image::random(&[LEN, KIB]);
        upstream.serve_image(APP, "v1", &image);
        proxy.pull_manifest(APP, "v1").await;
        for blob in image.blobs() {
            proxy.wait_for_hit(APP, blob).await;
        }
        let late = serve(&upstream, LEN);
        let gate = upstream.hold(get(late.digest()), At::Byte(2 * MIB));
        let mut reader = proxy.blob(APP, late.digest()).send().await;
        reader.read(MIB).await;
        gate.reached().await;

        let dir = proxy.builder().dir();
        if whole {
            fs::remove_dir_all(&dir).unwrap();
        } else {
            for name in ["blobs", "staging", "upstreams"] {
                fs::remove_dir_all(dir.join(name)).unwrap();
            }
            lose(&dir.join("LOCK"));
            lose(&dir.join("VERSION"));
        }
        gate.open();
        reader.continues(&late, MIB).await;
        for blob in image.blobs() {
            proxy.pull_blob(APP, blob).await;
        }
        poll("the directory to be taken again", async || {
            dir.join("VERSION").exists().then_some(())
        })
        .await;
        proxy.wait_for_hit(APP, &late).await;
        for blob in image.blobs() {
            proxy.wait_for_hit(APP, blob).await;
        }
        // What is gone counts no more.
        poll("the books to be put right", async || {
            let report = proxy.verify().await;
            (report["accounted_bytes"] == report["stored_bytes"]).then_some(())
        })
        .await;
        assert_recovers(&proxy).await;
        assert_consistent(&proxy, "removed").await;
        // It is ours, against others and for the next start.
        let refused = proxy.builder().clone().refused().await;
        assert!(refused.contains("in use by another instance"), "{refused}");
        let proxy = proxy.restart().await;
        proxy.wait_for_hit(APP, &late).await;
        assert_eq!(proxy.metric("layerhold_degraded", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn a_directory_that_another_instance_has_taken_is_left_to_it() {
    let (upstream, proxy) = scene().await;
    let blob = serve(&upstream, LEN);
    proxy.wait_for_hit(APP, &blob).await;
    fs::remove_dir_all(proxy.builder().dir()).unwrap();
    let other = proxy.builder().clone().start().await;
    other.wait_for_hit(APP, &blob).await;

    proxy
        .wait_for_metric("layerhold_degraded", &[], |it| it == 1.0)
        .await;
    let late = serve(&upstream, LEN);
    let head = proxy.pull_blob(APP, &late).await;
    assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    assert!(!other.published(late.digest()).exists());
    other.wait_for_hit(APP, &late).await;
    assert_consistent(&other, "another").await;
}

#[tokio::test]
async fn pitfall_21_small_content_that_was_changed_is_found_when_it_is_opened() {
    let (upstream, proxy) = pair().await;
    let blobs = [1, KIB, 128 * KIB].map(|len| serve(&upstream, len));
    for blob in &blobs {
        proxy.wait_for_hit(APP, blob).await;
    }
    proxy.shut_down();
    let builder = proxy.stopped().await;
    let proxy = builder.set("cache.scrub_rate", "0B").start().await;
    // The scan would pass over a file that is just being written anew.
    let all = blobs.len() as f64;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], |it| it == all)
        .await;
    for blob in &blobs {
        let mut bytes = blob.bytes().to_vec();
        bytes[blob.len() / 2] ^= 1;
        fs::write(proxy.published(blob.digest()), bytes).unwrap();
        proxy.pull_blob(APP, blob).await;
        proxy.wait_for_hit(APP, blob).await;
        assert_eq!(upstream.count(&get(blob.digest())), 2);
    }
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, blobs.len() as f64);
}

#[tokio::test]
async fn pitfall_21_whatever_stands_in_a_blobs_place_is_no_blob() {
    let (upstream, proxy) = scene().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let blobs: Vec<Blob> = (0..4).map(|_| serve(&upstream, LEN)).collect();
    for blob in &blobs {
        proxy.wait_for_hit(APP, blob).await;
    }
    let proxy = proxy.restart().await;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], |it| it == 4.0)
        .await;
    let place = |n: usize| {
        let path = proxy.published(blobs[n].digest());
        lose(&path);
        path
    };
    let link = |to, n| std::os::unix::fs::symlink(to, place(n)).unwrap();
    link(elsewhere.path().join("nothing"), 0);
    let secret = elsewhere.path().join("secret");
    fs::write(&secret, vec![7; LEN]).unwrap();
    link(secret.clone(), 1);
    fs::create_dir_all(place(2).join("folder")).unwrap();
    let fifo = place(3);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for blob in &blobs {
        proxy.pull_blob(APP, blob).await;
        proxy.wait_for_hit(APP, blob).await;
        assert_eq!(upstream.count(&get(blob.digest())), 2);
    }
    assert_eq!(fs::read(&secret).unwrap(), vec![7; LEN]);
    assert_consistent(&proxy, "in its place").await;
    // What was set aside does not stand in the way of the next start.
    let proxy = proxy.restart().await;
    proxy.wait_for_empty_staging().await;
    proxy.wait_for_hit(APP, &blobs[2]).await;
}

#[tokio::test]
async fn pitfall_21_what_is_cut_while_it_is_sent_is_sent_whole_all_the_same() {
    let (upstream, proxy) = scene().await;
    let blob = serve(&upstream, 24 * MIB);
    proxy.wait_for_hit(APP, &blob).await;
    let mut readers = Vec::new();
    for _ in 0..3 {
        let mut reader = proxy.blob(APP, blob.digest()).send().await;
        reader.read(KIB).await;
        readers.push(reader);
    }
    let file = fs::OpenOptions::new()
        .write(true)
        .open(proxy.published(blob.digest()))
        .unwrap();
    file.set_len(MIB as u64).unwrap();
    for reader in readers {
        reader.continues(&blob, KIB).await;
    }
    proxy.wait_for_hit(APP, &blob).await;
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 1.0);
    assert_consistent(&proxy, "cut").await;
}

#[tokio::test]
async fn what_is_cut_while_it_is_staged_is_not_published() {
    let (upstream, proxy) = scene().await;
    let blob = serve(&upstream, LEN);
    let gate = upstream.hold(get(blob.digest()), At::Byte(2 * MIB));
    let mut reader = proxy.blob(APP, blob.digest()).send().await;
    reader.read(MIB).await;
    gate.reached().await;
    let file = staged(&proxy, MIB).await;
    file.set_len(KIB as u64).unwrap();
    // Neither too short nor too long is it gone on with.
    file.set_len(LEN as u64 + 1).unwrap();
    gate.open();
    reader.continues(&blob, MIB).await;
    proxy.wait_for_fills("disk", 1.0).await;
    assert_recovers(&proxy).await;
    assert_consistent(&proxy, "cut").await;
    proxy.wait_for_hit(APP, &blob).await;
}

/// The file of a fill that has written so many bytes.
async fn staged(proxy: &TestProxy, bytes: usize) -> fs::File {
    let staged = poll("the staged bytes", async || {
        let staged = crate::harness::proxy::staging(&proxy.builder().dir());
        let has_bytes =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|it| it.len() >= bytes as u64);
        staged.into_iter().find(has_bytes)
    })
    .await;
    fs::OpenOptions::new().write(true).open(staged).unwrap()
}

#[tokio::test]
async fn who_is_far_behind_a_fill_whose_file_is_cut_gets_no_wrong_byte() {
    // What is cut off stays away, or is there again and blank.
    for len_after in [16 * MIB, 40 * MIB] {
        let (upstream, proxy) = scene().await;
        let blob = serve(&upstream, 48 * MIB);
        let gate = upstream.hold(get(blob.digest()), At::Byte(32 * MIB));
        let mut reader = proxy.blob(APP, blob.digest()).send().await;
        reader.read(KIB).await;
        gate.reached().await;
        let file = staged(&proxy, 32 * MIB - 1).await;
        // Far behind what is in the kernel for the reader, which is in the file's own pages.
        file.set_len(16 * MIB as u64).unwrap();
        file.set_len(len_after as u64).unwrap();
        gate.open();
        proxy
            .wait_for_metric("layerhold_fills", &[], |it| it == 0.0)
            .await;
        reader.continues(&blob, KIB).await;
        assert_eq!(upstream.count(&get(blob.digest())), 2);
        assert_consistent(&proxy, "cut").await;
        proxy.wait_for_hit(APP, &blob).await;
    }
}

#[tokio::test]
async fn a_disk_without_room_above_its_floor_is_degraded_until_there_is_some() {
    let upstream = FakeRegistry::start().await;
    let space = rustix::fs::statvfs(std::env::temp_dir().as_path()).unwrap();
    let free = space.f_bavail * space.f_frsize;
    let proxy = TestProxy::in_front_of(&upstream)
        .set("cache.free_space_min", format!("{}B", free * 2))
        .start()
        .await;
    let blob = serve(&upstream, LEN);
    let head = proxy.pull_blob(APP, &blob).await;
    assert_eq!(head.cache_status(), "layerhold; fwd=bypass");
    assert_eq!(proxy.metric("layerhold_degraded", &[]).await, 1.0);
    // The disk takes what is written, and still there is no room.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(proxy.metric("layerhold_degraded", &[]).await, 1.0);
}
