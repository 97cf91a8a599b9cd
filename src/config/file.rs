//! The configuration file, key by key as it is written.
//!
//! Tables and keys are typed here, so an unknown one is refused with its line. Values are not: they stay as TOML has
//! them until they are looked at together with flags and variables, which is where a wrong one gets its message.

use std::path::Path;

use serde::Deserialize;
use toml::Value;

use super::error::Error;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct File {
    pub(super) listen: Option<Value>,
    pub(super) admin_listen: Option<Value>,
    pub(super) trusted_proxies: Option<Value>,
    pub(super) proxy_protocol: Option<Value>,
    pub(super) log_format: Option<Value>,
    pub(super) log_level: Option<Value>,
    pub(super) sandbox: Option<Value>,
    pub(super) tls: Option<Tls>,
    pub(super) admin_tls: Option<AdminTls>,
    pub(super) cache: Cache,
    pub(super) freshness: Freshness,
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
    pub(super) access: Access,
    pub(super) upstream: Option<Vec<Upstream>>,
}

/// `[tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Tls {
    pub(super) certificate: Option<Value>,
    pub(super) key: Option<Value>,
    pub(super) client_certificates: Option<Value>,
    pub(super) client_ca_file: Option<Value>,
    pub(super) http2: Option<Value>,
}

/// `[admin_tls]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct AdminTls {
    pub(super) certificate: Option<Value>,
    pub(super) key: Option<Value>,
    pub(super) client_certificates: Option<Value>,
    pub(super) client_ca_file: Option<Value>,
}

impl From<AdminTls> for Tls {
    fn from(table: AdminTls) -> Self {
        Self {
            certificate: table.certificate,
            key: table.key,
            client_certificates: table.client_certificates,
            client_ca_file: table.client_ca_file,
            http2: None,
        }
    }
}

/// `[cache]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Cache {
    pub(super) dir: Option<Value>,
    pub(super) size: Option<Value>,
    pub(super) free_space_min: Option<Value>,
    pub(super) high_watermark: Option<Value>,
    pub(super) low_watermark: Option<Value>,
    pub(super) repositories_max: Option<Value>,
    pub(super) scrub_rate: Option<Value>,
}

/// `[freshness]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Freshness {
    pub(super) fresh_for: Option<Value>,
    pub(super) usable_for: Option<Value>,
    pub(super) retry_after: Option<Value>,
    pub(super) negative_for: Option<Value>,
}

/// `[timeouts]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Timeouts {
    pub(super) answer: Option<Value>,
    pub(super) connect: Option<Value>,
    pub(super) first_byte: Option<Value>,
    pub(super) idle: Option<Value>,
    pub(super) header_read: Option<Value>,
    pub(super) write_idle: Option<Value>,
    pub(super) drain: Option<Value>,
}

/// `[limits]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Limits {
    pub(super) connections: Option<Value>,
    pub(super) connections_per_source: Option<Value>,
    pub(super) requests_per_source: Option<Value>,
    pub(super) requests_per_identity: Option<Value>,
    pub(super) fills: Option<Value>,
    pub(super) manifest_bytes: Option<Value>,
    pub(super) requests_per_upstream: Option<Value>,
    pub(super) bypasses: Option<Value>,
}

/// `[access]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Access {
    pub(super) htpasswd_file: Option<Value>,
    pub(super) tokens_file: Option<Value>,
    pub(super) external_url: Option<Value>,
    pub(super) admin_networks: Option<Value>,
    pub(super) admin_identities: Option<Value>,
    pub(super) rule: Vec<AccessRule>,
}

/// One `[[access.rule]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct AccessRule {
    pub(super) action: Option<Value>,
    pub(super) identities: Option<Value>,
    pub(super) networks: Option<Value>,
    pub(super) upstreams: Option<Value>,
    pub(super) repositories: Option<Value>,
}

/// One `[[upstream]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Upstream {
    pub(super) namespace: Option<Value>,
    pub(super) url: Option<Value>,
    #[serde(rename = "default")]
    pub(super) is_default: Option<Value>,
    pub(super) hosts: Option<Value>,
    pub(super) fresh_for: Option<Value>,
    pub(super) usable_for: Option<Value>,
    pub(super) offline: Option<Value>,
    pub(super) access: Option<Value>,
    pub(super) caller_grant_ttl: Option<Value>,
    pub(super) tags: Vec<Tags>,
    pub(super) allow: Option<Value>,
    pub(super) deny: Option<Value>,
    pub(super) require_digest: Option<Value>,
    pub(super) verifier: Option<Value>,
    pub(super) mirror: Vec<Mirror>,
    pub(super) credential: Vec<Credential>,
    pub(super) username: Option<Value>,
    pub(super) password_file: Option<Value>,
    pub(super) password_env: Option<Value>,
    pub(super) credential_helper: Option<Value>,
    pub(super) token_realms: Option<Value>,
    pub(super) redirect_networks: Option<Value>,
    pub(super) ca_file: Option<Value>,
    pub(super) client_certificate: Option<Value>,
    pub(super) client_key: Option<Value>,
    pub(super) proxy: Option<Value>,
    pub(super) parallel_ranges: Option<Value>,
}

/// One `[[upstream.mirror]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Mirror {
    pub(super) url: Option<Value>,
    pub(super) resolve: Option<Value>,
    pub(super) credential: Vec<Credential>,
    pub(super) username: Option<Value>,
    pub(super) password_file: Option<Value>,
    pub(super) password_env: Option<Value>,
    pub(super) credential_helper: Option<Value>,
    pub(super) token_realms: Option<Value>,
    pub(super) redirect_networks: Option<Value>,
    pub(super) ca_file: Option<Value>,
    pub(super) client_certificate: Option<Value>,
    pub(super) client_key: Option<Value>,
    pub(super) proxy: Option<Value>,
    pub(super) parallel_ranges: Option<Value>,
}

/// The keys that a registry and its mirrors have in common: how each of them is reached, and as whom.
#[derive(Debug, Default)]
pub(super) struct Site {
    pub(super) credential: Vec<Credential>,
    pub(super) username: Option<Value>,
    pub(super) password_file: Option<Value>,
    pub(super) password_env: Option<Value>,
    pub(super) credential_helper: Option<Value>,
    pub(super) token_realms: Option<Value>,
    pub(super) redirect_networks: Option<Value>,
    pub(super) ca_file: Option<Value>,
    pub(super) client_certificate: Option<Value>,
    pub(super) client_key: Option<Value>,
    pub(super) proxy: Option<Value>,
    pub(super) parallel_ranges: Option<Value>,
}

/// One `[[upstream.credential]]` or `[[upstream.mirror.credential]]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Credential {
    pub(super) repositories: Option<Value>,
    pub(super) username: Option<Value>,
    pub(super) password_file: Option<Value>,
    pub(super) password_env: Option<Value>,
    pub(super) credential_helper: Option<Value>,
}

/// The keys of an upstream that say what may be pulled from it.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) allow: Option<Value>,
    pub(super) deny: Option<Value>,
    pub(super) require_digest: Option<Value>,
}

/// One entry of an upstream's `tags`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
pub(super) struct Tags {
    #[serde(rename = "match")]
    pub(super) pattern: Option<Value>,
    pub(super) fresh_for: Option<Value>,
}

impl Upstream {
    /// Takes out what says what may be pulled.
    pub(super) fn rules(&mut self) -> Rules {
        Rules {
            allow: self.allow.take(),
            deny: self.deny.take(),
            require_digest: self.require_digest.take(),
        }
    }

    /// Takes out what it has in common with its mirrors.
    pub(super) fn site(&mut self) -> Site {
        Site {
            credential: std::mem::take(&mut self.credential),
            username: self.username.take(),
            password_file: self.password_file.take(),
            password_env: self.password_env.take(),
            credential_helper: self.credential_helper.take(),
            token_realms: self.token_realms.take(),
            redirect_networks: self.redirect_networks.take(),
            ca_file: self.ca_file.take(),
            client_certificate: self.client_certificate.take(),
            client_key: self.client_key.take(),
            proxy: self.proxy.take(),
            parallel_ranges: self.parallel_ranges.take(),
        }
    }
}

impl Mirror {
    /// Takes out what it has in common with the registry itself.
    pub(super) fn site(&mut self) -> Site {
        Site {
            credential: std::mem::take(&mut self.credential),
            username: self.username.take(),
            password_file: self.password_file.take(),
            password_env: self.password_env.take(),
            credential_helper: self.credential_helper.take(),
            token_realms: self.token_realms.take(),
            redirect_networks: self.redirect_networks.take(),
            ca_file: self.ca_file.take(),
            client_certificate: self.client_certificate.take(),
            client_key: self.client_key.take(),
            proxy: self.proxy.take(),
            parallel_ranges: self.parallel_ranges.take(),
        }
    }
}

impl File {
    /// The variables that passwords are read from: settings of ours, whatever they are called.
    pub(super) fn variables(&self) -> Vec<&str> {
        let upstreams = self.upstream.iter().flatten();
        let named = upstreams.flat_map(|upstream| {
            let mirrors = upstream.mirror.iter();
            let folders = mirrors.clone().flat_map(|it| &it.credential);
            let folders = folders.chain(&upstream.credential);
            let places = mirrors.map(|it| &it.password_env);
            let folders = folders.map(|it| &it.password_env);
            places.chain(folders).chain([&upstream.password_env])
        });
        named.flatten().filter_map(Value::as_str).collect()
    }

    /// Reads `text`, which came from `file`.
    pub(super) fn parse(file: &Path, text: &str) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.as_bytes().iter().take(start);
            Error::Malformed {
                file: file.to_owned(),
                line: 1 + before.filter(|byte| **byte == b'\n').count(),
                message: one_line(&error.message().replace("unknown field", "unknown key")),
            }
        })
    }
}

/// `text` without line ends, which would tear a log or a terminal's line apart.
fn one_line(text: &str) -> String {
    text.split(char::is_control).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        File::parse(Path::new("layerhold.toml"), text)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_what_there_is() {
        for (text, line, key) in [
            ("lisen = 1", 1, "lisen"),
            ("\n[cash]\n", 2, "cash"),
            ("[cache]\n\nsise = 1\n", 3, "sise"),
            ("[[upstream]]\npassword = \"hush\"", 2, "password"),
            ("[[upstream]]\ntags = [{ math = \"x\" }]", 2, "math"),
        ] {
            let message = refusal(text);
            let start =
                format!("layerhold.toml: line {line}: unknown key `{key}`, expected one of `");
            let alternative =
                format!("layerhold.toml: line {line}: unknown key `{key}`, expected `");
            assert!(
                message.starts_with(&start) || message.starts_with(&alternative),
                "{message}"
            );
        }
    }

    #[test]
    fn what_is_not_toml_is_refused_on_one_line() {
        for (text, line) in [
            ("listen = ", 1),
            ("a\nb", 1),
            ("[cache]\ndir = \"a\nb\"", 3),
            ("[cache]\ndir = \"a\"\ndir = \"b\"", 3),
            ("cache = 3", 1),
            ("upstream = 3", 1),
            ("\n\nupstream = [3]", 3),
        ] {
            let message = refusal(text);
            assert!(
                message.starts_with(&format!("layerhold.toml: line {line}: ")),
                "{message}"
            );
            assert!(!message.contains(char::is_control), "{message:?}");
            assert!(!message.contains("struct"), "{message}");
        }
    }
}
