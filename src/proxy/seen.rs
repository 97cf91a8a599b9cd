//! A repository as somebody sees it: what a registry said to one asker is nobody else's.

use std::sync::LazyLock;

use crate::cache::Repository;
use crate::oci::{Algorithm, Digest, Digester};
use crate::upstream::Credential;

/// A repository, and who asks for it. Whatever is remembered of a registry's answers, or is being asked, has this for its key:
/// a refusal, a tag's word, a list. What is stored is the repository's own, whoever asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    pub(super) asker: Asker,
    pub(super) repository: Repository,
}

/// As whom a registry is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    /// As ourselves, by what is configured.
    Ourselves,
    /// As a caller who says nothing of who they are.
    Nobody,
    /// As a caller whose credential has this hash.
    Caller(Digest),
}

impl Asker {
    /// The caller with this credential, or without any.
    pub(super) fn of(credential: Option<&Credential>) -> Self {
        let Some(credential) = credential else {
            return Self::Nobody;
        };
        let mut digester = Digester::new(Algorithm::Sha256);
        digester.update(&*SALT);
        // Where the user ends is a part of who they are.
        let user = credential.username();
        digester.update(&(user.len() as u64).to_le_bytes());
        digester.update(user.as_bytes());
        digester.update(credential.password().reveal().as_bytes());
        Self::Caller(digester.finish())
    }

    /// Whether somebody else's rights decide than our own.
    pub(super) fn is_caller(self) -> bool {
        self != Self::Ourselves
    }
}

/// Another one in each process: a hash says nothing elsewhere.
static SALT: LazyLock<[u8; 32]> = LazyLock::new(rand::random);

#[cfg(test)]
mod tests {
    use crate::net::Secret;

    use super::*;

    #[test]
    fn who_differs_in_anything_is_another_caller() {
        let of = |user, password| Asker::of(Some(&Credential::new(user, Secret::new(password))));
        let all = [
            Asker::Ourselves,
            Asker::of(None),
            of("", ""),
            of("u", ""),
            of("", "u"),
            of("u", "p"),
            of("up", ""),
            of("", "up"),
            of("u", "P"),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(all.iter().skip(n + 1).all(|other| other != one), "{n}");
        }
        assert_eq!(of("u", "p"), of("u", "p"));
        assert!(!format!("{:?}", of("user", "hush")).contains("hush"));
    }
}
