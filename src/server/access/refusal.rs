//! Why a request is refused before anybody looks at what it asks for.

use std::time::Duration;

use http::StatusCode;

use super::challenge::Challenge;
use crate::oci::ErrorCode;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::server) enum Refusal {
    /// Who asks has to be shown.
    Nothing(Challenge),
    /// What was shown is wrong.
    Wrong(Challenge),
    /// The token is void: its time is over, or it was never one.
    Void(Challenge),
    /// Who asks may not have this: by the rule of this number, or by none.
    Denied(Option<usize>),
    /// A request for a token is none.
    Malformed(&'static str),
    /// Tokens are asked for by GET.
    Method,
    /// Too many passwords are being checked.
    Busy,
    /// Too many passwords were wrong that came from there; again after this long.
    TooManyWrong(Duration),
}

impl Refusal {
    /// The status of the answer.
    pub(in crate::server) fn status(&self) -> StatusCode {
        match self {
            Self::Nothing(_) | Self::Wrong(_) | Self::Void(_) => StatusCode::UNAUTHORIZED,
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Busy | Self::TooManyWrong(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The code in the body.
    pub(in crate::server) fn code(&self) -> ErrorCode {
        match self {
            Self::Nothing(_) | Self::Wrong(_) | Self::Void(_) => ErrorCode::Unauthorized,
            Self::Denied(_) => ErrorCode::Denied,
            Self::Malformed(_) | Self::Method => ErrorCode::Unsupported,
            Self::Busy | Self::TooManyWrong(_) => ErrorCode::TooManyRequests,
        }
    }

    /// The sentence in the body. Of a rule it says the number, and nobody's name.
    pub(in crate::server) fn message(&self) -> String {
        match self {
            Self::Nothing(_) => "this proxy wants to know who asks".to_owned(),
            Self::Wrong(_) => "the user, the password or the token is wrong".to_owned(),
            Self::Void(_) => "the token is void: ask for another one".to_owned(),
            Self::Denied(Some(number)) => format!("access rule {number} of this proxy denies this"),
            Self::Denied(None) => "no access rule of this proxy allows this".to_owned(),
            Self::Malformed(message) => (*message).to_owned(),
            Self::Method => "tokens are asked for by GET".to_owned(),
            Self::Busy | Self::TooManyWrong(_) => ErrorCode::TooManyRequests.message().to_owned(),
        }
    }

    /// What the client is to show.
    pub(in crate::server) fn challenge(&self) -> Option<&Challenge> {
        match self {
            Self::Nothing(challenge) | Self::Wrong(challenge) | Self::Void(challenge) => {
                Some(challenge)
            }
            Self::Denied(_)
            | Self::Malformed(_)
            | Self::Method
            | Self::Busy
            | Self::TooManyWrong(_) => None,
        }
    }

    /// After how long to ask again.
    pub(in crate::server) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy => Some(RETRY_AFTER),
            Self::TooManyWrong(after) => Some(*after),
            Self::Nothing(_)
            | Self::Wrong(_)
            | Self::Void(_)
            | Self::Denied(_)
            | Self::Malformed(_)
            | Self::Method => None,
        }
    }
}

/// Some passwords are checked in that time.
const RETRY_AFTER: Duration = Duration::from_secs(5);
