//! What is kept is checked against what it promises: damage is found, and not served again and again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::blob::{OCI_INDEX, OCI_MANIFEST};
use crate::harness::proxy::{ONE, published};
use crate::harness::{
    APP, Binary, Blob, FakeRegistry, Fault, Image, KIB, MIB, ProxyBuilder, Request, TestProxy, get,
    head, lose, pair, poll,
};

/// Damages a published file as a disk does: its size stays.
fn flip(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn pitfall_01_a_byte_that_flipped_behind_our_back_is_found_by_the_scrub() {
    let (upstream, proxy) = pair().await;
    let (blob, other) = (Blob::random(3 * MIB + 1), Blob::random(KIB));
    for blob in [&blob, &other] {
        upstream.serve_blob(APP, blob);
        proxy.wait_for_hit(APP, blob).await;
    }
    let file = proxy.published(blob.digest());
    proxy.shut_down();
    let builder = proxy.stopped().await;
    flip(&file);
    let proxy = builder.set("cache.scrub_rate", "16MiB").start().await;
    let found = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_quarantined_total", &[], found)
        .await;
    proxy.pull_blob(APP, &blob).await;
    proxy.pull_blob(APP, &other).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
    assert_eq!(upstream.count(&get(other.digest())), 1);
    let ended = |it| it > 1_600_000_000.0;
    proxy
        .wait_for_metric("layerhold_scrub_ended_seconds", &[], ended)
        .await;
    let scrubbed = proxy.metric("layerhold_scrubbed_bytes_total", &[]).await;
    assert!(scrubbed >= 1024.0, "{scrubbed}");
    // What is damaged is out of the way only until the next start.
    let proxy = proxy.restart().await;
    proxy.wait_for_empty_staging().await;
    proxy.wait_for_hit(APP, &blob).await;
    assert_eq!(upstream.count(&get(blob.digest())), 2);
}

#[tokio::test]
async fn pitfall_21_what_is_evicted_while_it_is_checked_is_no_damage() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("cache.size", "5MiB");
    let proxy = builder.clone().start().await;
    let (blob, other) = (Blob::random(3 * MIB), Blob::random(3 * MIB));
    upstream.serve_blob(APP, &blob);
    upstream.serve_blob(APP, &other);
    proxy.wait_for_hit(APP, &blob).await;
    proxy.shut_down();
    proxy.stopped().await;
    let proxy = builder.set("cache.scrub_rate", "1MiB").start().await;
    let begun = |it| it > 0.0;
    proxy
        .wait_for_metric("layerhold_scrubbed_bytes_total", &[], begun)
        .await;
    proxy.pull_blob(APP, &other).await;
    let evicted = |it| it == 1.0;
    proxy
        .wait_for_metric("layerhold_evictions_total", &[], evicted)
        .await;
    proxy
        .wait_for_metric("layerhold_scrub_ended_seconds", &[], begun)
        .await;
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 0.0);
    proxy.pull_blob(APP, &blob).await;
    // Once, or twice where the other one still had a reader and could not make room.
    assert!(upstream.count(&get(blob.digest())) >= 2);
}

/// Runs the command on the store of `builder`, which nobody holds: its exit code and its report.
async fn verify(builder: &ProxyBuilder, words: &[&str]) -> (Option<i32>, Value) {
    let file = builder.file();
    let file = file.to_str().unwrap();
    let words = [&["verify", "--json", "--config", file], words].concat();
    let (code, said, error) = Binary::command(&words).await;
    assert_eq!(error, "", "stderr is no terminal");
    (code, serde_json::from_str(&said).unwrap())
}

/// How many findings of each kind there are.
fn kinds(report: &Value) -> BTreeMap<&str, usize> {
    let mut kinds = BTreeMap::new();
    for finding in report["findings"].as_array().unwrap() {
        *kinds.entry(finding["kind"].as_str().unwrap()).or_default() += 1;
    }
    kinds
}

/// All files below, with their bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else if !path.ends_with("LOCK") {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

/// A store of one image, which nobody holds, and its upstream.
async fn stored(image: &Image) -> (FakeRegistry, ProxyBuilder) {
    let (upstream, proxy) = pair().await;
    upstream.serve_image(APP, "v1", image);
    proxy.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        proxy.wait_for_hit(APP, blob).await;
    }
    let manifest = |it| it == 1.0 + image.blobs().count() as f64;
    proxy
        .wait_for_metric("layerhold_cache_blobs", &[], manifest)
        .await;
    proxy.shut_down();
    (upstream, proxy.stopped().await)
}

#[tokio::test]
async fn pitfall_23_what_was_damaged_while_nobody_looked_is_found_and_repaired() {
    let image = Image::random(&[3 * MIB, MIB, 2 * KIB, KIB]);
    let (upstream, builder) = stored(&image).await;
    let (code, report) = verify(&builder, &[]).await;
    assert_eq!((code, &report["wrong"]), (Some(0), &0.into()), "{report}");
    assert_eq!((&report["blobs"], &report["tags"]), (&6.into(), &1.into()));
    assert_eq!(report["accounted_bytes"], report["stored_bytes"]);

    let dir = builder.dir();
    let layers: Vec<PathBuf> = image
        .layers
        .iter()
        .map(|it| published(&dir, it.digest()))
        .collect();
    flip(&layers[0]);
    let cut = fs::read(&layers[1]).unwrap();
    fs::write(&layers[1], &cut[..cut.len() - 1]).unwrap();
    fs::write(&layers[2], "").unwrap();
    let records = dir.join("upstreams").join(ONE).join(APP);
    let grants = fs::read_to_string(records.join("_granted")).unwrap();
    fs::write(
        records.join("_granted"),
        format!("what?\n{grants}blob sha2"),
    )
    .unwrap();
    fs::write(records.join("_tags/torn"), "sha256:").unwrap();

    let before = files(&dir);
    let (code, report) = verify(&builder, &[]).await;
    let expected = BTreeMap::from([("damaged", 3), ("record", 2)]);
    assert_eq!(
        (code, kinds(&report)),
        (Some(1), expected.clone()),
        "{report}"
    );
    assert_eq!(report["repaired"], 0);
    // That content was cut short is not held against who was proven to have it.
    let lines = format!("{ONE}/{APP}: 2 broken lines of what it was proven to hold");
    assert!(report.to_string().contains(&lines), "{report}");
    assert!(
        files(&dir) == before,
        "nothing is changed without being asked"
    );

    let (code, report) = verify(&builder, &["--repair"]).await;
    assert_eq!((code, kinds(&report)), (Some(0), expected), "{report}");
    let (code, report) = verify(&builder, &[]).await;
    assert_eq!((code, &report["wrong"]), (Some(0), &0.into()), "{report}");
    assert_eq!((&report["blobs"], &report["tags"]), (&3.into(), &1.into()));

    let proxy = builder.start().await;
    proxy.wait_for_empty_staging().await;
    let asked = upstream.log().len();
    for _ in 0..2 {
        for blob in image.blobs() {
            proxy.wait_for_hit(APP, blob).await;
        }
    }
    // Their grants are as they were, so that nothing else is asked.
    assert_eq!(upstream.log().len(), asked + 3);
    for layer in &image.layers[..3] {
        assert_eq!(upstream.count(&get(layer.digest())), 2);
    }
}

#[tokio::test]
async fn what_is_not_ours_is_told_and_left_where_it_is() {
    let image = Image::random(&[KIB]);
    let (_upstream, builder) = stored(&image).await;
    let dir = builder.dir();
    let records = dir.join("upstreams").join(ONE).join(APP);
    let foreign = [
        dir.join("blobs/README"),
        dir.join("blobs/sha256/zz/more/deep"),
        published(&dir, image.layers[0].digest()).with_extension("tmp"),
        records.join("notes.txt"),
        records.join("_tags/not a \x1b[31mtag"),
    ];
    for path in &foreign {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "somebody else's").unwrap();
    }
    let before = files(&dir);
    for flags in [&[][..], &["--repair"]] {
        let (code, report) = verify(&builder, flags).await;
        let expected = BTreeMap::from([("foreign", 5)]);
        assert_eq!((code, kinds(&report)), (Some(1), expected), "{report}");
        // Nobody's terminal is painted by the name of a file.
        let told = report["findings"].to_string();
        assert!(told.contains(r"\\u{1b}[31mtag"), "{told}");
        assert!(files(&dir) == before);
    }
    // Nor does the next start take any of it away.
    let proxy = builder.start().await;
    let hit = proxy.pull_blob(APP, &image.layers[0]).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    for path in &foreign {
        assert_eq!(fs::read(path).unwrap(), b"somebody else's");
    }
}

#[tokio::test]
async fn a_running_proxy_checks_itself() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("cache.scrub_rate", "0B");
    let binary = Binary::start(&builder).await;
    let image = Image::random(&[2 * MIB, MIB]);
    upstream.serve_image(APP, "v1", &image);
    binary.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        binary.wait_for_hit(APP, blob).await;
    }
    let admin = binary.admin.to_string();
    let file = builder.file();
    // By the directory that it has, or by its address.
    let by_directory = [
        "verify",
        "--config",
        file.to_str().unwrap(),
        "--admin-listen",
        &admin,
    ];
    let (code, said, error) = Binary::command(&by_directory).await;
    assert_eq!(
        (code, said.lines().last()),
        (Some(0), Some("nothing is wrong")),
        "{said}"
    );
    assert!(error.contains("in use by another instance"), "{error}");

    // Whoever checks another directory than that of the proxy at this address is not told that all is right.
    let other = TestProxy::in_front_of(&upstream);
    let _other = Binary::start(&other).await;
    let file = other.file();
    let mistaken = [
        "verify",
        "--config",
        file.to_str().unwrap(),
        "--admin-listen",
        &admin,
    ];
    let (code, said, error) = Binary::command(&mistaken).await;
    assert_eq!((code, said.as_str()), (Some(1), ""), "{error}");
    assert!(error.contains("it keeps another directory"), "{error}");

    flip(&published(&builder.dir(), image.layers[0].digest()));
    lose(&published(&builder.dir(), image.layers[1].digest()));
    let by_address = ["verify", "--json", "--rate", "1GiB", "--admin", &admin];
    let (code, said, error) = Binary::command(&by_address).await;
    let report: Value = serde_json::from_str(&said).unwrap();
    let expected = BTreeMap::from([("damaged", 1), ("missing", 1)]);
    // All is right now, and something was wrong.
    assert_eq!((code, kinds(&report)), (Some(1), expected), "{said}{error}");
    assert_eq!(report["repaired"], 2);
    for blob in image.blobs() {
        binary.wait_for_hit(APP, blob).await;
    }
    for layer in &image.layers {
        assert_eq!(upstream.count(&get(layer.digest())), 2);
    }
    let quarantined = binary.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 1.0);
}

#[tokio::test]
async fn what_is_no_order_to_check_is_refused() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(MIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    let post = || Request::new(proxy.admin, "POST", "/verify");
    let json = || post().header("Content-Type", "application/json");
    for (request, status) in [
        (Request::new(proxy.admin, "GET", "/verify"), 405),
        (
            json().header("Origin", "http://evil.example").body("{}"),
            403,
        ),
        (post().body("{}"), 415),
        (json().body(r#"{"force": true}"#), 400),
        (json().body(r#"{"rate": "1GiB"}"#), 400),
    ] {
        let whole = request.whole().await;
        assert_eq!(whole.head.status, status, "{request:?}: {}", whole.text());
        let said: Value = serde_json::from_slice(&whole.bytes).unwrap();
        assert!(said["message"].is_string(), "{said}");
    }
    // One that takes a day is alone, until it is given up.
    let slow = json().body(r#"{"rate": 1}"#).send().await;
    assert_eq!(slow.head.status, 200);
    assert_eq!(json().body("{}").whole().await.head.status, 409);
    drop(slow);
    poll("the place of the one that was given up", async || {
        let whole = json().body("{}").whole().await;
        (whole.head.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_check_that_is_interrupted_says_so_and_leaves_everything() {
    let image = Image::random(&[MIB]);
    let (_upstream, builder) = stored(&image).await;
    flip(&published(&builder.dir(), image.layers[0].digest()));
    let before = files(&builder.dir());
    let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
    command
        .args(["verify", "--json", "--rate", "1B", "--config"])
        .arg(builder.file())
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let id = child.id().to_string();
    poll("the directory to be taken", async || {
        let holder = fs::read_to_string(builder.dir().join("LOCK")).ok()?;
        (holder.trim() == id).then_some(())
    })
    .await;
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    let ended = crate::harness::within("the check to end", ended)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.status.code(), Some(1));
    // Before the directory was read there is nothing to report.
    if !ended.stdout.is_empty() {
        let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
        assert_eq!(report["finished"], false, "{report}");
    }
    assert!(files(&builder.dir()) == before);
}

#[tokio::test]
async fn what_cannot_be_checked_is_one_line() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let dir = builder.dir();
    let dir = dir.to_str().unwrap();
    for (words, expected) in [
        (&["--cache-dir", dir, "--rate", "fast"][..], 64),
        (&["--admin", "nowhere"], 64),
        (&["--cache-dir", dir, "--listen", "nowhere"], 64),
        // There is nothing, and nothing is made.
        (&["--cache-dir", dir], 1),
        (&["--admin", "127.0.0.1:1"], 1),
    ] {
        let words = [&["verify"], words].concat();
        let (code, said, error) = Binary::command(&words).await;
        assert_eq!(
            (code, said.as_str()),
            (Some(expected), ""),
            "{words:?}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    assert!(!builder.dir().exists());
}

/// Cuts the last byte off, or adds one.
fn resize(file: &Path, longer: bool) {
    let mut bytes = fs::read(file).unwrap();
    if longer {
        bytes.push(0);
    } else {
        bytes.pop();
    }
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn pitfall_21_a_blob_of_another_size_than_was_published_is_not_served() {
    let image = Image::random(&[3 * MIB, MIB]);
    let (upstream, builder) = stored(&image).await;
    let (short, long) = (&image.layers[0], &image.layers[1]);
    resize(&published(&builder.dir(), short.digest()), false);
    resize(&published(&builder.dir(), long.digest()), true);
    let proxy = builder.set("cache.scrub_rate", "0B").start().await;
    for layer in [short, long] {
        let target = format!("/v2/{APP}/blobs/{}", layer.digest());
        let head = proxy.head(target).send().await.head;
        assert_eq!(head.content_length(), Some(layer.len()));
        proxy.pull_blob(APP, layer).await;
        proxy.wait_for_hit(APP, layer).await;
        assert_eq!(upstream.count(&get(layer.digest())), 2);
    }
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 2.0);
}

#[tokio::test]
async fn a_blob_that_was_cut_short_is_not_in_the_way_of_a_proof() {
    let image = Image::random(&[MIB]);
    let (upstream, builder) = stored(&image).await;
    let (layer, other) = (&image.layers[0], "other/app");
    upstream.serve_blob(other, layer);
    resize(&published(&builder.dir(), layer.digest()), false);
    let proxy = builder.set("cache.scrub_rate", "0B").start().await;
    proxy.pull_blob(other, layer).await;
    proxy.wait_for_hit(other, layer).await;
    proxy.wait_for_hit(APP, layer).await;
    assert_eq!(upstream.count(&get(layer.digest())), 2);
}

#[tokio::test]
async fn an_upstream_that_contradicts_again_and_again_does_not_have_a_blob_read_each_time() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).set("cache.scrub_rate", "0B");
    let proxy = builder.start().await;
    let blob = Blob::random(MIB + 1);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    for liar in ["liar/one", "liar/two"] {
        upstream.serve_blob(liar, &blob);
        upstream.always(head(liar), Fault::ShortLength);
        for _ in 0..3 {
            let whole = proxy.blob(liar, blob.digest()).whole().await;
            assert_eq!(whole.head.status, 502, "{:?}", whole.head);
        }
    }
    let read = proxy.metric("layerhold_scrubbed_bytes_total", &[]).await;
    assert_eq!(read, blob.len() as f64);
    let hit = proxy.pull_blob(APP, &blob).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
}

#[tokio::test]
async fn a_record_without_a_size_is_as_good_as_ever_and_a_wrong_size_costs_one_pull() {
    let image = Image::random(&[MIB, KIB]);
    let (upstream, builder) = stored(&image).await;
    let (old, wrong) = (&image.layers[0], &image.layers[1]);
    let file = builder
        .dir()
        .join("upstreams")
        .join(ONE)
        .join(APP)
        .join("_granted");
    let grants = fs::read_to_string(&file).unwrap();
    let written = |layer: &Blob, size: &str| format!("blob {}{size}\n", layer.digest());
    let sized = written(old, &format!(" {MIB}"));
    assert!(grants.contains(&sized), "{grants}");
    let grants = grants.replace(&sized, &written(old, ""));
    let grants = grants.replace(&written(wrong, " 1024"), &written(wrong, " 1025"));
    fs::write(&file, grants).unwrap();
    let (code, report) = verify(&builder, &[]).await;
    let expected = BTreeMap::from([("record", 1)]);
    assert_eq!((code, kinds(&report)), (Some(1), expected), "{report}");

    let asked = upstream.log().len();
    let proxy = builder.set("cache.scrub_rate", "0B").start().await;
    proxy.pull_blob(APP, old).await;
    assert_eq!(upstream.log().len(), asked);
    proxy.pull_blob(APP, wrong).await;
    proxy.wait_for_hit(APP, wrong).await;
    assert_eq!(upstream.log().len(), asked + 1);
    // And is right from then on.
    let proxy = proxy.restart().await;
    for layer in [old, wrong] {
        let hit = proxy.pull_blob(APP, layer).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    assert_eq!(upstream.log().len(), asked + 1);
}

#[tokio::test]
async fn what_the_disk_does_not_give_is_not_passed_over() {
    let image = Image::random(&[KIB]);
    let (_upstream, builder) = stored(&image).await;
    let dir = builder.dir();
    // Opening either fails, and not because nothing is there.
    let grants = dir.join("upstreams").join(ONE).join(APP).join("_granted");
    lose(&grants);
    symlink("_granted", &grants).unwrap();
    let free = (0..=255).map(|first| dir.join(format!("blobs/sha256/{first:02x}")));
    let folder = free.into_iter().find(|it| !it.exists()).unwrap();
    symlink(folder.file_name().unwrap(), &folder).unwrap();
    for flags in [&[][..], &["--repair"]] {
        let (code, report) = verify(&builder, flags).await;
        let expected = BTreeMap::from([("foreign", 1), ("unreadable", 2)]);
        assert_eq!((code, kinds(&report)), (Some(1), expected), "{report}");
    }
}

#[tokio::test]
async fn a_grant_of_another_type_than_the_manifest_has_is_dropped() {
    let image = Image::random(&[KIB]);
    let (upstream, builder) = stored(&image).await;
    let records = builder.dir().join("upstreams").join(ONE).join(APP);
    let grants = fs::read_to_string(records.join("_granted")).unwrap();
    let other = grants.replace(OCI_MANIFEST, OCI_INDEX);
    assert_ne!(grants, other);
    fs::write(records.join("_granted"), other).unwrap();
    let tag = records.join("_tags/v1");
    let record = fs::read_to_string(&tag).unwrap();
    fs::write(&tag, record.replace(OCI_MANIFEST, OCI_INDEX)).unwrap();
    let (code, report) = verify(&builder, &["--repair"]).await;
    let expected = BTreeMap::from([("record", 2)]);
    assert_eq!((code, kinds(&report)), (Some(0), expected), "{report}");
    let (code, _) = verify(&builder, &[]).await;
    assert_eq!(code, Some(0));
    let proxy = builder.start().await;
    let head = proxy.pull_manifest(APP, "v1").await.head;
    assert_eq!(head.header("content-type"), Some(OCI_MANIFEST));
    assert_eq!(upstream.count(&get(image.manifest.digest())), 1);
}

#[tokio::test]
async fn a_wrong_size_that_was_dropped_is_forgotten_by_the_running_proxy_too() {
    let image = Image::random(&[MIB, KIB]);
    let (upstream, builder) = stored(&image).await;
    let wrong = &image.layers[1];
    let file = builder.dir().join("upstreams").join(ONE).join(APP);
    let file = file.join("_granted");
    let grants = fs::read_to_string(&file).unwrap();
    let size = |size| format!("{} {size}\n", wrong.digest());
    fs::write(&file, grants.replace(&size(1024), &size(1025))).unwrap();
    let proxy = builder.set("cache.scrub_rate", "0B").start().await;
    // It has read the record by then.
    proxy.pull_blob(APP, &image.layers[0]).await;
    let check = Request::new(proxy.admin, "POST", "/verify");
    let check = check.header("Content-Type", "application/json");
    let whole = check.body(r#"{"repair": true}"#).whole().await;
    let text = whole.text();
    let report: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let expected = BTreeMap::from([("record", 1)]);
    assert_eq!(kinds(&report["report"]), expected, "{text}");
    let pulled = proxy.pull_blob(APP, wrong).await;
    assert_eq!(pulled.cache_status(), "layerhold; hit");
    assert_eq!(upstream.count(&get(wrong.digest())), 1);
}

#[tokio::test]
async fn what_root_repairs_still_belongs_to_whom_it_belonged() {
    const NOBODY: u32 = 65534;
    let image = Image::random(&[KIB]);
    let (_upstream, builder) = stored(&image).await;
    let dir = builder.dir();
    let give = |path: &Path| chown(path, Some(NOBODY), Some(NOBODY));
    if give(&dir).is_err() {
        // Only root can give files away, and only for root does it matter.
        return;
    }
    let grants = dir.join("upstreams").join(ONE).join(APP).join("_granted");
    give(&grants).unwrap();
    let mut text = fs::read_to_string(&grants).unwrap();
    text.push_str("torn");
    fs::write(&grants, text).unwrap();
    let (code, report) = verify(&builder, &["--repair"]).await;
    let expected = BTreeMap::from([("record", 1)]);
    assert_eq!((code, kinds(&report)), (Some(0), expected), "{report}");
    let found = fs::metadata(&grants).unwrap();
    assert_eq!((found.uid(), found.gid()), (NOBODY, NOBODY));
}

#[tokio::test]
async fn a_reader_of_a_damaged_file_is_not_in_the_way_of_the_one_that_came_in_its_place() {
    let (upstream, proxy) = pair().await;
    let blob = Blob::random(32 * MIB);
    upstream.serve_blob(APP, &blob);
    proxy.wait_for_hit(APP, &blob).await;
    // More than what waits on the way to a client that does not read.
    let request = proxy.blob(APP, blob.digest());
    let (first, second) = (request.send().await, request.send().await);
    let file = proxy.published(blob.digest());
    let opened = fs::OpenOptions::new().write(true).open(file).unwrap();
    opened.set_len(31 * MIB as u64).unwrap();
    first.whole().await.is(200, blob.bytes());
    proxy.wait_for_hit(APP, &blob).await;
    second.whole().await.is(200, blob.bytes());
    let asked = upstream.log().len();
    let hit = proxy.pull_blob(APP, &blob).await;
    assert_eq!(hit.cache_status(), "layerhold; hit");
    assert_eq!(upstream.log().len(), asked);
    let quarantined = proxy.metric("layerhold_quarantined_total", &[]).await;
    assert_eq!(quarantined, 1.0);
}
