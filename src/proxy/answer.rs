//! What is asked of the proxy, and what it decided to return.

use bytes::Bytes;
use tokio::time::Instant;

use super::registry::Registry;
use super::stream::BlobStream;
use crate::oci::{Digest, Endpoint, MediaType};
use crate::upstream::Credential;
use std::sync::Arc;

/// One client request for content.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Whether the content is wanted, or only what is known of it.
    pub method: Method,
    /// The upstream that is meant.
    pub registry: Arc<Registry>,
    /// What is asked for there.
    pub endpoint: Endpoint,
    /// The client's own words for it, which a listing gives back.
    pub asked: Asked,
    /// Who asks.
    pub caller: Caller,
    /// When the answer's head must be there.
    pub deadline: Instant,
}

/// A request in the client's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The repository's name in its path, namespace included.
    pub name: String,
    /// The path.
    pub path: String,
    /// The query, undecoded.
    pub query: Option<String>,
}

/// The methods of pulling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The content.
    Get,
    /// What is known of it.
    Head,
}

/// On whose behalf a pull is made. Only an upstream that decides by its callers' rights ever hears of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody who says nothing of who they are at the upstream.
    Anyone,
    /// Somebody with a user name and a password of their own at the upstream.
    Own(Arc<Credential>),
}

impl Caller {
    /// What they have for the upstream.
    pub fn credential(&self) -> Option<&Credential> {
        match self {
            Self::Anyone => None,
            Self::Own(credential) => Some(credential),
        }
    }
}

/// What the proxy decided to return, before HTTP.
#[derive(Debug)]
pub enum Answer {
    /// The API is here (end-1).
    Pong,
    /// Content, or what is known of it.
    Content(Content),
    /// A list that upstream just gave, or last gave.
    Listing(Listing),
}

/// A list of tags or referrers, in the client's own words.
#[derive(Debug)]
pub struct Listing {
    /// The body.
    pub bytes: Bytes,
    /// Its type as upstream gave it.
    pub media_type: Option<MediaType>,
    /// The `Link` to the next page.
    pub link: Option<String>,
    /// `OCI-Filters-Applied`, as upstream gave it.
    pub filters_applied: Option<String>,
    /// How it came about.
    pub outcome: Outcome,
}

/// Content under a digest.
#[derive(Debug)]
pub struct Content {
    /// Its digest, which is also its entity tag.
    pub digest: Digest,
    /// Its type; `None` for blobs, whose type nobody vouches for.
    pub media_type: Option<MediaType>,
    /// Its size, where that is known.
    pub size: Option<u64>,
    /// How it came about.
    pub outcome: Outcome,
    /// The bytes.
    pub body: Body,
}

/// The bytes of an answer.
#[derive(Debug)]
pub enum Body {
    /// Not asked for.
    None,
    /// All of them.
    Memory(Bytes),
    /// As they come.
    Stream(Box<BlobStream>),
}

/// How an answer came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was here.
    Hit,
    /// It was here, and upstream just said that it is still right.
    Revalidated,
    /// Somebody else's pull was already bringing it.
    Join,
    /// It was not here, and is being stored.
    Miss,
    /// It was not here; upstream's head was passed on, and nothing is stored.
    Forwarded,
    /// Upstream could not be asked; this is what was last stored.
    Stale,
    /// The cache cannot keep it; it comes straight from upstream.
    Bypass,
}

impl Outcome {
    /// The metrics label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Join => "join",
            Self::Miss | Self::Forwarded => "miss",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
        }
    }

    /// The `Cache-Status` field (RFC 9211 §2).
    pub const fn cache_status(self) -> &'static str {
        match self {
            Self::Hit => "layerhold; hit",
            Self::Revalidated => "layerhold; hit; detail=revalidated",
            Self::Join => "layerhold; fwd=miss; collapsed",
            Self::Miss => "layerhold; fwd=miss; stored",
            Self::Forwarded => "layerhold; fwd=miss",
            Self::Stale => "layerhold; fwd=stale; detail=upstream-unavailable",
            Self::Bypass => "layerhold; fwd=bypass",
        }
    }
}
