//! The operator's files of who there is: users with bcrypt hashes, as `htpasswd -B` writes them, and identities with hashes of
//! their tokens.
//!
//! A file is taken whole or not at all: with a line that means nothing to us it may mean something else to the operator.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use bcrypt::HashParts;

use super::rules::is_reserved;
use crate::files;
use crate::net::{Secret, is_identity};

/// Why a file says nobody.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] files::Error),
    /// It is not UTF-8.
    #[error("{} is not UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// One of its lines is wrong. What stands there is not shown.
    #[error("{}: line {line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what would be right.
        reason: &'static str,
    },
}

/// What one entry is known by: whatever was granted to it ends with it.
pub(super) type Fingerprint = [u8; 32];

/// A line that is wrong: its number, and why.
pub(super) type WrongLine = (usize, &'static str);

/// The users and the hashes of their passwords.
#[derive(Debug, Default)]
pub(super) struct Users {
    by_name: HashMap<String, User>,
    /// All hashes there are, for [`stand_in`](Self::stand_in).
    hashes: Vec<Arc<str>>,
}

/// One user.
#[derive(Clone, Debug)]
pub(super) struct User {
    /// A bcrypt hash that can be checked against.
    pub(super) hash: Arc<str>,
    pub(super) entry: Fingerprint,
}

/// The tokens that the operator gave out.
#[derive(Debug, Default)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    name: String,
    hash: [u8; 32],
    entry: Fingerprint,
}

impl Users {
    /// Reads lines of the form `user:hash`.
    pub(super) fn parse(text: &str) -> Result<Self, WrongLine> {
        let mut users = Self::default();
        for (number, name, hash) in entries(text)? {
            let parts: HashParts = match hash.get(..4) {
                Some("$2a$" | "$2b$" | "$2y$") => hash.parse().map_err(|_| (number, NOT_BCRYPT))?,
                Some(_) | None => return Err((number, NOT_BCRYPT)),
            };
            if !(COST_MIN..=COST_MAX).contains(&parts.get_cost()) {
                return Err((number, WRONG_COST));
            }
            let hash: Arc<str> = hash.into();
            let entry = fingerprint("user", name, &hash);
            users.hashes.push(Arc::clone(&hash));
            let user = User { hash, entry };
            if users.by_name.insert(name.to_owned(), user).is_some() {
                return Err((number, "this user has a line already"));
            }
        }
        Ok(users)
    }

    pub(super) fn get(&self, name: &str) -> Option<&User> {
        self.by_name.get(name)
    }

    /// A hash to check against where there is no such user, so that this takes no less time. Which of them, `number` says: the
    /// costs of hashes may differ, and whoever tries a name twice must find the same.
    pub(super) fn stand_in(&self, number: usize) -> Arc<str> {
        let nth = number.checked_rem(self.hashes.len()).unwrap_or_default();
        self.hashes
            .get(nth)
            .map_or_else(|| NOBODY.into(), Arc::clone)
    }
}

impl Tokens {
    /// Reads lines of the form `name:hash`. A name may have several, so that a token can be replaced while both are good.
    pub(super) fn parse(text: &str) -> Result<Self, WrongLine> {
        let mut tokens = Self::default();
        for (number, name, hex) in entries(text)? {
            let hash = sha256_of_hex(hex).ok_or((number, NOT_SHA256))?;
            let entry = fingerprint("token", name, hex);
            let name = name.to_owned();
            tokens.0.push(Token { name, hash, entry });
        }
        Ok(tokens)
    }

    /// Whose token this is, and by which entry. All are looked at, whichever it is.
    pub(super) fn find(&self, token: &Secret) -> Option<(&str, Fingerprint)> {
        let hash = digest(&SHA256, token.reveal().as_bytes());
        let mut found = None;
        for token in &self.0 {
            if verify_slices_are_equal(&token.hash, hash.as_ref()).is_ok() {
                found = Some((token.name.as_str(), token.entry));
            }
        }
        found
    }

    /// Whether an identity has this entry yet.
    pub(super) fn stands(&self, name: &str, entry: &Fingerprint) -> bool {
        let mut tokens = self.0.iter();
        tokens.any(|it| it.name == name && it.entry == *entry)
    }
}

/// The lines that say something: their numbers, names and hashes.
fn entries(text: &str) -> Result<Vec<(usize, &str, &str)>, WrongLine> {
    let lines = (1..).zip(text.lines());
    let lines = lines.map(|(number, line)| (number, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            let (name, hash) = line.split_once(':').ok_or((number, NO_COLON))?;
            if !is_identity(name) {
                return Err((
                    number,
                    "the name is empty, too long or has control characters",
                ));
            }
            if is_reserved(name) {
                return Err((
                    number,
                    "nobody can be called `anonymous` or `authenticated`",
                ));
            }
            Ok((number, name, hash))
        })
        .collect()
}

/// What an entry is known by.
fn fingerprint(kind: &str, name: &str, hash: &str) -> Fingerprint {
    // No name has a control character.
    let text = format!("{kind}\0{name}\0{hash}");
    bytes_of(digest(&SHA256, text.as_bytes()).as_ref())
}

fn bytes_of(digest: &[u8]) -> [u8; 32] {
    digest.try_into().unwrap_or_default()
}

fn sha256_of_hex(hex: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if hex.len() != 2 * hash.len() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// A hash of nobody's password, for a file without users; with the cost that `htpasswd` takes unless it is told another.
const NOBODY: &str = "$2y$05$......................7p18asIPSQOtBXWfNDRLdyD6SgVNCiO";
/// What bcrypt knows, and what a machine can check often enough: a second for each password at 14.
const COST_MIN: u32 = 4;
const COST_MAX: u32 = 14;
const NO_COLON: &str = "not of the form name:hash";
const NOT_BCRYPT: &str = "the hash is not bcrypt's: make it with `htpasswd -B`";
const WRONG_COST: &str = "the cost of the bcrypt hash is not 4 to 14";
const NOT_SHA256: &str =
    "the hash is not 64 hexadecimal digits: make it with `openssl dgst -sha256`";

/// Reads both kinds of files without panicking, and says of what is wrong what it is on one line, and nothing that stands there.
/// Whether it is one of them.
pub fn fuzz_access_file(input: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(input) else {
        return false;
    };
    let (users, tokens) = (Users::parse(text), Tokens::parse(text));
    let lines = text.lines().count();
    for (line, reason) in [users.as_ref().err(), tokens.as_ref().err()]
        .into_iter()
        .flatten()
    {
        assert!(
            (1..=lines).contains(line) && !reason.contains('\n'),
            "one line"
        );
    }
    users.is_ok() || tokens.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$05$......................7p18asIPSQOtBXWfNDRLdyD6SgVNCiO";
    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn users_are_lines_of_bcrypt() {
        let text = format!(
            "# who\n\nann:{HASH}\r\n  Zo\u{eb} B:{}\n",
            HASH.replace("2y", "2b")
        );
        let users = Users::parse(&text).unwrap();
        assert_eq!(&*users.get("ann").unwrap().hash, HASH);
        assert!(users.get("Zo\u{eb} B").is_some() && users.get("ANN").is_none());
        assert_ne!(
            users.get("ann").unwrap().entry,
            users.get("Zo\u{eb} B").unwrap().entry
        );
        for (text, line, reason) in [
            ("ann".to_owned(), 1, "not of the form"),
            (format!("\nann:{HASH}\n:{HASH}"), 3, "the name is empty"),
            (
                format!("a\u{7}b:{HASH}"),
                1,
                "the name is empty, too long or has",
            ),
            (format!("anonymous:{HASH}"), 1, "nobody can be called"),
            (
                format!("ann:{HASH}\nann:{HASH}"),
                2,
                "this user has a line already",
            ),
            ("ann:$apr1$x$y".to_owned(), 1, "the hash is not bcrypt's"),
            ("ann:{SHA}x".to_owned(), 1, "the hash is not bcrypt's"),
            ("ann:secret".to_owned(), 1, "the hash is not bcrypt's"),
            (
                "ann:\u{fc}\u{fc}\u{fc}".to_owned(),
                1,
                "the hash is not bcrypt's",
            ),
            (
                format!("ann:{}", HASH.replace("2y", "2x")),
                1,
                "the hash is not bcrypt's",
            ),
            (format!("ann:{HASH}x"), 1, "the hash is not bcrypt's"),
            (format!("ann:{}", HASH.replace("$05", "$15")), 1, "the cost"),
            (format!("ann:{}", HASH.replace("$05", "$03")), 1, "the cost"),
        ] {
            let (number, found) = Users::parse(&text).unwrap_err();
            assert_eq!(number, line, "{text}");
            assert!(found.starts_with(reason), "{text}: {found}");
        }
    }

    #[test]
    fn tokens_are_lines_of_sha_256() {
        let (upper, other) = (HEX.to_uppercase(), HEX.replace('9', "8"));
        let text = format!("ci:{upper}\nci:{other}\nother:{other}");
        let tokens = Tokens::parse(&text).unwrap();
        let (name, entry) = tokens.find(&Secret::new("test")).unwrap();
        assert_eq!(name, "ci");
        assert!(tokens.stands("ci", &entry) && !tokens.stands("other", &entry));
        assert!(tokens.find(&Secret::new("Test")).is_none());
        for (text, reason) in [
            ("ci:test", "the hash is not 64"),
            (&format!("ci:{HEX}0"), "the hash is not 64"),
            (
                &format!("ci:{}", HEX.replace('9', "+")),
                "the hash is not 64",
            ),
            (&format!("authenticated:{HEX}"), "nobody can be called"),
        ] {
            let (_, found) = Tokens::parse(text).unwrap_err();
            assert!(found.starts_with(reason), "{text}: {found}");
        }
    }

    #[test]
    fn an_entry_that_changes_is_another() {
        let of = |text: &str| Users::parse(text).unwrap().get("ann").unwrap().entry;
        let (one, other) = (
            format!("ann:{HASH}"),
            format!("ann:{}", HASH.replace("2y", "2a")),
        );
        assert_eq!(of(&one), of(&format!("# more\nbob:{HASH}\n{one}")));
        assert_ne!(of(&one), of(&other));
    }

    #[test]
    fn there_is_always_a_hash_to_check_against() {
        let users = Users::parse(&format!("ann:{HASH}\nbob:{}", HASH.replace("05", "06"))).unwrap();
        assert_ne!(users.stand_in(0), users.stand_in(1));
        assert_eq!(users.stand_in(1), users.stand_in(3));
        assert_eq!(&*Users::default().stand_in(7), NOBODY);
        let checked = bcrypt::verify("anything", NOBODY);
        assert!(matches!(checked, Ok(false)), "{checked:?}");
    }
}
