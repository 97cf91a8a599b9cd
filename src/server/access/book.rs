//! A file of the operator's that is read again when it has changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::entries::{FileError, WrongLine};
use crate::files::{self, Mark};
use crate::net::Chain;

/// A file and what it last said. Clones are the same.
#[derive(Debug)]
pub(super) struct Book<T> {
    path: Arc<PathBuf>,
    parse: Parse<T>,
    state: Arc<Mutex<State<T>>>,
}

/// How a file is read.
type Parse<T> = fn(&str) -> Result<T, WrongLine>;

#[derive(Debug)]
struct State<T> {
    /// What the file looked like when it was last read, whatever it said.
    mark: Option<Mark>,
    content: Arc<T>,
    /// When somebody began to look at it.
    looked: Instant,
    is_looking: bool,
    /// What the log says is wrong.
    complaint: Option<String>,
}

impl<T> Clone for Book<T> {
    fn clone(&self) -> Self {
        Self {
            path: Arc::clone(&self.path),
            parse: self.parse,
            state: Arc::clone(&self.state),
        }
    }
}

impl<T: Default + Send + Sync + 'static> Book<T> {
    /// Reads a file for the first time. Blocks. Of one that cannot be read, the log says so, and there is nobody in it until it
    /// can.
    pub(super) fn open(path: &Path, parse: Parse<T>) -> Self {
        let book = Self {
            path: Arc::new(path.to_owned()),
            parse,
            state: Arc::new(Mutex::new(State {
                mark: None,
                content: Arc::default(),
                looked: Instant::now(),
                is_looking: true,
                complaint: None,
            })),
        };
        book.look();
        book
    }

    /// What the file says, or said when it could last be read. It is looked at no more often than once in [`LOOK_INTERVAL`], and
    /// only one request waits for that. Cancel-safe.
    pub(super) async fn current(&self) -> Arc<T> {
        {
            let mut state = self.state.lock();
            if state.is_looking || state.looked.elapsed() < LOOK_INTERVAL {
                return Arc::clone(&state.content);
            }
            state.is_looking = true;
            state.looked = Instant::now();
        }
        let book = self.clone();
        // A disk that hangs holds one thread and one request, and not for long.
        let looking = spawn_blocking(move || book.look());
        if timeout(PATIENCE, looking).await.is_err() {
            warn!(file = %self.path.display(), "a file of who there is gives no answer, its last content is used");
        }
        Arc::clone(&self.state.lock().content)
    }

    /// Looks at the file, and reads it if it has changed. Blocks.
    fn look(&self) {
        let found = Mark::at(&self.path);
        let last = self.state.lock().mark;
        // What cannot even be looked at is read anew, for its error.
        let read = (found.is_none() || found != last).then(|| read(&self.path, self.parse));
        let mut state = self.state.lock();
        state.is_looking = false;
        let Some(read) = read else { return };
        let complaint = match read {
            Ok(content) => {
                state.content = Arc::new(content);
                info!(file = %self.path.display(), "file of who there is read");
                None
            }
            Err(error) => Some(Chain(&error).to_string()),
        };
        if let Some(error) = complaint.as_ref().filter(|_| state.complaint != complaint) {
            warn!(
                error,
                "a file of who there is could not be read, its last content is used"
            );
        }
        state.complaint = complaint;
        state.mark = found;
    }
}

/// Reads a file. Blocks.
///
/// # Errors
///
/// When it is not what it should be.
pub(super) fn read<T>(path: &Path, parse: Parse<T>) -> Result<T, FileError> {
    let here = || path.to_owned();
    let text = String::from_utf8(files::read(path)?);
    let text = text.map_err(|_| FileError::NotText { path: here() })?;
    parse(&text).map_err(|(line, reason)| FileError::Line {
        path: here(),
        line,
        reason,
    })
}

/// How soon a change is seen at the latest, and how rarely a busy proxy looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a request waits for a disk.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A file of one word that is not `wrong`.
    fn parse(text: &str) -> Result<String, WrongLine> {
        if text == "wrong" {
            return Err((1, "wrong"));
        }
        Ok(text.to_owned())
    }

    #[test]
    fn a_broken_file_leaves_what_there_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book");
        let book = Book::open(&path, parse);
        let content = || {
            book.look();
            String::clone(&book.state.lock().content)
        };
        assert_eq!(content(), "");
        fs::write(&path, "one").unwrap();
        assert_eq!(content(), "one");
        fs::write(&path, "wrong").unwrap();
        assert_eq!(content(), "one");
        let complaint = book.state.lock().complaint.clone().unwrap();
        assert!(complaint.ends_with("/book: line 1: wrong"), "{complaint}");
        fs::write(&path, "two").unwrap();
        assert_eq!(content(), "two");
        assert_eq!(book.state.lock().complaint, None);
        drop(dir);
        assert_eq!(content(), "two");
        assert!(book.state.lock().complaint.is_some());
    }

    #[test]
    fn what_is_no_file_of_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book");
        let refusal = |path: &Path| {
            let error = read(path, parse).unwrap_err();
            let text = Chain(&error).to_string();
            text.replace(dir.path().to_str().unwrap(), "")
        };
        assert!(refusal(&path).starts_with("could not read /book: "));
        fs::write(&path, b"a\xff").unwrap();
        assert_eq!(refusal(&path), "/book is not UTF-8");
        fs::write(&path, "wrong").unwrap();
        assert_eq!(refusal(&path), "/book: line 1: wrong");
    }
}
