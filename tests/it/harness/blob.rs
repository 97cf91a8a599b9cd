//! Content to pull: bytes from a printed seed, and the manifests that name them.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

/// The type of an OCI image manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The type of an OCI index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The type of a Docker image manifest, schema 2.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// The type of a Docker manifest list.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Bytes and their true name.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    bytes: Bytes,
    digest: String,
}

/// A document at the manifests endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    bytes: Bytes,
    digest: String,
    media_type: String,
}

/// A manifest with everything it names.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
    pub(crate) manifest: Manifest,
}

impl Blob {
    /// `len` bytes that no other blob of this run has. The seed is printed, so that [`Blob::seeded`] can bring them back.
    pub(crate) fn random(len: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let run = u64::from(std::process::id());
        let seed = rand::rng().random::<u64>() ^ run ^ NEXT.fetch_add(1, Ordering::Relaxed);
        println!("blob of {len} bytes from seed {seed}");
        Self::seeded(seed, len)
    }

    /// The bytes that `seed` stands for.
    pub(crate) fn seeded(seed: u64, len: usize) -> Self {
        let mut bytes = vec![0; len];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        Self::of(bytes)
    }

    /// These bytes, named by SHA-256.
    pub(crate) fn of(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        Self { bytes, digest }
    }

    /// The same bytes, named by SHA-512.
    pub(crate) fn named_by_sha512(self) -> Self {
        let digest = format!("sha512:{}", hex(&Sha512::digest(&self.bytes)));
        Self { digest, ..self }
    }

    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Manifest {
    /// An OCI image of `config` and `layers`.
    pub(crate) fn oci(config: &Blob, layers: &[&Blob]) -> Self {
        let json = image(
            OCI_MANIFEST,
            &descriptor("application/vnd.oci.image.config.v1+json", config),
            &descriptors("application/vnd.oci.image.layer.v1.tar+gzip", layers),
        );
        Self::of(OCI_MANIFEST, &json)
    }

    /// A Docker image of `config` and `layers`.
    pub(crate) fn docker(config: &Blob, layers: &[&Blob]) -> Self {
        let json = image(
            DOCKER_MANIFEST,
            &descriptor("application/vnd.docker.container.image.v1+json", config),
            &descriptors("application/vnd.docker.image.rootfs.diff.tar.gzip", layers),
        );
        Self::of(DOCKER_MANIFEST, &json)
    }

    /// An OCI index of `children`.
    pub(crate) fn index(children: &[&Self]) -> Self {
        Self::list(OCI_INDEX, children)
    }

    /// An index of `children` under another type.
    pub(crate) fn list(media_type: &str, children: &[&Self]) -> Self {
        let children: Vec<Value> = children
            .iter()
            .map(|child| {
                json!({
                    "mediaType": child.media_type,
                    "digest": child.digest,
                    "size": child.bytes.len(),
                    "platform": { "os": "linux", "architecture": "amd64" },
                })
            })
            .collect();
        let json = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": children });
        Self::of(media_type, &json)
    }

    /// A document, in the odd spacing of somebody else's encoder: nobody may write it anew.
    pub(crate) fn of(media_type: &str, json: &Value) -> Self {
        let text = serde_json::to_string_pretty(json).unwrap();
        Self::raw(media_type, text.replace("\n  ", "\n   ") + "\n")
    }

    /// Any bytes at all.
    pub(crate) fn raw(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            digest: sha256(&bytes),
            media_type: media_type.to_owned(),
            bytes,
        }
    }

    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The same bytes as a blob: what somebody who pushed them to the blobs endpoint would have.
    pub(crate) fn as_blob(&self) -> Blob {
        Blob::of(self.bytes.clone())
    }
}

impl Image {
    /// An OCI image with layers of these sizes.
    pub(crate) fn random(sizes: &[usize]) -> Self {
        let config = Blob::random(600);
        let layers: Vec<Blob> = sizes.iter().map(|len| Blob::random(*len)).collect();
        let manifest = Manifest::oci(&config, &layers.iter().collect::<Vec<_>>());
        Self {
            config,
            layers,
            manifest,
        }
    }

    /// The config and the layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// The JSON of an image manifest.
pub(crate) fn image(media_type: &str, config: &Value, layers: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers })
}

/// The JSON of a descriptor.
pub(crate) fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len() })
}

/// The SHA-256 digest of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn descriptors(media_type: &str, blobs: &[&Blob]) -> Vec<Value> {
    blobs
        .iter()
        .map(|blob| descriptor(media_type, blob))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
