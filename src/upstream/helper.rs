//! A program that knows our credentials: docker's credential-helper protocol.
//!
//! `docker-credential-<name> get` is given the registry's name on its standard input and prints
//! `{"ServerURL": …, "Username": …, "Secret": …}`, or fails and prints why (docker/docker-credential-helpers). It is run
//! without a shell, in a process group of its own, for a bounded time, and may print a bounded text. What it says on its
//! standard error is thrown away: it may quote what must not be shown.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;

use super::credential::{Credential, CredentialError};
use super::program::{PRINTED_BYTES_MAX, ProgramError, run_program};
use crate::net::{Secret, from_json_object};

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
    let ended = run_program(program, &["get"], server.as_bytes(), patience).await;
    let (status, printed) = ended.map_err(|error| match error {
        ProgramError::Broken(source) => broken(source),
        ProgramError::Endless => CredentialError::Endless {
            program: program.to_owned(),
            bytes_max: PRINTED_BYTES_MAX,
        },
        ProgramError::Silent(waited) => CredentialError::Silent {
            path: program.to_owned(),
            waited,
        },
    })?;
    read(program, status, &printed)
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
