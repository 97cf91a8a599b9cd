//! Whose rights decide what a client may have of an upstream.

use std::time::Duration;

use toml::Value;

use crate::proxy::Access;
use crate::upstream;

use super::error::Error;
use super::given::{Given, Place};

/// Reads `access` and `caller_grant_ttl` of an upstream that is `connection`. Where the callers' own rights decide, nothing may
/// speak for all of them: no credential of ours, and no outage on purpose, in which nobody can be asked.
pub(super) fn read(
    place: impl Fn(&str, Option<Value>) -> Place,
    (access, ttl): (Option<Value>, Option<Value>),
    connection: &upstream::Config,
) -> Result<Access, Error> {
    let access = place("access", access).given();
    let is_callers = access.as_ref().map_or(Ok(false), is_callers)?;
    let ttl = place("caller_grant_ttl", ttl);
    let ttl = ttl.duration(GRANT_TTL, Duration::ZERO..=GRANT_TTL_MOST)?;
    let Some(access) = access.filter(|_| is_callers) else {
        return Ok(Access::Shared);
    };
    let own = &connection.own;
    if own.credential.is_some() || !own.folder_credentials.is_empty() {
        return Err(
            access.taken("the callers' own credentials are used, so there can be none of ours")
        );
    }
    if own.tls.client.is_some() {
        return Err(access.taken(
            "the callers' own rights decide, so there can be no client_certificate of ours",
        ));
    }
    if connection.offline {
        return Err(access.taken("an upstream that is offline cannot say what a caller may have"));
    }
    Ok(Access::Caller {
        grant_ttl: ttl.value,
    })
}

fn is_callers(given: &Given) -> Result<bool, Error> {
    match given.str(ACCESS)? {
        SHARED => Ok(false),
        CALLER => Ok(true),
        _ => Err(given.wrong(ACCESS)),
    }
}

/// How long a right that was taken away may live on.
const GRANT_TTL: Duration = Duration::from_secs(60);
const GRANT_TTL_MOST: Duration = Duration::from_secs(3600);

pub(super) const SHARED: &str = "shared";
pub(super) const CALLER: &str = "caller";
const ACCESS: &str = "`shared` or `caller`";

#[cfg(test)]
mod tests {
    use crate::config::load::tests::{load, refusal};

    use super::*;

    fn upstream(keys: &str) -> String {
        format!("[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b'\n{keys}")
    }

    #[test]
    fn rights_are_shared_unless_they_are_the_callers() {
        let secs = Duration::from_secs;
        for (keys, expected) in [
            ("", Access::Shared),
            ("access = 'shared'", Access::Shared),
            (
                "access = 'caller'",
                Access::Caller {
                    grant_ttl: secs(60),
                },
            ),
            (
                "access = 'caller'\ncaller_grant_ttl = '0s'",
                Access::Caller { grant_ttl: secs(0) },
            ),
            (
                "access = 'caller'\ncaller_grant_ttl = '5m'",
                Access::Caller {
                    grant_ttl: secs(300),
                },
            ),
        ] {
            let config = load(&upstream(keys)).unwrap();
            assert_eq!(config.proxy.upstreams[0].access, expected, "{keys}");
            let report = config.report();
            let again = load(&report).unwrap();
            assert_eq!(again.proxy.upstreams[0].access, expected, "{report}");
        }
    }

    #[test]
    fn nothing_of_ours_speaks_for_callers() {
        for (keys, part) in [
            (
                "access = 'other'",
                "access: \"other\": not `shared` or `caller`",
            ),
            ("access = 1", "access: 1: not `shared` or `caller`"),
            (
                "access = 'caller'\ncaller_grant_ttl = '2h'",
                "caller_grant_ttl: \"2h\": must be",
            ),
            (
                "access = 'caller'\nusername = 'u'\npassword_file = '/p'",
                "the callers' own credentials",
            ),
            (
                "access = 'caller'\ncredential_helper = 'ecr-login'",
                "the callers' own credentials",
            ),
            (
                "access = 'caller'\n[[upstream.credential]]\nrepositories = 'a'\nusername = 'u'\npassword_file = '/p'",
                "the callers' own credentials",
            ),
            (
                "access = 'caller'\nclient_certificate = '/c'\nclient_key = '/k'",
                "no client_certificate",
            ),
            ("access = 'caller'\noffline = true", "offline"),
        ] {
            let message = refusal(&upstream(keys));
            assert!(message.contains(part), "{message}");
        }
        for key in ["htpasswd_file", "tokens_file"] {
            let text = format!("[access]\n{key} = '/f'\n{}", upstream("access = 'caller'"));
            let message = refusal(&text);
            assert!(
                message.contains("one password cannot be for both"),
                "{message}"
            );
        }
    }
}
