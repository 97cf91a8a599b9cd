//! Partial pulls: podman asks for the chunks of a `zstd:chunked` layer that it has not, several in one request.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::images::{FIRST, SECOND};
use crate::lab::refuse_unless_possible;
use crate::podman::Podman;
use crate::proxy::Proxy;
use crate::registry::{Descriptor, Image, MANIFEST, REPOSITORY, Registry, digest, hex};
use crate::wait::{bounded, run, until};

#[test]
fn podman_asks_for_the_chunks_of_a_new_version_that_changed_and_for_no_others() {
    refuse_unless_possible();
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let place = |name: &str| dir.path().join(name);
    let upstream = Registry::start(&place("storage"), &place("registry"));
    let first = push(&upstream, dir.path(), FIRST, &[]);
    let second = push(&upstream, dir.path(), SECOND, CHANGED);
    let proxy = Proxy::start(&place("proxy"), upstream.address());
    let podman = Podman::partial(&place("client"), "");

    // Cold: the table of contents, then everything that it lists.
    let asked = pull(&podman, &proxy, FIRST, &first, dir.path());
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|it| it["status"] == 206), "{asked:?}");
    assert_eq!(proxy.published(&first.parts()), first.parts());

    // Of the new version, what changed: as many files that are not neighbours, by one request.
    let asked = pull(&podman, &proxy, SECOND, &second, dir.path());
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|it| it["status"] == 206), "{asked:?}");
    let sent: u64 = asked.iter().map(|it| it["bytes"].as_u64().unwrap()).sum();
    let changed = FILE_BYTES * u64::try_from(CHANGED.len()).unwrap();
    let layer = layer(&second).size;
    assert!(sent >= changed, "{sent} bytes of {changed}");
    assert!(sent < layer / 10, "{sent} bytes of a layer of {layer}");

    // Each layer came once, and beside it nothing but windows; nothing was asked around the cache.
    proxy.published(&second.parts());
    let requests = upstream.requests();
    let gets = |layer: &Descriptor| {
        let blob = format!("blobs/{}", layer.digest);
        let mut gets = requests.iter().filter(|it| it.method == "GET");
        gets.by_ref()
            .filter(|it| it.content() == Some(&blob))
            .count()
    };
    let windows = proxy.counts("layerhold_windows_total", &[]);
    let layers = [&first, &second].map(|image| gets(self::layer(image)));
    assert_eq!(layers.iter().sum::<usize>(), 2 + windows);
    let bytes = |name: &str| u64::try_from(proxy.counts(name, &[])).unwrap();
    let wanted = first.bytes() + second.bytes();
    assert_eq!(
        bytes("layerhold_upstream_bytes_total"),
        wanted + bytes("layerhold_window_bytes_total")
    );
}

/// Pulls a version, proves that every file of it is right, and gives what the proxy logged of requests for its layer.
fn pull(podman: &Podman, proxy: &Proxy, tag: &str, image: &Image, dir: &Path) -> Vec<Value> {
    let reference = format!("{}/{REPOSITORY}:{tag}", proxy.address());
    assert_eq!(podman.pull(&reference), image.manifest.digest);
    let out = dir.join(format!("{tag}-pulled"));
    podman.copy_out(&reference, "/data", &out);
    let (pulled, made) = (read(&out), read(&dir.join(tag).join("data")));
    assert_eq!(pulled.len(), FILES);
    assert!(pulled == made, "other files than those of {tag}");
    let path = format!("/blobs/{}", layer(image).digest);
    until("requests for the layer", || {
        let asked: Vec<Value> = proxy
            .requests()
            .into_iter()
            .filter(|it| it["path"].as_str().is_some_and(|it| it.ends_with(&path)))
            .collect();
        // The last one is written when its response has ended.
        (asked.len() >= 2).then_some(asked)
    })
}

/// The names and sums of the files in a folder.
fn read(dir: &Path) -> BTreeSet<(String, String)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let files = entries.map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        (name, hex(&fs::read(entry.path()).unwrap()))
    });
    files.collect()
}

fn layer(image: &Image) -> &Descriptor {
    image.layers.first().unwrap()
}

/// Makes a version of an image of one layer, `zstd:chunked`, and pushes it.
fn push(registry: &Registry, dir: &Path, tag: &str, changed: &[usize]) -> Image {
    let tree = dir.join(tag);
    fs::create_dir_all(tree.join("data")).unwrap();
    for n in 0..FILES {
        let seed = if changed.contains(&n) { FILES + n } else { n };
        let mut bytes = vec![0; usize::try_from(FILE_BYTES).unwrap()];
        StdRng::seed_from_u64(seed as u64).fill_bytes(&mut bytes);
        fs::write(tree.join(format!("data/{n:02}")), bytes).unwrap();
    }
    let made = dir.join(format!("{tag}-made"));
    make(&tree, &made);
    let to = format!("docker://{}/{REPOSITORY}:{tag}", registry.address());
    let mut skopeo = bounded("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
    skopeo.args(["--dest-no-creds", "--format", "oci"]);
    skopeo.args(["--dest-compress-format", "zstd:chunked"]);
    run(skopeo.args([&format!("dir:{}", made.display()), &to]));
    registry.image(tag)
}

/// An image of a tree in the form of skopeo's transport `dir:`, with nothing compressed.
fn make(tree: &Path, dir: &Path) {
    fs::create_dir(dir).unwrap();
    let keep = |bytes: &[u8], media_type: &str| {
        fs::write(dir.join(hex(bytes)), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
    };
    let archive = dir.with_extension("tar");
    let mut tar = bounded("tar");
    tar.args(["--sort=name", "--mtime=@0", "-C"]).arg(tree);
    run(tar.arg("-cf").arg(&archive).arg("."));
    let archive = fs::read(&archive).unwrap();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [digest(&archive)] },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": keep(config.to_string().as_bytes(), CONFIG),
        "layers": [keep(&archive, LAYER)],
    });
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
}

const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Bytes that no compression makes smaller.
const FILE_BYTES: u64 = 200_000;
const FILES: usize = 64;
/// The files of the second version that are not those of the first.
const CHANGED: &[usize] = &[5, 20, 21, 50];
