//! Who we are to a site: a user name and a password, and why there may be none to be had.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::net::Secret;

/// A user name and a password. Equal ones are the same to a registry, wherever they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    username: String,
    password: Secret,
}

/// Why it cannot be said who we are. It names what was asked, and never what it said.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialError {
    /// A password file could not be read.
    #[error("{path} could not be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// What should be a password file is a directory or a device.
    #[error("{path} is no regular file")]
    NoFile {
        /// What it is instead of the file.
        path: PathBuf,
    },
    /// There is nothing in a password file.
    #[error("{path} is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A password file is larger than a password.
    #[error("{path} is larger than {bytes_max} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it may have.
        bytes_max: usize,
    },
    /// What is in a password file is neither text of one line, which a password is (RFC 7617 §2), nor a JSON document.
    #[error("{path} is neither one line of text nor a JSON document")]
    NoLine {
        /// The file.
        path: PathBuf,
    },
    /// A password file or a helper gave no answer.
    #[error("{path} gave no answer for {waited:?}")]
    Silent {
        /// The file, or the helper.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// A helper could not be run.
    #[error("{program} could not be run")]
    Program {
        /// The helper.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// A helper failed.
    #[error("{program} failed with {status}")]
    Failed {
        /// The helper.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
    },
    /// A helper printed more than credentials are.
    #[error("{program} printed more than {bytes_max} bytes")]
    Endless {
        /// The helper.
        program: PathBuf,
        /// What it may print.
        bytes_max: usize,
    },
    /// What a helper printed are no credentials.
    #[error("{program} printed no credentials")]
    Malformed {
        /// The helper.
        program: PathBuf,
    },
}

impl Credential {
    /// Of this user, whose name has no colon (RFC 7617 §2).
    pub fn new(username: &str, password: Secret) -> Self {
        Self {
            username: username.to_owned(),
            password,
        }
    }

    /// The user.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The password.
    pub fn password(&self) -> &Secret {
        &self.password
    }

    /// What a site sees that asks for a password (RFC 7617); nothing where we have none but an identity token.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        if self.identity_token().is_some() {
            return None;
        }
        let (username, password) = (&self.username, self.password.reveal());
        // As long as they get at once: what grows leaves copies behind.
        let mut pair = Zeroizing::new(String::with_capacity(username.len() + password.len() + 1));
        pair.extend([username, ":", password]);
        let mut coded = Zeroizing::new(String::with_capacity(
            BASIC.len() + 4 * pair.len().div_ceil(3),
        ));
        coded.push_str(BASIC);
        STANDARD.encode_string(pair.as_bytes(), &mut coded);
        // This copy is the HTTP library's, and is not overwritten.
        let mut value = HeaderValue::from_str(&coded).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// What a token server sees instead of a password, where a helper gave us that: a token that gives tokens (docker's
    /// credential-helper protocol).
    pub(super) fn identity_token(&self) -> Option<&Secret> {
        (self.username == IDENTITY_TOKEN).then_some(&self.password)
    }
}

impl CredentialError {
    pub(super) fn unreadable(path: &Path, source: io::Error) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            source: Arc::new(source),
        }
    }

    pub(super) fn program(program: &Path, source: io::Error) -> Self {
        Self::Program {
            program: program.to_owned(),
            source: Arc::new(source),
        }
    }
}

/// The scheme (RFC 7617 §2).
const BASIC: &str = "Basic ";
/// The user name that says that the secret is no password.
const IDENTITY_TOKEN: &str = "<token>";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_and_a_password_are_one_header() {
        // The examples of RFC 7617 §2 and §2.1.
        for (user, password, expected) in [
            (
                "Aladdin",
                "open sesame",
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            ),
            ("test", "123\u{a3}", "Basic dGVzdDoxMjPCow=="),
        ] {
            let credential = Credential::new(user, Secret::new(password));
            let basic = credential.basic().unwrap();
            assert_eq!(basic, expected);
            let shown = format!("{credential:?} {basic:?}");
            assert!(
                !shown.contains(password) && !shown.contains("dGVz"),
                "{shown}"
            );
        }
    }

    #[test]
    fn an_identity_token_is_no_password() {
        let credential = Credential::new("<token>", Secret::new("t"));
        assert_eq!(credential.identity_token().map(Secret::reveal), Some("t"));
        assert_eq!(credential.basic(), None);
    }
}
