//! Two images of a few megabytes, made without a daemon, where what counts is the way to them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::images::{FIRST, SECOND, layer};
use crate::lab::refuse_unless_possible;
use crate::registry::{Image, MANIFEST, REPOSITORY, Registry, digest, hex};
use crate::wait::{bounded, run};

/// A registry's storage that holds both images, and that nobody serves yet.
pub(crate) struct Shelf {
    pub(crate) storage: PathBuf,
    pub(crate) first: Image,
    pub(crate) second: Image,
    pub(crate) dir: TempDir,
}

impl Shelf {
    pub(crate) fn filled() -> Self {
        refuse_unless_possible();
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let storage = dir.path().join("storage");
        let registry = Registry::start(&storage, &dir.path().join("filling"));
        let push = |tag, seed| {
            make(&dir.path().join(tag), seed);
            let to = format!("docker://{}/{REPOSITORY}:{tag}", registry.address());
            let mut skopeo = bounded("skopeo");
            skopeo.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
            run(skopeo.args([
                "--dest-no-creds",
                &format!("dir:{}/{tag}", dir.path().display()),
                &to,
            ]));
            registry.image(tag)
        };
        Self {
            storage,
            first: push(FIRST, 1),
            second: push(SECOND, 2),
            dir,
        }
    }

    /// A directory for one of the parts.
    pub(crate) fn place(&self, name: &str) -> PathBuf {
        let place = self.dir.path().join(name);
        fs::create_dir_all(&place).unwrap();
        place
    }
}

/// An image in the form of skopeo's transport `dir:`. The images have no layer in common.
fn make(dir: &Path, seed: u64) {
    fs::create_dir(dir).unwrap();
    let keep = |bytes: &[u8]| {
        fs::write(dir.join(hex(bytes)), bytes).unwrap();
        (digest(bytes), bytes.len())
    };
    let (mut layers, mut diffs) = (Vec::new(), Vec::new());
    for (name, size) in [
        ("library", LIBRARY_BYTES + seed),
        ("service", SERVICE_BYTES + seed),
    ] {
        let tree = layer(dir, name, name, size);
        let archive = dir.join(name).with_extension("tar");
        run(bounded("tar")
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&archive)
            .arg("."));
        diffs.push(digest(&fs::read(&archive).unwrap()));
        run(bounded("gzip").arg(&archive));
        layers.push(descriptor(
            LAYER,
            keep(&fs::read(archive.with_extension("tar.gz")).unwrap()),
        ));
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": diffs },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, keep(config.to_string().as_bytes())),
        "layers": layers,
    });
    fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
}

fn descriptor(media_type: &str, (digest, size): (String, usize)) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

const LIBRARY_BYTES: u64 = 3 << 20;
const SERVICE_BYTES: u64 = 1 << 20;
