//! The process has no more rights than it needs, and nobody else has any in what it keeps.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use landlock::{ABI, LandlockStatus, RestrictSelf};
use serde_json::Value;

use crate::harness::binary::field;
use crate::harness::proxy::{Front, ONE};
use crate::harness::secret::says;
use crate::harness::{APP, Binary, FakeRegistry, HelperScript, Image, KIB, MIB, TestProxy};

#[tokio::test]
async fn what_is_kept_is_for_one_user_alone_whatever_the_umask() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[3 * MIB, KIB]);
    upstream.serve_image(APP, "v1", &image);
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start_after(&builder, "umask 0").await;
    pull(&binary, &image).await;
    let modes = modes(&builder.dir());
    // The manifest, two layers and a configuration; the version, the lock, grants and a tag.
    assert!(modes.len() > 8, "{modes:?}");
    let wide: Vec<_> = modes.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(wide.is_empty(), "{wide:?}");
}

#[tokio::test]
async fn a_directory_that_others_could_read_is_closed_and_kept() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start(&builder).await;
    pull(&binary, &image).await;
    binary.terminate();
    assert!(binary.exited().await.success());
    // As earlier versions left it.
    let dir = builder.dir();
    for (path, mode) in modes(&dir) {
        let wider = mode | if path.is_dir() { 0o055 } else { 0o044 };
        fs::set_permissions(&path, Permissions::from_mode(wider)).unwrap();
    }
    let before = upstream.log().len();
    let binary = Binary::start(&builder).await;
    let told = "others had rights in the cache directory, and have none now";
    binary.wait_for_log(|line| says_that(line, told)).await;
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
    for blob in image.blobs() {
        let hit = binary.pull_blob(APP, blob).await;
        assert_eq!(hit.cache_status(), "layerhold; hit");
    }
    assert_eq!(upstream.log().len(), before);
}

#[tokio::test]
async fn a_directory_that_is_not_ours_is_refused_as_it_is() {
    let upstream = FakeRegistry::start().await;
    for sandbox in ["none", "landlock"] {
        let builder = TestProxy::in_front_of(&upstream).set("sandbox", sandbox);
        let dir = builder.dir();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("letter"), "dear").unwrap();
        // As /tmp is, which a slip of the hand may name.
        fs::set_permissions(&dir, Permissions::from_mode(0o1777)).unwrap();
        let (status, said) = Binary::refused(&builder).await;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("holds no layerhold store"), "{said}");
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o1777);
        let there: Vec<_> = fs::read_dir(&dir).unwrap().collect();
        assert_eq!(there.len(), 1, "{there:?}");
    }
}

#[tokio::test]
async fn a_link_in_place_of_a_file_of_ours_leads_nowhere() {
    let upstream = FakeRegistry::start().await;
    for name in ["LOCK", "VERSION"] {
        let builder = TestProxy::in_front_of(&upstream);
        let elsewhere = tempfile::NamedTempFile::new().unwrap();
        fs::write(elsewhere.path(), "1\n").unwrap();
        fs::create_dir(builder.dir()).unwrap();
        // A store that was never held, and of which one file is missing.
        if name != "VERSION" {
            fs::write(builder.dir().join("VERSION"), "1\n").unwrap();
        }
        let file = builder.dir().join(name);
        symlink(elsewhere.path(), &file).unwrap();
        let (status, said) = Binary::refused(&builder).await;
        assert_eq!(status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("is not usable"), "{name}: {said}");
        assert_eq!(fs::read(elsewhere.path()).unwrap(), b"1\n", "{name}");
    }
}

#[tokio::test]
async fn landlock_keeps_writes_within_the_cache_directory() {
    if !has_landlock() {
        return;
    }
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[3 * MIB, KIB]);
    upstream.serve_image(APP, "v1", &image);
    let outside = tempfile::tempdir().unwrap();
    let builder = TestProxy::in_front_of(&upstream);
    let dir = builder.dir();
    // What the helper tries goes into the cache directory, or nowhere.
    let (user, password) = ("robot", "hush");
    let script = format!(
        "cd '{out}' && echo x > new; echo x >> old; mv old moved; rm old; mkdir folder; ln old link\n\
         cd '{cache}' && echo x > allowed; echo x > /dev/null && echo x > null\n\
         {says}",
        says = says(user, password),
        out = outside.path().display(),
        cache = dir.display(),
    );
    let old = outside.path().join("old");
    fs::write(&old, "old").unwrap();
    let helper = HelperScript::new(&script);
    let builder = builder
        .set("sandbox", "landlock")
        .upstream("credential_helper", helper.path());
    upstream.lock(user, password);
    let binary = Binary::start(&builder).await;
    let confined = "landlock: writes are limited to the cache directory";
    let line = binary.wait_for_log(|line| says_that(line, confined)).await;
    println!("{line}");

    pull(&binary, &image).await;
    let allowed = dir.join("allowed");
    assert!(allowed.exists());
    assert!(dir.join("null").exists());
    // Not even what it would have noted down of the run.
    assert_eq!(helper.runs(), 0);
    let there: Vec<_> = fs::read_dir(outside.path()).unwrap().collect();
    assert_eq!(there.len(), 1, "{there:?}");
    assert_eq!(fs::read(&old).unwrap(), b"old");

    // Purging, stopping and starting again all write.
    assert_eq!(binary.purge(&format!("{ONE}/{APP}")).await.0, 1);
    binary.terminate();
    assert!(binary.exited().await.success());
    let binary = Binary::start(&builder).await;
    pull(&binary, &image).await;
    // The directory is another one after this: it is let be, and pulls go on.
    fs::remove_dir_all(&dir).unwrap();
    let fresh = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &fresh);
    for blob in fresh.blobs() {
        binary.pull_blob(APP, blob).await;
    }
    assert!(!dir.exists());
    let binary = {
        binary.terminate();
        assert!(binary.exited().await.success());
        Binary::start(&builder).await
    };
    pull(&binary, &fresh).await;
}

/// What a kernel without Landlock answers, which a filter before it can say as well: "there is no such call".
const WITHOUT_LANDLOCK: &str = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# Loads the call's number; landlock_create_ruleset is 444 everywhere: ENOSYS; else allowed.
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *it) for it in rules))
header = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(rules), ctypes.addressof(program)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, header, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

#[tokio::test]
async fn without_landlock_it_says_so_and_serves() {
    let upstream = FakeRegistry::start().await;
    let image = Image::random(&[KIB]);
    upstream.serve_image(APP, "v1", &image);
    let builder = TestProxy::in_front_of(&upstream).set("sandbox", "landlock");
    if !Path::new(PYTHON).exists() {
        println!("skipped: there is no {PYTHON} to hide Landlock with");
        return;
    }
    let binary = Binary::start_by(&builder, PYTHON, &["-c", WITHOUT_LANDLOCK]).await;
    let line = binary.wait_for_log(|line| says_that(line, "landlock: writes are not limited"));
    let line = line.await;
    assert_eq!(field(&line, "level").unwrap(), "WARN");
    let error = field(&line, "error").unwrap().as_str().unwrap();
    assert!(error.starts_with("this kernel has no Landlock"), "{error}");
    pull(&binary, &image).await;
}

/// Pulls an image as clients do, and waits until all of it is kept.
async fn pull(front: &Front, image: &Image) {
    front.pull_manifest(APP, "v1").await;
    for blob in image.blobs() {
        front.wait_for_hit(APP, blob).await;
    }
}

/// Whether this kernel can confine a process; what cannot be shown here is said.
fn has_landlock() -> bool {
    let kernel = RestrictSelf::default().no_new_privs(false).apply();
    match kernel.unwrap().landlock {
        LandlockStatus::Available { effective_abi, .. } if effective_abi >= ABI::V2 => true,
        other @ (LandlockStatus::Available { .. }
        | LandlockStatus::NotEnabled
        | LandlockStatus::NotImplemented) => {
            println!("skipped: no Landlock to be had here: {other:?}");
            false
        }
    }
}

fn says_that(line: &Value, message: &str) -> bool {
    field(line, "message").is_some_and(|it| it == message)
}

/// All files and folders below a folder and itself, with their rights.
fn modes(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    let mut found = vec![(dir.to_owned(), mode(dir))];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(modes(&path));
        } else {
            let mode = mode(&path);
            found.push((path, mode));
        }
    }
    found
}

const PYTHON: &str = "/usr/bin/python3";
