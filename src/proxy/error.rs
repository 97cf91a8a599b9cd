//! Why a pull has no content, and the one mapping of that to the wire.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::policy::Refusal;
use crate::cache;
use crate::net::{InvalidFraming, InvalidHost};
use crate::oci::{Digest, ErrorCode, InvalidEndpoint, Namespace};
use crate::upstream;

/// Why a pull has no content. The name of the variant says whose fault it is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The client's: this request can never be answered.
    #[error("the request cannot be answered")]
    Request(#[source] RequestFault),
    /// The operator's, if anybody's: no upstream has this name.
    #[error("no upstream is configured for namespace {namespace:?}")]
    Route {
        /// What the client asked for.
        namespace: String,
    },
    /// The operator's: a rule does not let it be pulled.
    #[error(transparent)]
    Denied(#[from] Refusal),
    /// The operator's: nobody can say whether it may be given out.
    #[error("upstream[{namespace}].verifier has no answer")]
    Unverified {
        /// The upstream whose verifier failed.
        namespace: Namespace,
    },
    /// The other side's.
    #[error("the upstream registry failed")]
    Upstream {
        /// What was asked for.
        subject: Subject,
        /// What it said.
        #[source]
        source: Arc<upstream::Error>,
    },
    /// The other side's: the bytes it sent under a digest are not those of the digest.
    #[error("the upstream registry sent other bytes than those of {expected}")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
    },
    /// The other side's: the content broke off before its head could be sent.
    #[error("the content broke off before its head could be sent")]
    Broken(#[source] Arc<StreamError>),
    /// Nobody's: the time for an answer is over.
    #[error("no answer within {allowed:?}")]
    Deadline {
        /// How long an answer may take.
        allowed: Duration,
    },
    /// Ours: a limit is reached.
    #[error("too many pulls go around the cache")]
    Busy,
    /// The client's: it asks more often than it may.
    #[error("the client asks too often, again in {after:?}")]
    TooOften {
        /// When it may ask again.
        after: Duration,
    },
    /// Ours: something that was impossible happened.
    #[error("a task of the pull was lost")]
    Lost,
}

/// What is wrong with a request.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestFault {
    /// The path is no pull endpoint.
    #[error(transparent)]
    Endpoint(#[from] Arc<InvalidEndpoint>),
    /// The method is not one of pulling.
    #[error("only GET and HEAD are supported")]
    Method,
    /// Nobody can say which host is meant.
    #[error(transparent)]
    Host(#[from] InvalidHost),
    /// Nobody can say where it ends.
    #[error(transparent)]
    Framing(#[from] InvalidFraming),
    /// `ns` is there twice, so nobody can say which registry is meant.
    #[error("ns is given more than once")]
    NamespaceTwice,
    /// So many parts of one content are never sent; fewer are.
    #[error("too many ranges are asked for")]
    Ranges,
}

/// What a pull asks for, as far as errors differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A manifest, by tag or digest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags or referrers.
    Listing,
}

/// Why a body ends short.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The bytes could not be read or fetched.
    #[error("the content broke off")]
    Content(#[source] cache::ReadError),
    /// The way around the cache failed too.
    #[error("the way around the cache failed")]
    Bypass(#[source] Arc<upstream::Error>),
    /// The bytes that came around the cache are not those of the digest.
    #[error("the bytes are not those of {expected}")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
    },
    /// Too many pulls go around the cache.
    #[error("too many pulls go around the cache")]
    Busy,
}

impl From<StreamError> for Error {
    /// Why a pull has no content, when its body failed before the head went out.
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Bypass(source) => Self::Upstream {
                subject: Subject::Blob,
                source,
            },
            StreamError::Mismatch { expected } => Self::Mismatch { expected },
            StreamError::Busy => Self::Busy,
            StreamError::Content(_) => Self::Broken(Arc::new(error)),
        }
    }
}

impl Error {
    /// The HTTP status of this error.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Request(fault) => fault.status(),
            Self::Route { .. } => StatusCode::NOT_FOUND,
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Unverified { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream { source, .. } => match source.cause() {
                upstream::Error::Gone { .. } => StatusCode::NOT_FOUND,
                upstream::Error::Refused { status, .. } => *status,
                upstream::Error::Status { status, .. } if is_busy(*status) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                upstream::Error::Silent { .. } => StatusCode::GATEWAY_TIMEOUT,
                upstream::Error::Unreachable { .. }
                | upstream::Error::Cut { .. }
                | upstream::Error::Short { .. }
                | upstream::Error::Status { .. }
                | upstream::Error::Resting { .. }
                | upstream::Error::Offline { .. }
                | upstream::Error::Invalid { .. }
                | upstream::Error::Busy { .. }
                | upstream::Error::Credential { .. } => StatusCode::BAD_GATEWAY,
            },
            Self::Mismatch { .. } | Self::Broken(_) => StatusCode::BAD_GATEWAY,
            Self::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Busy | Self::TooOften { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Lost => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The code in the body, where the distribution spec has one for this.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Request(fault) => Some(fault.code()),
            Self::Route { .. } => Some(ErrorCode::NameUnknown),
            Self::Denied(_) => Some(ErrorCode::Denied),
            Self::Upstream { subject, source } => match (source.as_ref(), subject) {
                (upstream::Error::Gone { .. }, Subject::Manifest) => {
                    Some(ErrorCode::ManifestUnknown)
                }
                (upstream::Error::Gone { .. }, Subject::Blob) => Some(ErrorCode::BlobUnknown),
                (upstream::Error::Gone { .. }, Subject::Listing) => Some(ErrorCode::NameUnknown),
                (upstream::Error::Refused { status, .. }, _) => {
                    let denied = *status == StatusCode::FORBIDDEN;
                    Some(if denied {
                        ErrorCode::Denied
                    } else {
                        ErrorCode::Unauthorized
                    })
                }
                (upstream::Error::Status { status, .. }, _) if is_busy(*status) => {
                    Some(ErrorCode::TooManyRequests)
                }
                (
                    upstream::Error::Unreachable { .. }
                    | upstream::Error::Cut { .. }
                    | upstream::Error::Short { .. }
                    | upstream::Error::Silent { .. }
                    | upstream::Error::Status { .. }
                    | upstream::Error::Resting { .. }
                    | upstream::Error::Offline { .. }
                    | upstream::Error::Invalid { .. }
                    | upstream::Error::Busy { .. }
                    | upstream::Error::Credential { .. },
                    _,
                ) => None,
            },
            Self::Busy | Self::TooOften { .. } => Some(ErrorCode::TooManyRequests),
            Self::Mismatch { .. }
            | Self::Unverified { .. }
            | Self::Broken(_)
            | Self::Deadline { .. }
            | Self::Lost => None,
        }
    }

    /// What the client is told besides what the code says: which rule of the operator's refused it.
    pub fn told(&self) -> Option<String> {
        match self {
            Self::Denied(_) | Self::Unverified { .. } => Some(self.to_string()),
            Self::Request(_)
            | Self::Route { .. }
            | Self::TooOften { .. }
            | Self::Upstream { .. }
            | Self::Mismatch { .. }
            | Self::Broken(_)
            | Self::Deadline { .. }
            | Self::Busy
            | Self::Lost => None,
        }
    }

    /// After how long to ask again, where that can be said.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Upstream { source, .. } => match source.as_ref() {
                upstream::Error::Status {
                    status,
                    retry_after,
                    ..
                } if is_busy(*status) => Some(retry_after.unwrap_or(RETRY_AFTER)),
                upstream::Error::Resting { left, .. } => Some(*left),
                upstream::Error::Gone { .. }
                | upstream::Error::Refused { .. }
                | upstream::Error::Status { .. }
                | upstream::Error::Silent { .. }
                | upstream::Error::Unreachable { .. }
                | upstream::Error::Cut { .. }
                | upstream::Error::Short { .. }
                | upstream::Error::Offline { .. }
                | upstream::Error::Invalid { .. }
                | upstream::Error::Busy { .. }
                | upstream::Error::Credential { .. } => None,
            },
            Self::Busy | Self::Unverified { .. } => Some(RETRY_AFTER),
            Self::TooOften { after } => Some(*after),
            Self::Request(_)
            | Self::Route { .. }
            | Self::Denied(_)
            | Self::Mismatch { .. }
            | Self::Broken(_)
            | Self::Deadline { .. }
            | Self::Lost => None,
        }
    }

    /// When to ask again, where the registry asks for a pause before it answers this. Not all at once.
    pub(super) fn ask_again_at(&self) -> Option<Instant> {
        let Self::Upstream { source, .. } = self else {
            return None;
        };
        let pause = self.retry_after().filter(|_| source.is_rate_limit())?;
        let late = Duration::from_millis(rand::random_range(0..PAUSE_LATE_MAX_MILLIS));
        Some(Instant::now() + pause.max(PAUSE_MIN) + late)
    }

    /// Whether the registry itself does not let somebody, or knows of nothing there that it would.
    pub fn is_denial(&self) -> bool {
        let is_news = |class| class != upstream::Class::Unavailable;
        matches!(self, Self::Upstream { source, .. } if is_news(source.class()))
    }

    /// Whether the registry itself says that it is not there.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Upstream { source, .. } if source.class() == upstream::Class::Gone)
    }

    /// What kind of news this is about the content, for serving stale.
    pub(super) fn is_unavailable(&self) -> bool {
        match self {
            Self::Upstream { source, .. } => source.class() == upstream::Class::Unavailable,
            Self::Mismatch { .. }
            | Self::Broken(_)
            | Self::Deadline { .. }
            | Self::Unverified { .. }
            | Self::Busy
            | Self::Lost => true,
            Self::Request(_) | Self::Route { .. } | Self::Denied(_) | Self::TooOften { .. } => {
                false
            }
        }
    }
}

impl RequestFault {
    fn status(&self) -> StatusCode {
        match self {
            Self::Endpoint(invalid) => match invalid.as_ref() {
                InvalidEndpoint::NotAnEndpoint => StatusCode::NOT_FOUND,
                InvalidEndpoint::Name(_) | InvalidEndpoint::Tag(_) | InvalidEndpoint::Digest(_) => {
                    StatusCode::BAD_REQUEST
                }
            },
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Host(_) | Self::Framing(_) | Self::NamespaceTwice | Self::Ranges => {
                StatusCode::BAD_REQUEST
            }
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Endpoint(invalid) => match invalid.as_ref() {
                InvalidEndpoint::NotAnEndpoint => ErrorCode::Unsupported,
                InvalidEndpoint::Name(_) | InvalidEndpoint::Tag(_) => ErrorCode::NameInvalid,
                InvalidEndpoint::Digest(_) => ErrorCode::DigestInvalid,
            },
            Self::NamespaceTwice => ErrorCode::NameInvalid,
            Self::Host(_) | Self::Framing(_) | Self::Method | Self::Ranges => {
                ErrorCode::Unsupported
            }
        }
    }
}

/// The shortest pause between two questions for one pull, however short a one is asked for; and how much later some ask.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_LATE_MAX_MILLIS: u64 = 200;
/// What a client is told to wait when upstream did not say.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Upstream is there and asks us to come back later.
fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    )
}
