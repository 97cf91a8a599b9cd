//! What is asked of a cache, in order: a recorded trace, or one that is made up. Sizes are drawn in either case.

pub(crate) mod slice;
pub(crate) mod ibm2017;
pub(crate) mod sizes;
pub(crate) mod draw;

/// Requests in order.
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) requests: Vec<Request>,
    /// By the number of a digest, something made of it that seeds its size.
    pub(crate) digests: Vec<u64>,
}

#[derive(Clone, Copy)]
pub(crate) enum Request {
    /// `/v2/`.
    Ping,
    /// The manifest with this number.
    Manifest(u32),
    Blob(BlobRequest),
}

/// The blob with this number, by the URL with that one: the same digest in two repositories has two.
#[derive(Clone, Copy)]
pub(crate) struct BlobRequest {
    pub(crate) digest: u32,
    pub(crate) url: u32,
}

impl Workload {
    pub(crate) fn blobs(&self) -> Vec<BlobRequest> {
        let blob = |request: &Request| match request {
            Request::Blob(blob) => Some(*blob),
            Request::Ping | Request::Manifest(_) => None,
        };
        self.requests.iter().filter_map(blob).collect()
    }

    pub(crate) fn manifests(&self) -> Vec<u32> {
        let manifest = |request: &Request| match request {
            Request::Manifest(manifest) => Some(*manifest),
            Request::Ping | Request::Blob(_) => None,
        };
        self.requests.iter().filter_map(manifest).collect()
    }

    pub(crate) fn pings(&self) -> usize {
        let requests = self.requests.iter();
        requests.filter(|it| matches!(it, Request::Ping)).count()
    }
}
