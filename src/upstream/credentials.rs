//! Where our credentials for one site come from, and which of them are current.
//!
//! What can change is asked again: a file whenever it is used and has changed, a helper now and then; and both when the site
//! refuses what they gave, so that a corrected password is used by the next request.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;
use zeroize::Zeroizing;

use super::config::{CredentialSource, SiteConfig};
use super::credential::{Credential, CredentialError};
use super::helper;
use crate::files::Mark;
use crate::net::{Chain, Secret};
use crate::oci::RepositoryName;

/// Our credentials for one site.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The configured name of the upstream, for logs.
    upstream: String,
    /// The configured folder of repositories that they are for, if it is not all, for logs.
    repositories: Option<String>,
    source: Source,
    /// The ones that the log says were refused.
    refused: Mutex<Option<Arc<Credential>>>,
    /// How long they are not shown again where they were, and since when that is.
    pause: Duration,
    paused: Mutex<HashMap<RepositoryName, (Arc<Credential>, Instant)>>,
    /// What the log says of why there are none.
    complaint: Mutex<Option<String>>,
}

#[derive(Debug)]
enum Source {
    Constant(Option<Arc<Credential>>),
    /// Not ours, but those of somebody who asks us.
    Caller(Option<Arc<Credential>>),
    File(PasswordFile),
    Helper(Helper),
}

/// A password that is in a file.
#[derive(Debug)]
struct PasswordFile {
    username: String,
    path: PathBuf,
    patience: Duration,
    last: Arc<tokio::sync::Mutex<LastRead>>,
}

/// The last password that could be read, and the mark of the file that it was in.
type LastRead = Option<(Mark, Arc<Credential>)>;

/// A program that knows.
#[derive(Debug)]
struct Helper {
    program: PathBuf,
    server: String,
    patience: Duration,
    /// Whoever has it runs the program; the others wait for what it says.
    state: tokio::sync::Mutex<HelperState>,
}

#[derive(Debug, Default)]
struct HelperState {
    last: Option<Answer>,
    failure: Option<(Instant, CredentialError)>,
}

/// What a helper said.
#[derive(Debug)]
struct Answer {
    credential: Option<Arc<Credential>>,
    good_until: Instant,
    /// Whether it said the same again after it was refused.
    insists: bool,
    /// Why this is an older one.
    error: Option<CredentialError>,
}

/// What a source gave, and what was wrong with it where that was something older.
type Found = (Option<Arc<Credential>>, Option<CredentialError>);

impl Credentials {
    /// From this source, for a folder of the site's repositories or all of them.
    pub(super) fn new(
        upstream: &str,
        site: &SiteConfig,
        folder: Option<&RepositoryName>,
        source: Option<CredentialSource>,
    ) -> Self {
        // No more than a registry itself may take; helpers ask registries.
        let patience = (site.connect_timeout + site.first_byte_timeout).min(PATIENCE_MAX);
        let source = match source {
            None => Source::Constant(None),
            Some(CredentialSource::Variable {
                username, password, ..
            }) => Source::Constant(Some(Arc::new(Credential::new(&username, password)))),
            Some(CredentialSource::File {
                username,
                password_file,
            }) => Source::File(PasswordFile {
                username,
                path: password_file,
                patience,
                last: Arc::default(),
            }),
            Some(CredentialSource::Helper { program, server }) => Source::Helper(Helper {
                program,
                server,
                patience,
                state: tokio::sync::Mutex::default(),
            }),
        };
        Self {
            upstream: upstream.to_owned(),
            repositories: folder.map(ToString::to_string),
            source,
            refused: Mutex::new(None),
            pause: site.rest,
            paused: Mutex::default(),
            complaint: Mutex::new(None),
        }
    }

    /// Those of a caller; `None` is whoever has none.
    pub(super) fn of_caller(upstream: &str, caller: Option<Credential>, pause: Duration) -> Self {
        Self {
            upstream: upstream.to_owned(),
            repositories: None,
            source: Source::Caller(caller.map(Arc::new)),
            refused: Mutex::new(None),
            pause,
            paused: Mutex::default(),
            complaint: Mutex::new(None),
        }
    }

    /// Whether they are not ours.
    pub(super) fn are_callers(&self) -> bool {
        matches!(self.source, Source::Caller(_))
    }

    /// Who we are now; `None` is nobody. Cancel-safe.
    pub(super) async fn current(&self) -> Result<Option<Arc<Credential>>, CredentialError> {
        let found = match &self.source {
            Source::Constant(credential) | Source::Caller(credential) => {
                return Ok(credential.clone());
            }
            Source::File(file) => file.current(false).await,
            Source::Helper(helper) => helper.current().await,
        };
        self.said(found)
    }

    /// Who we are, after the site refused these: the same if there is nothing else to be had. Cancel-safe.
    pub(super) async fn instead_of(
        &self,
        refused: Option<&Arc<Credential>>,
    ) -> Result<Option<Arc<Credential>>, CredentialError> {
        let found = match &self.source {
            Source::Constant(credential) | Source::Caller(credential) => {
                return Ok(credential.clone());
            }
            Source::File(file) => file.current(true).await,
            Source::Helper(helper) => helper.instead_of(refused).await,
        };
        self.said(found)
    }

    /// Whether the site refused these for this repository a moment ago: who shows a wrong password at each pull is locked out.
    /// Others, as from a file that has changed since, are no such ones.
    pub(super) fn are_refused(&self, credential: &Arc<Credential>, name: &RepositoryName) -> bool {
        let paused = self.paused.lock();
        let refused = paused.get(name).filter(|(it, _)| it == credential);
        refused.is_some_and(|(_, at)| at.elapsed() < self.pause)
    }

    /// Notes that the site refuses these for a repository, and says so in the log, once.
    pub(super) fn refused(&self, credential: Option<&Arc<Credential>>, name: &RepositoryName) {
        let Some(credential) = credential else { return };
        {
            let mut paused = self.paused.lock();
            let paused_max = match self.are_callers() {
                true => CALLERS_PAUSED_MAX,
                false => PAUSED_MAX,
            };
            if paused.len() >= paused_max {
                paused.retain(|_, (_, at)| at.elapsed() < self.pause);
            }
            if paused.len() < paused_max {
                paused.insert(name.clone(), (Arc::clone(credential), Instant::now()));
            }
        }
        // Whoever shows a wrong password hears of it.
        if self.are_callers() {
            return;
        }
        let mut refused = self.refused.lock();
        if refused.as_ref() != Some(credential) {
            warn!(
                upstream = self.upstream,
                repositories = self.repositories,
                "the registry refused our credentials, or what they may do"
            );
            *refused = Some(Arc::clone(credential));
        }
    }

    /// Says in the log, once for each, what is wrong with where they come from.
    fn said(
        &self,
        found: Result<Found, CredentialError>,
    ) -> Result<Option<Arc<Credential>>, CredentialError> {
        let error = match &found {
            Ok((_, error)) => error.as_ref(),
            Err(error) => Some(error),
        };
        let complaint = error.map(|it| Chain(it).to_string());
        let mut last = self.complaint.lock();
        if let Some(error) = complaint.as_ref().filter(|_| *last != complaint) {
            let phrase = match found {
                Ok(_) => "credentials could not be had, the last ones are used",
                Err(_) => "credentials could not be had",
            };
            let repositories = self.repositories.as_deref();
            warn!(upstream = self.upstream, repositories, error, "{phrase}");
        }
        *last = complaint;
        found.map(|(credential, _)| credential)
    }
}

impl PasswordFile {
    /// Looks at the file, and reads it where it changed or where the last one was refused.
    async fn current(&self, was_refused: bool) -> Result<Found, CredentialError> {
        let (username, path) = (self.username.clone(), self.path.clone());
        let looked = async {
            let mut last = Arc::clone(&self.last).lock_owned().await;
            // A disk that hangs holds one thread and not one for each request: the lock goes with it.
            let looking =
                tokio::task::spawn_blocking(move || look(&mut last, &username, &path, was_refused));
            let lost = |error| Err(CredentialError::unreadable(&self.path, error));
            looking.await.unwrap_or_else(|error| lost(error.into()))
        };
        let looked = timeout(self.patience, looked).await;
        looked.unwrap_or_else(|_| {
            Err(CredentialError::Silent {
                path: self.path.clone(),
                waited: self.patience,
            })
        })
    }
}

impl Helper {
    async fn current(&self) -> Result<Found, CredentialError> {
        let came = Instant::now();
        let mut state = self.state.lock().await;
        let good = state.last.as_ref();
        if let Some(answer) = good.filter(|it| Instant::now() < it.good_until) {
            return Ok((answer.credential.clone(), answer.error.clone()));
        }
        self.run(&mut state, came).await
    }

    async fn instead_of(
        &self,
        refused: Option<&Arc<Credential>>,
    ) -> Result<Found, CredentialError> {
        let came = Instant::now();
        let mut state = self.state.lock().await;
        // It was asked again already: by somebody else, or because of an earlier refusal.
        let answer = state.last.as_ref();
        if let Some(answer) = answer.filter(|it| it.insists || it.credential.as_ref() != refused) {
            return Ok((answer.credential.clone(), answer.error.clone()));
        }
        // A program that failed a moment ago has a pause; what it said last is not lost by that.
        let failed = |it: &Answer| it.error.is_some() && came < it.good_until;
        if let Some(answer) = state.last.as_ref().filter(|it| failed(it)) {
            return Ok((answer.credential.clone(), answer.error.clone()));
        }
        let found = self.run(&mut state, came).await?;
        if let Some(answer) = &mut state.last {
            answer.insists = answer.error.is_none() && answer.credential.as_ref() == refused;
        }
        Ok(found)
    }

    /// Runs the program, unless somebody did since this request came and it failed.
    async fn run(&self, state: &mut HelperState, came: Instant) -> Result<Found, CredentialError> {
        let failure = state.failure.as_ref();
        if let Some((_, error)) = failure.filter(|(ended, _)| *ended >= came) {
            return Err(error.clone());
        }
        let found = helper::get(&self.program, &self.server, self.patience).await;
        let now = Instant::now();
        match found {
            Ok(credential) => {
                let credential = credential.map(Arc::new);
                state.failure = None;
                state.last = Some(Answer {
                    credential: credential.clone(),
                    good_until: now + GOOD_FOR,
                    insists: false,
                    error: None,
                });
                Ok((credential, None))
            }
            Err(error) => {
                // What was good is good yet for all we know.
                if let Some(answer) = &mut state.last {
                    answer.good_until = now + RETRY_AFTER;
                    answer.error = Some(error.clone());
                    return Ok((answer.credential.clone(), Some(error)));
                }
                state.failure = Some((now, error.clone()));
                Err(error)
            }
        }
    }
}

/// What is in a password file, or was when it could last be read.
fn look(
    last: &mut LastRead,
    username: &str,
    path: &Path,
    was_refused: bool,
) -> Result<Found, CredentialError> {
    let found = Mark::at(path);
    if let Some((mark, credential)) = last
        && Some(*mark) == found
        && !was_refused
    {
        return Ok((Some(Arc::clone(credential)), None));
    }
    match read(path) {
        Ok((mark, password)) => {
            let credential = Arc::new(Credential::new(username, password));
            *last = Some((mark, Arc::clone(&credential)));
            Ok((Some(credential), None))
        }
        Err(error) => match last {
            Some((_, credential)) => Ok((Some(Arc::clone(credential)), Some(error))),
            None => Err(error),
        },
    }
}

/// Reads a password file: one line of text, or a JSON document of several; the last line's end does not belong to the
/// password.
pub(super) fn read(path: &Path) -> Result<(Mark, Secret), CredentialError> {
    let unreadable = |error| CredentialError::unreadable(path, error);
    let here = || path.to_owned();
    // Opening a pipe waits for whoever is to write into it.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(CredentialError::NoFile { path: here() });
    }
    let mut file = File::open(path).map_err(unreadable)?;
    // Taken before the content: whatever is written from now on is another mark.
    let mark = Mark::of(&file.metadata().map_err(unreadable)?);
    // As large as it may get at once: what grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(PASSWORD_BYTES_MAX + 1));
    let bytes_max = PASSWORD_BYTES_MAX as u64 + 1;
    let content = file.by_ref().take(bytes_max).read_to_end(&mut text);
    content.map_err(unreadable)?;
    if text.len() > PASSWORD_BYTES_MAX {
        return Err(CredentialError::TooLarge {
            path: here(),
            bytes_max: PASSWORD_BYTES_MAX,
        });
    }
    let text = str::from_utf8(&text).map_err(|_| CredentialError::NoLine { path: here() })?;
    let line = text.strip_suffix('\n').unwrap_or(text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err(CredentialError::Empty { path: here() });
    }
    // Google's registries take a service account's whole key file for a password.
    let is_document = serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok();
    if line.contains(char::is_control) && !is_document {
        return Err(CredentialError::NoLine { path: here() });
    }
    Ok((mark, Secret::new(line)))
}

/// How long credentials may take to be had.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// Passwords that are tokens have some KiB.
const PASSWORD_BYTES_MAX: usize = 64 << 10;
/// How long a helper's word is taken for true. What helpers give lives for hours (twelve of them at ECR), and they give no new
/// one before the old one is nearly over; a refusal by the registry is answered at once anyhow.
const GOOD_FOR: Duration = Duration::from_secs(300);
/// When a helper is run again that failed while its last word was good.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// Repositories in which a refusal is remembered.
const PAUSED_MAX: usize = 1000;
/// To one caller of many.
const CALLERS_PAUSED_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn password(content: &[u8]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p");
        fs::write(&file, content).unwrap();
        let read = read(&file).map(|(_, password)| password.reveal().to_owned());
        read.map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), ""))
    }

    #[test]
    fn a_password_is_one_line_without_its_end() {
        for (content, expected) in [
            ("hush", "hush"),
            ("hush\n", "hush"),
            ("hush\r\n", "hush"),
            (" hush \n", " hush "),
            ("h\u{fc}sh", "h\u{fc}sh"),
            (
                "{\n  \"type\": \"service_account\"\n}\n",
                "{\n  \"type\": \"service_account\"\n}",
            ),
        ] {
            assert_eq!(password(content.as_bytes()).as_deref(), Ok(expected));
        }
        let long = [b'x'; PASSWORD_BYTES_MAX + 1];
        assert!(password(&long[1..]).is_ok());
        for (content, message) in [
            (&b""[..], "/p is empty"),
            (b"\n", "/p is empty"),
            (
                b"hush\n\n",
                "/p is neither one line of text nor a JSON document",
            ),
            (
                b"user\nhush\n",
                "/p is neither one line of text nor a JSON document",
            ),
            (
                b"{\n \"type\":\n",
                "/p is neither one line of text nor a JSON document",
            ),
            (
                b"hush\xff",
                "/p is neither one line of text nor a JSON document",
            ),
            (&long, "/p is larger than 65536 bytes"),
        ] {
            assert_eq!(password(content), Err(message.to_owned()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pitfall_34_a_refusal_is_of_one_password_in_one_repository_and_for_a_while() {
        let of = |password| Arc::new(Credential::new("u", Secret::new(password)));
        let name = |text| RepositoryName::parse(text).unwrap();
        let pause = Duration::from_secs(30);
        let credentials = Credentials::of_caller("a.example", None, pause);
        credentials.refused(Some(&of("hush")), &name("a"));
        tokio::time::advance(Duration::from_secs(29)).await;
        assert!(credentials.are_refused(&of("hush"), &name("a")));
        assert!(!credentials.are_refused(&of("hush"), &name("b")));
        assert!(!credentials.are_refused(&of("loud"), &name("a")));
        // Whoever was locked out may have been let in again.
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!credentials.are_refused(&of("hush"), &name("a")));
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
        for path in [dir.path(), &pipe] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.ends_with("is no regular file"), "{error}");
        }
        let error = read(&dir.path().join("none")).unwrap_err();
        assert!(
            matches!(error, CredentialError::Unreadable { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_file_is_read_again_when_it_changed_or_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let mut last = None;
        let mut look = |refused| {
            let (credential, error) = look(&mut last, "u", &path, refused)?;
            Ok::<_, CredentialError>((credential.unwrap(), error.is_some()))
        };
        assert!(look(false).is_err());
        let of = |password| Arc::new(Credential::new("u", Secret::new(password)));
        fs::write(&path, "first").unwrap();
        let (first, _) = look(false).unwrap();
        assert_eq!(first, of("first"));
        // Not read twice.
        assert!(Arc::ptr_eq(&first, &look(false).unwrap().0));
        fs::write(&path, "the second").unwrap();
        assert_eq!(look(false).unwrap(), (of("the second"), false));
        // In the middle of being written.
        fs::write(&path, "").unwrap();
        assert_eq!(look(false).unwrap(), (of("the second"), true));
        // Changed so that nothing shows it: a refusal does.
        fs::write(&path, "third").unwrap();
        let (third, _) = look(false).unwrap();
        let times = fs::metadata(&path).unwrap();
        fs::write(&path, "forth").unwrap();
        let times = fs::FileTimes::new().set_modified(times.modified().unwrap());
        let file = File::options().write(true).open(&path).unwrap();
        file.set_times(times).unwrap();
        assert!(Arc::ptr_eq(&third, &look(false).unwrap().0));
        assert_eq!(look(true).unwrap(), (of("forth"), false));
    }
}
