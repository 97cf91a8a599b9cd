//! What goes wrong between us and an upstream registry, and what kind of news it is.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::credential::CredentialError;

/// What went wrong between us and an upstream registry. A clone is for those who waited for the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No connection could be made, or the one that was made broke before the response head.
    #[error("could not reach {host}")]
    Unreachable {
        /// The registry.
        host: String,
        /// What the client said.
        #[source]
        source: Arc<hyper_util::client::legacy::Error>,
    },
    /// The connection broke within a body.
    #[error("{host} broke off the transfer")]
    Cut {
        /// The registry.
        host: String,
        /// What the connection said.
        #[source]
        source: Arc<hyper::Error>,
    },
    /// A body ended in order, and before its length.
    #[error("{host} sent less than it announced")]
    Short {
        /// The registry.
        host: String,
    },
    /// The upstream fell silent.
    #[error("{host} sent nothing for {waited:?}")]
    Silent {
        /// The registry.
        host: String,
        /// How long we waited.
        waited: Duration,
    },
    /// The registry says that it has no such thing (404, 410).
    #[error("{host} does not have it")]
    Gone {
        /// The registry.
        host: String,
    },
    /// The registry does not let us (401, 403).
    #[error("{host} refused with {status}")]
    Refused {
        /// The registry.
        host: String,
        /// 401 or 403.
        status: StatusCode,
    },
    /// Any other answer that is not the one asked for.
    #[error("{host} answered {status}")]
    Status {
        /// The registry.
        host: String,
        /// The status.
        status: StatusCode,
        /// `Retry-After`, as a duration (RFC 9110 §10.2.3).
        retry_after: Option<Duration>,
    },
    /// So much is asked of a mirror already that there was no place in time: our own limit, and no fault of its.
    #[error("no place among the requests to {host}")]
    Busy {
        /// The mirror.
        host: String,
    },
    /// It did not answer, and is left alone for a while: nothing was asked.
    #[error("{host} is left alone for {left:?}")]
    Resting {
        /// The host: the registry, its token server, or where its blobs are.
        host: String,
        /// For how long yet; zero while somebody finds out whether it answers again.
        left: Duration,
        /// What happened when it was last asked.
        #[source]
        source: Arc<Self>,
    },
    /// The configuration says not to ask.
    #[error("{host} is not asked: the upstream is configured as offline")]
    Offline {
        /// The registry.
        host: String,
    },
    /// An answer that contradicts itself or the question.
    #[error("{host} gave an answer that cannot be right: {fault}")]
    Invalid {
        /// The registry.
        host: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// It cannot be said who we are, and nothing was asked.
    #[error("no credentials for {host} could be had")]
    Credential {
        /// The registry.
        host: String,
        /// Why.
        #[source]
        source: CredentialError,
    },
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// `Docker-Content-Digest` cannot be parsed.
    #[error("the digest header is malformed")]
    DigestHeader,
    /// The bytes are not those of the digest that was asked for or announced.
    #[error("the bytes are not those of the digest")]
    Digest,
    /// Not a manifest type, or another one than the body says.
    #[error("the content type is not that of a manifest, or not the body's own")]
    MediaType,
    /// Docker schema 1, whose digest is not that of its bytes.
    #[error("the manifest is of docker schema 1, which is not supported")]
    Schema1,
    /// The body is not a manifest.
    #[error("the body is not a manifest")]
    Manifest,
    /// The body is larger than a manifest may be.
    #[error("the manifest is larger than the limit")]
    TooLarge,
    /// A content coding that we did not ask for.
    #[error("the content is encoded though identity was asked for")]
    Encoding,
    /// The range is not the one that was asked for, or the size changed.
    #[error("the range is not the one that was asked for")]
    Range,
    /// A token server's answer that has no token.
    #[error("the answer has no token")]
    Token,
    /// A redirect that leads nowhere, or must not be followed.
    #[error("it redirects to where it must not")]
    Redirect,
    /// A tag names a manifest that is not there.
    #[error("the tag names a manifest that is not there")]
    Vanished,
    /// The body is no list of tags or referrers, or its link cannot be followed.
    #[error("the body is no list, or its link cannot be followed")]
    Listing,
    /// A repository's name that is too long with what stands before it there.
    #[error("the repository's name is too long there")]
    Name,
    /// Neither a digest nor a way to compute one.
    #[error("the answer has no digest")]
    NoDigest,
}

/// What kind of news an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The registry itself says that it is not there.
    Gone,
    /// The registry itself does not let us.
    Refused,
    /// Everything else: nothing is known about the content.
    Unavailable,
}

impl Error {
    /// What kind of news this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Gone { .. } => Class::Gone,
            Self::Refused { .. } => Class::Refused,
            Self::Unreachable { .. }
            | Self::Cut { .. }
            | Self::Short { .. }
            | Self::Silent { .. }
            | Self::Status { .. }
            | Self::Resting { .. }
            | Self::Offline { .. }
            | Self::Invalid { .. }
            | Self::Busy { .. }
            | Self::Credential { .. } => Class::Unavailable,
        }
    }

    /// Whether the same request may succeed if sent again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Cut { .. }
            | Self::Short { .. }
            | Self::Silent { .. }
            | Self::Resting { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            Self::Gone { .. }
            | Self::Refused { .. }
            | Self::Offline { .. }
            | Self::Invalid { .. }
            | Self::Busy { .. }
            | Self::Credential { .. } => false,
        }
    }

    /// Whether nothing is there from the offset on that was asked for.
    pub fn is_beyond_the_end(&self) -> bool {
        let unsatisfiable = StatusCode::RANGE_NOT_SATISFIABLE;
        matches!(self, Self::Status { status, .. } if *status == unsatisfiable)
    }

    /// What is wrong with the answer, when that is the error.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Invalid { fault, .. } => Some(*fault),
            Self::Unreachable { .. }
            | Self::Cut { .. }
            | Self::Short { .. }
            | Self::Silent { .. }
            | Self::Gone { .. }
            | Self::Refused { .. }
            | Self::Resting { .. }
            | Self::Offline { .. }
            | Self::Status { .. }
            | Self::Busy { .. }
            | Self::Credential { .. } => None,
        }
    }

    /// How long the registry asked us to wait, or is left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Resting { left, .. } => Some(*left),
            Self::Unreachable { .. }
            | Self::Cut { .. }
            | Self::Short { .. }
            | Self::Silent { .. }
            | Self::Gone { .. }
            | Self::Refused { .. }
            | Self::Offline { .. }
            | Self::Invalid { .. }
            | Self::Busy { .. }
            | Self::Credential { .. } => None,
        }
    }

    /// Whether a registry that is there asks us to come back later.
    pub fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Status { status, .. } if *status == StatusCode::TOO_MANY_REQUESTS)
    }

    /// Whether nobody was asked anything: there was no place for that, or the host is left alone.
    pub fn is_unasked(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Resting { .. })
    }

    /// What happened when somebody was last asked.
    pub fn cause(&self) -> &Self {
        if let Self::Resting { source, .. } = self {
            return source.cause();
        }
        self
    }

    /// A metrics label for why something is tried again.
    pub(super) fn retry_reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Cut { .. } | Self::Short { .. } => "cut",
            Self::Silent { .. } => "stall",
            Self::Resting { .. } => "resting",
            Self::Gone { .. }
            | Self::Refused { .. }
            | Self::Offline { .. }
            | Self::Status { .. } => "status",
            Self::Invalid { .. } => "invalid",
            Self::Busy { .. } => "busy",
            Self::Credential { .. } => "credential",
        }
    }
}
