//! Who a client is to us.

use std::sync::Arc;

use super::shown::is_plain;

/// Who a client is to us: what it has shown, and nothing that it only says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// Somebody whom the operator has given this name.
    Named {
        /// The name: see [`Identity::named`].
        name: Arc<str>,
        /// How it was shown.
        by: Means,
    },
}

/// How a client shows who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Means {
    /// A user's password.
    Password,
    /// A token that the operator gave out.
    Token,
    /// A certificate, within TLS.
    Certificate,
}

impl Identity {
    /// Somebody by name. `None` when no identity may have this name: it is empty, longer than [`IDENTITY_BYTES_MAX`], or
    /// would be more than a word in a line of the log.
    pub fn named(name: &str, by: Means) -> Option<Self> {
        is_identity(name).then(|| Self::Named {
            name: name.into(),
            by,
        })
    }

    /// The name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::Named { name, .. } => Some(name),
        }
    }
}

/// Whether an identity may have this name.
pub fn is_identity(name: &str) -> bool {
    !name.is_empty() && name.len() <= IDENTITY_BYTES_MAX && name.chars().all(is_plain)
}

/// Longer than any user's name.
pub const IDENTITY_BYTES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word_of_the_log() {
        let long = "n".repeat(IDENTITY_BYTES_MAX);
        for name in ["ci", "Ann O'Nym", "zo\u{eb}", &long] {
            let identity = Identity::named(name, Means::Token).unwrap();
            assert_eq!(identity.name(), Some(name));
        }
        for name in ["", "a\nb", "a\u{85}b", "a\u{202e}b", &format!("{long}n")] {
            assert_eq!(Identity::named(name, Means::Token), None, "{name:?}");
        }
        assert_eq!(Identity::default().name(), None);
    }
}
