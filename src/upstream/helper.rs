//! A program that knows our credentials: docker's credential-helper protocol.
//!
//! `docker-credential-<name> get` is given the registry's name on its standard input and prints
//! `{"ServerURL": …, "Username": …, "Secret": …}`, or fails and prints why (docker/docker-credential-helpers). It is run
//! without a shell, in a process group of its own, for a bounded time, and may print a bounded text. What it says on its
//! standard error is thrown away: it may quote what must not be shown.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::credential::{Credential, CredentialError};
use crate::net::{Secret, from_json_object};

/// A helper that runs. Dropped, it is killed with whatever it started.
#[derive(Debug)]
struct Running {
    /// Before the process, whose number means nothing once it was waited for.
    group: Group,
    child: Child,
}

/// The process group of a helper.
#[derive(Debug)]
struct Group(Option<Pid>);

/// What a helper prints.
#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks a helper who we are to a server; `None` when it knows of nobody. Cancel-safe: a helper that is not waited for any
/// more is killed.
pub(super) async fn get(
    program: &Path,
    server: &str,
    patience: Duration,
) -> Result<Option<Credential>, CredentialError> {
    let broken = |source| CredentialError::program(program, source);
    let mut command = Command::new(program);
    command
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    // Starting a program reads it from a disk.
    let started = tokio::task::spawn_blocking(move || Running::start(command)).await;
    let mut running = started.map_err(io::Error::from).flatten().map_err(broken)?;
    let talked = timeout(patience, running.talk(server)).await;
    let (status, printed) = match talked {
        Ok(Ok((Some(status), printed))) => (status, printed),
        Ok(Ok((None, _))) => {
            running.stop().await;
            return Err(CredentialError::Endless {
                program: program.to_owned(),
                bytes_max: PRINTED_BYTES_MAX,
            });
        }
        Ok(Err(error)) => {
            running.stop().await;
            return Err(broken(error));
        }
        Err(_) => {
            running.stop().await;
            return Err(CredentialError::Silent {
                path: program.to_owned(),
                waited: patience,
            });
        }
    };
    read(program, status, &printed)
}

impl Running {
    fn start(mut command: Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let pid = child.id().and_then(|it| i32::try_from(it).ok());
        Ok(Self {
            group: Group(pid.and_then(Pid::from_raw)),
            child,
        })
    }

    /// Asks, and waits for the end; how it ended, unless it is to be stopped for printing too much, and what it printed.
    async fn talk(&mut self, server: &str) -> io::Result<(Option<ExitStatus>, Zeroizing<Vec<u8>>)> {
        if let Some(mut stdin) = self.child.stdin.take() {
            // A helper that does not read may know the answer all the same.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
        // As large as it may get at once, and a little more for whoever looks for the end: what grows leaves copies behind.
        let mut printed = Zeroizing::new(Vec::with_capacity(PRINTED_BYTES_MAX + 64));
        if let Some(stdout) = self.child.stdout.take() {
            let bytes_max = PRINTED_BYTES_MAX as u64 + 1;
            stdout.take(bytes_max).read_to_end(&mut printed).await?;
        }
        if printed.len() > PRINTED_BYTES_MAX {
            return Ok((None, printed));
        }
        let status = self.child.wait().await?;
        // Its number may be another's from now on, and what it left running on purpose is its own affair.
        self.group.0 = None;
        Ok((Some(status), printed))
    }

    /// Kills it, and waits until it is gone.
    async fn stop(mut self) {
        self.group.kill();
        // Nothing survives that; what the system has in its hands is waited for elsewhere.
        let _ = timeout(GONE_WITHIN, self.child.wait()).await;
    }
}

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            // It may be gone already, which is what is wanted.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a helper said, by how it ended.
fn read(
    program: &Path,
    status: ExitStatus,
    printed: &[u8],
) -> Result<Option<Credential>, CredentialError> {
    let program = program.to_owned();
    if !status.success() {
        return if printed.trim_ascii() == NOT_FOUND {
            Ok(None)
        } else {
            Err(CredentialError::Failed { program, status })
        };
    }
    let answer: Option<Answer> = from_json_object(printed);
    let answer = answer.map(|it| (it.username, Secret::new(it.secret)));
    match answer {
        // Some say so that they know of nobody.
        Some((username, secret)) if username.is_empty() && secret.reveal().is_empty() => Ok(None),
        // A colon would end the user in what is sent (RFC 7617 §2).
        Some((username, secret)) if !secret.reveal().is_empty() && !username.contains(':') => {
            Ok(Some(Credential::new(&username, secret)))
        }
        Some(_) | None => Err(CredentialError::Malformed { program }),
    }
}

/// What a helper that failed prints when all is well but for there being no credentials
/// (docker-credential-helpers, `credentials/error.go`).
const NOT_FOUND: &[u8] = b"credentials not found in native keychain";
/// Secrets are tokens of some KiB at most.
const PRINTED_BYTES_MAX: usize = 64 << 10;
const GONE_WITHIN: Duration = Duration::from_secs(1);

/// Reads anything without panicking; credentials are what was printed under their names, and can be sent. Whether there were
/// any.
pub fn fuzz_credential_helper(input: &[u8]) -> bool {
    let status = ExitStatus::default();
    let Ok(Some(found)) = read(Path::new("helper"), status, input) else {
        return false;
    };
    // What is passed over may be of no characters, or no number that there is.
    let Ok(printed) = serde_json::from_slice::<serde_json::Value>(input) else {
        return true;
    };
    let said = |name| printed.get(name).and_then(serde_json::Value::as_str);
    let secret = Secret::new(said("Secret").unwrap_or_default());
    let expected = Credential::new(said("Username").unwrap_or_default(), secret);
    assert_eq!(found, expected, "credentials are what was printed as such");
    assert!(
        found.identity_token().is_some() || found.basic().is_some(),
        "what is known can be said"
    );
    true
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_helpers_print_is_understood() {
        let (well, badly) = (ExitStatus::from_raw(0), ExitStatus::from_raw(1 << 8));
        let of = |status, text: &str| {
            let found = read(Path::new("x"), status, text.as_bytes());
            found.map_err(|error| error.to_string())
        };
        let found = of(well, r#"{"ServerURL":"a.b","Username":"u","Secret":"s"}"#);
        let expected = Credential::new("u", Secret::new("s"));
        assert_eq!(found, Ok(Some(expected)));
        for nobody in [
            (badly, "credentials not found in native keychain\n"),
            (well, r#"{"ServerURL":"","Username":"","Secret":""}"#),
        ] {
            assert_eq!(of(nobody.0, nobody.1), Ok(None), "{}", nobody.1);
        }
        for (status, text, message) in [
            (badly, "hush", "x failed with exit status: 1"),
            (
                badly,
                r#"{"Username":"u","Secret":"hush"}"#,
                "x failed with exit status: 1",
            ),
            (well, "", "x printed no credentials"),
            (
                well,
                "credentials not found in native keychain",
                "x printed no credentials",
            ),
            (well, r#"{"Username":"hush"}"#, "x printed no credentials"),
            (
                well,
                r#"{"Username":"hush","Secret":""}"#,
                "x printed no credentials",
            ),
            (
                well,
                r#"{"Username":"a:b","Secret":"hush"}"#,
                "x printed no credentials",
            ),
            (
                well,
                r#"{"Username":1,"Secret":"hush"}"#,
                "x printed no credentials",
            ),
            (well, r#"["u", "hush"]"#, "x printed no credentials"),
        ] {
            assert_eq!(of(status, text), Err(message.to_owned()), "{text}");
        }
    }
}
