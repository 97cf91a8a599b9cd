//! The upstream: Debian's `docker-registry`, with a log of what it was asked.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::http;
use crate::process::Process;

/// A real registry that listens on a port of its own.
pub(crate) struct Registry {
    process: Process,
    scheme: &'static str,
    address: SocketAddr,
}

/// A request that the registry was sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
}

/// An image for one platform, as the registry has it.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Descriptor,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    document: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Descriptor {
    pub(crate) digest: String,
    pub(crate) size: u64,
}

impl Registry {
    /// Starts a registry on what is stored in `storage`; its log and configuration go to `dir`.
    pub(crate) fn start(storage: &Path, dir: &Path) -> Self {
        Self::demanding(storage, dir, &json!({}))
    }

    /// Starts a registry that wants more than a question: its sections `auth` and `http.tls`, each
    /// under its last name.
    pub(crate) fn demanding(storage: &Path, dir: &Path, sections: &Value) -> Self {
        fs::create_dir_all(dir).unwrap();
        let config = dir.join("registry.json");
        // A request is logged as it begins at `debug` only; once its answer has ended is too late
        // for a test that saw that end.
        let mut document = json!({
            "version": "0.1",
            "log": { "level": "debug", "formatter": "json" },
            "storage": { "filesystem": { "rootdirectory": storage } },
            "http": { "addr": "127.0.0.1:0" },
        });
        if let Some(auth) = sections.get("auth") {
            document["auth"] = auth.clone();
        }
        let tls = sections.get("tls");
        if let Some(tls) = tls {
            document["http"]["tls"] = tls.clone();
        }
        fs::write(&config, document.to_string()).unwrap();
        let args = ["serve", config.to_str().unwrap()];
        let mut process = Process::start("registry", dir, "docker-registry", &args);
        let address = process.wait_for("address", |process| {
            process.events().iter().find_map(|event| {
                let message = event.get("msg")?.as_str()?;
                let address = message.strip_prefix("listening on ")?;
                address.trim_end_matches(", tls").parse().ok()
            })
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        Self {
            process,
            scheme,
            address,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Every request so far, in the order of their begin, without those of the test itself.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let events = self.process.events();
        let begun = events.iter().filter(|it| is_request(it));
        begun.map(Request::from_event).collect()
    }

    /// The hosts that those requests came from.
    pub(crate) fn peers(&self) -> BTreeSet<String> {
        let events = self.process.events();
        let begun = events.iter().filter(|it| is_request(it));
        let peers = begun.map(|it| it["http.request.remoteaddr"].as_str().unwrap());
        let hosts = peers.map(|peer| peer.rsplit_once(':').unwrap().0.to_owned());
        hosts.collect()
    }

    /// The document that is stored under a tag or digest of [`REPOSITORY`], byte for byte.
    pub(crate) fn document(&self, reference: &str) -> Vec<u8> {
        let path = format!("/v2/{REPOSITORY}/manifests/{reference}");
        http::get(
            self.address,
            &path,
            &format!("{MANIFEST}, {INDEX}, {OCI_MANIFEST}"),
        )
    }

    /// The image that is stored under a tag of [`REPOSITORY`].
    pub(crate) fn image(&self, tag: &str) -> Image {
        Image::parse(self.document(tag))
    }

    /// Makes a tag of [`REPOSITORY`] point to an image that is there already.
    pub(crate) fn tag(&self, tag: &str, image: &Image) {
        self.put(tag, MANIFEST, &image.document);
    }

    /// Makes a tag of [`REPOSITORY`] point to an index of images that are there already.
    pub(crate) fn tag_index(&self, tag: &str, images: &[(&str, &Image)]) -> Vec<u8> {
        let entries = images.iter().map(|(architecture, image)| {
            json!({
                "mediaType": MANIFEST,
                "digest": image.manifest.digest,
                "size": image.manifest.size,
                "platform": { "os": "linux", "architecture": architecture },
            })
        });
        let manifests: Vec<Value> = entries.collect();
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
        let document = serde_json::to_vec_pretty(&index).unwrap();
        self.put(tag, INDEX, &document);
        document
    }

    pub(crate) fn stop(&mut self) {
        self.process.stop();
    }

    fn put(&self, tag: &str, media_type: &str, document: &[u8]) {
        let path = format!("/v2/{REPOSITORY}/manifests/{tag}");
        http::put(self.address, &path, media_type, document);
    }
}

impl Request {
    fn from_event(event: &Value) -> Self {
        let field = |name: &str| event[name].as_str().unwrap().to_owned();
        let uri = field("http.request.uri");
        Self {
            method: field("http.request.method"),
            path: uri.split('?').next().unwrap().to_owned(),
        }
    }

    /// What was asked for: `manifests/…` or `blobs/…` of [`REPOSITORY`].
    pub(crate) fn content(&self) -> Option<&str> {
        let rest = self.path.strip_prefix("/v2/")?;
        rest.strip_prefix(REPOSITORY)?.strip_prefix('/')
    }
}

impl Image {
    fn parse(document: Vec<u8>) -> Self {
        let value: Value = serde_json::from_slice(&document).unwrap();
        let layers = value["layers"].as_array().unwrap();
        Self {
            manifest: Descriptor {
                digest: digest(&document),
                size: u64::try_from(document.len()).unwrap(),
            },
            config: Descriptor::from_json(&value["config"]),
            layers: layers.iter().map(Descriptor::from_json).collect(),
            document,
        }
    }

    /// Everything that must be moved to have the image: manifest, config, layers.
    pub(crate) fn parts(&self) -> BTreeSet<Descriptor> {
        let single = [&self.manifest, &self.config];
        single.into_iter().chain(&self.layers).cloned().collect()
    }

    /// What must be asked for to have the image, as [`Request::content`] has it.
    pub(crate) fn contents(&self) -> BTreeSet<String> {
        let blobs = self.layers.iter().chain([&self.config]);
        let blobs = blobs.map(|blob| format!("blobs/{}", blob.digest));
        let manifest = format!("manifests/{}", self.manifest.digest);
        blobs.chain([manifest]).collect()
    }

    /// How many bytes all of it is.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.size).sum()
    }
}

impl Descriptor {
    fn from_json(value: &Value) -> Self {
        Self {
            digest: value["digest"].as_str().unwrap().to_owned(),
            size: value["size"].as_u64().unwrap(),
        }
    }

    /// The second half of a digest, which is a file name nearly everywhere.
    pub(crate) fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap()
    }
}

/// Whether a line of the registry's log is the begin of a request of somebody else than the test.
fn is_request(event: &Value) -> bool {
    event["msg"] == "authorizing request" && event["http.request.useragent"] != http::USER_AGENT
}

/// The sha256 digest of some bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

/// The sha256 of some bytes, as `sha256sum` prints it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the daemon calls `debian`.
pub(crate) const REPOSITORY: &str = "library/debian";

pub(crate) const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
