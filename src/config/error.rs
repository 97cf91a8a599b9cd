//! Why a configuration is refused: always one line that says where, what, and what would be right.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Why there is nothing to run on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be read, or is not UTF-8.
    #[error("could not read {}", file.display())]
    Unreadable {
        /// The file, as it was given.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML, or has a table or key that is none of ours.
    #[error("{}: line {line}: {message}", file.display())]
    Malformed {
        /// The file, as it was given.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says of it.
        message: String,
    },
    /// The file has nothing in it, which is likelier an accident than a wish for the defaults.
    #[error("{}: the file is empty: leave it out for the defaults", file.display())]
    Empty {
        /// The file, as it was given.
        file: PathBuf,
    },
    /// A value is not of the kind that its place takes.
    #[error("{at}: {value}: not {wanted}")]
    Kind {
        /// Where the value stands.
        at: At,
        /// The value as written.
        value: String,
        /// What the place takes.
        wanted: &'static str,
    },
    /// A value is of the right kind, and too small or too large.
    #[error("{at}: {value}: must be {allowed}")]
    Range {
        /// Where the value stands.
        at: At,
        /// The value as written.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Two values that are right by themselves do not go together.
    #[error("{at}: {value}: must be {relation} {other} ({than})")]
    Order {
        /// Where the value stands; of the two, the one that was given.
        at: At,
        /// The value as written.
        value: String,
        /// What it must be, such as `more than`.
        relation: &'static str,
        /// The key it is compared to.
        other: String,
        /// The value of that key.
        than: String,
    },
    /// A value that may be used once is used again.
    #[error("{at}: {value}: {taken}")]
    Taken {
        /// Where the second use stands.
        at: At,
        /// The value as written.
        value: String,
        /// Who has it already.
        taken: String,
    },
    /// A pattern does not compile.
    #[error("{at}: {value}: not a regular expression: {reason}")]
    Pattern {
        /// Where the pattern stands.
        at: At,
        /// The pattern as written.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value that has no default is not there.
    #[error("{at}: missing: give {wanted}")]
    Missing {
        /// Where it should stand.
        at: At,
        /// What the place takes.
        wanted: &'static str,
    },
    /// A variable has bytes that are no text. They are not shown, since they may be a password's.
    #[error("{name}: not UTF-8")]
    NotText {
        /// The variable.
        name: String,
    },
    /// A variable begins with `LAYERHOLD_` and is none of ours: likely a misspelt one.
    #[error("{name}: no such variable: expected one of {expected}")]
    UnknownVariable {
        /// The variable.
        name: String,
        /// Those there are.
        expected: String,
    },
    /// Nothing says where the cache is to be kept.
    #[error(
        "--cache-dir: missing: none of CACHE_DIRECTORY, XDG_CACHE_HOME and HOME says where the cache may be kept"
    )]
    NoCacheDir,
}

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// On the command line.
    Flag(&'static str),
    /// In the environment.
    Variable(String),
    /// In the configuration file.
    Key {
        /// The file, as it was given.
        file: Arc<PathBuf>,
        /// The key, with the tables that hold it.
        key: String,
    },
    /// Nowhere: it is the default of this key.
    Default(String),
}

impl At {
    /// Whether somebody gave the value.
    pub fn is_given(&self) -> bool {
        match self {
            Self::Flag(_) | Self::Variable(_) | Self::Key { .. } => true,
            Self::Default(_) => false,
        }
    }

    /// The name by which another message refers to this value: without the file.
    pub fn name(&self) -> &str {
        match self {
            Self::Flag(flag) => flag,
            Self::Variable(name) => name,
            Self::Key { key, .. } | Self::Default(key) => key,
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Key { file, .. } = self {
            write!(f, "{}: ", file.display())?;
        }
        f.write_str(self.name())
    }
}
