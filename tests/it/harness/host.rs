//! A host that has blobs for whoever shows a signed address: what registries redirect to.

use super::blob::Blob;
use super::registry::FakeRegistry;

/// A blob host on loopback: a [`FakeRegistry`] in what it is asked, and in what it lets tests do. Whoever drops it learns
/// of a request without a signature, and of credentials.
#[derive(Debug)]
pub(crate) struct BlobHost {
    inner: FakeRegistry,
}

impl BlobHost {
    /// Listens on a port of its own.
    pub(crate) async fn start() -> Self {
        Self {
            inner: FakeRegistry::start().await,
        }
    }

    /// Serves a blob, and says where it may be had; `{n}` is for whoever signs.
    pub(crate) fn serve(&self, blob: &Blob) -> String {
        self.inner.serve_blob(FOLDER, blob);
        self.link(blob.digest())
    }

    /// Where content of this digest would be.
    pub(crate) fn link(&self, digest: &str) -> String {
        let address = self.inner.address();
        format!("http://{address}/v2/{FOLDER}/blobs/{digest}?{SIGNATURE}&turn={{n}}")
    }
}

impl std::ops::Deref for BlobHost {
    type Target = FakeRegistry;

    fn deref(&self) -> &FakeRegistry {
        &self.inner
    }
}

impl Drop for BlobHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for seen in self.inner.log() {
            let query = seen.query.as_deref().unwrap_or_default();
            assert!(query.starts_with(SIGNATURE), "unsigned: {seen:?}");
        }
    }
}

/// What nobody else may learn.
pub(crate) const SIGNATURE: &str = "sig=s3cr3t-signature";

const FOLDER: &str = "bucket";
