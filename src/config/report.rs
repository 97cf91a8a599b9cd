//! A configuration as a file that means the same: what `check` prints.

use std::fmt::{self, Write};

use toml::Value;
use tracing::Level;

use crate::cache::{self, Share};
use crate::net::{DurationText, SizeText};
use crate::proxy::{Access, Freshness, Policy, UpstreamConfig};
use crate::server::{ClientCertificates, TlsConfig};
use crate::upstream::{CredentialSource, Egress, FolderCredential, MirrorConfig, SiteConfig};

use super::access;
use super::callers::CALLER;
use super::effective::{Config, Log, LogFormat, Sandbox};
use super::sites::{NO_PROXY, no_egress};

impl Config {
    /// The whole of it as TOML, defaults included. Reading it back gives the same configuration. It holds no secret: an
    /// upstream's URL is refused when it carries one.
    pub fn report(&self) -> String {
        let mut text = String::new();
        self.write(&mut text)
            .map_or_else(|_| String::new(), |()| text)
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let listen: Vec<_> = self.server.listen.iter().map(quoted).collect();
        writeln!(out, "listen = [{}]", listen.join(", "))?;
        writeln!(out, "admin_listen = {}", quoted(self.server.admin_listen))?;
        let trusted: Vec<_> = self.server.trusted_proxies.iter().map(quoted).collect();
        writeln!(out, "trusted_proxies = [{}]", trusted.join(", "))?;
        writeln!(out, "proxy_protocol = {}", self.server.proxy_protocol)?;
        write_log(out, self.log)?;
        write_sandbox(out, self.sandbox)?;
        write_cache(out, &self.cache)?;
        self.write_freshness(out)?;
        self.write_timeouts(out)?;
        self.write_limits(out)?;
        access::write(out, &self.access)?;
        write_tls(out, self.server.tls.as_ref())?;
        write_admin_tls(out, self.server.admin_tls.as_ref())?;
        let freshness = self.freshness();
        self.proxy
            .upstreams
            .iter()
            .try_for_each(|it| write_upstream(out, it, freshness))
    }

    /// The freshness of the default upstream, which the others are compared to: what is the same is written once.
    fn freshness(&self) -> Option<Freshness> {
        self.proxy.upstreams.first().map(|it| it.freshness)
    }

    fn write_freshness(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n[freshness]")?;
        if let Some(freshness) = self.freshness() {
            writeln!(out, "fresh_for = \"{}\"", DurationText(freshness.fresh_for))?;
            writeln!(
                out,
                "usable_for = \"{}\"",
                DurationText(freshness.usable_for)
            )?;
            writeln!(
                out,
                "retry_after = \"{}\"",
                DurationText(freshness.retry_after)
            )?;
        }
        writeln!(
            out,
            "negative_for = \"{}\"",
            DurationText(self.proxy.negative_for)
        )
    }

    fn write_timeouts(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n[timeouts]")?;
        writeln!(
            out,
            "answer = \"{}\"",
            DurationText(self.proxy.answer_timeout)
        )?;
        if let Some(upstream) = self.proxy.upstreams.first() {
            let connection = &upstream.connection.own;
            writeln!(
                out,
                "connect = \"{}\"",
                DurationText(connection.connect_timeout)
            )?;
            writeln!(
                out,
                "first_byte = \"{}\"",
                DurationText(connection.first_byte_timeout)
            )?;
            writeln!(out, "idle = \"{}\"", DurationText(connection.idle_timeout))?;
        }
        writeln!(
            out,
            "header_read = \"{}\"",
            DurationText(self.server.header_read_timeout)
        )?;
        writeln!(
            out,
            "write_idle = \"{}\"",
            DurationText(self.server.write_idle_timeout)
        )?;
        writeln!(
            out,
            "drain = \"{}\"",
            DurationText(self.server.drain_timeout)
        )
    }

    fn write_limits(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "\n[limits]")?;
        let server = &self.server;
        writeln!(out, "connections = {}", server.connections_max)?;
        match server.connections_per_source_max {
            Some(most) => writeln!(out, "connections_per_source = {most}")?,
            None => {
                let most = server.connections_per_source();
                writeln!(out, "# connections_per_source: {most}")?;
            }
        }
        if let Some(rate) = server.requests_per_source {
            writeln!(out, "requests_per_source = \"{rate}\"")?;
        }
        if let Some(rate) = server.requests_per_identity {
            writeln!(out, "requests_per_identity = \"{rate}\"")?;
        }
        writeln!(out, "fills = {}", self.cache.fills_max)?;
        writeln!(
            out,
            "manifest_bytes = \"{}\"",
            SizeText(self.proxy.manifest_bytes_max)
        )?;
        if let Some(upstream) = self.proxy.upstreams.first() {
            writeln!(
                out,
                "requests_per_upstream = {}",
                upstream.connection.own.requests_max
            )?;
        }
        writeln!(out, "bypasses = {}", self.proxy.bypasses_max)
    }
}

fn write_tls(out: &mut String, tls: Option<&TlsConfig>) -> fmt::Result {
    let Some(tls) = tls else { return Ok(()) };
    writeln!(out, "\n[tls]")?;
    write_certificates(out, tls)?;
    writeln!(out, "http2 = {}", tls.http2)
}

fn write_admin_tls(out: &mut String, tls: Option<&TlsConfig>) -> fmt::Result {
    let Some(tls) = tls else { return Ok(()) };
    writeln!(out, "\n[admin_tls]")?;
    write_certificates(out, tls)
}

fn write_certificates(out: &mut String, tls: &TlsConfig) -> fmt::Result {
    writeln!(out, "certificate = {}", quoted(tls.certificate.display()))?;
    writeln!(out, "key = {}", quoted(tls.key.display()))?;
    let clients = match &tls.clients {
        ClientCertificates::None => "none",
        ClientCertificates::Optional(_) => "optional",
        ClientCertificates::Required(_) => "required",
    };
    writeln!(out, "client_certificates = {}", quoted(clients))?;
    match tls.clients.ca_file() {
        Some(file) => writeln!(out, "client_ca_file = {}", quoted(file.display())),
        None => Ok(()),
    }
}

fn write_log(out: &mut String, log: Log) -> fmt::Result {
    match log.format {
        Some(LogFormat::Text) => writeln!(out, "log_format = \"text\"")?,
        Some(LogFormat::Json) => writeln!(out, "log_format = \"json\"")?,
        None => writeln!(out, "# log_format: text on a terminal, else json")?,
    }
    let level = match log.level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    writeln!(out, "log_level = \"{level}\"")
}

fn write_sandbox(out: &mut String, sandbox: Sandbox) -> fmt::Result {
    match sandbox {
        Sandbox::None => writeln!(out, "sandbox = \"none\""),
        Sandbox::Landlock => writeln!(out, "sandbox = \"landlock\""),
    }
}

fn write_cache(out: &mut String, cache: &cache::Config) -> fmt::Result {
    writeln!(out, "\n[cache]")?;
    writeln!(out, "dir = {}", quoted(cache.dir.display()))?;
    match cache.size {
        Some(size) => writeln!(out, "size = \"{}\"", SizeText(size))?,
        None => writeln!(
            out,
            "# size: 50GiB, or 80 % of what is free at the first start if that is less"
        )?,
    }
    writeln!(out, "free_space_min = \"{}\"", share(cache.free_space_min))?;
    writeln!(out, "high_watermark = \"{}\"", share(cache.high_watermark))?;
    writeln!(out, "low_watermark = \"{}\"", share(cache.low_watermark))?;
    writeln!(out, "repositories_max = {}", cache.repositories_max)?;
    writeln!(out, "scrub_rate = \"{}\"", SizeText(cache.scrub_rate))
}

fn write_upstream(
    out: &mut String,
    upstream: &UpstreamConfig,
    common: Option<Freshness>,
) -> fmt::Result {
    writeln!(out, "\n[[upstream]]")?;
    writeln!(out, "namespace = {}", quoted(&upstream.namespace))?;
    write_url(out, &upstream.connection.own)?;
    if upstream.default {
        writeln!(out, "default = true")?;
    }
    if !upstream.hosts.is_empty() {
        let hosts: Vec<_> = upstream.hosts.iter().map(quoted).collect();
        writeln!(out, "hosts = [{}]", hosts.join(", "))?;
    }
    let Freshness {
        fresh_for,
        usable_for,
        ..
    } = upstream.freshness;
    if common.is_none_or(|it| it.fresh_for != fresh_for) {
        writeln!(out, "fresh_for = \"{}\"", DurationText(fresh_for))?;
    }
    if common.is_none_or(|it| it.usable_for != usable_for) {
        writeln!(out, "usable_for = \"{}\"", DurationText(usable_for))?;
    }
    if !upstream.tags.is_empty() {
        writeln!(out, "tags = [")?;
        for rule in &upstream.tags {
            let (pattern, fresh_for) =
                (quoted(rule.pattern.as_str()), DurationText(rule.fresh_for));
            writeln!(
                out,
                "    {{ match = {pattern}, fresh_for = \"{fresh_for}\" }},"
            )?;
        }
        writeln!(out, "]")?;
    }
    write_policy(out, &upstream.policy)?;
    if let Some(program) = &upstream.verifier {
        writeln!(out, "verifier = {}", quoted(program.display()))?;
    }
    if upstream.connection.offline {
        writeln!(out, "offline = true")?;
    }
    if let Access::Caller { grant_ttl } = upstream.access {
        writeln!(out, "access = {}", quoted(CALLER))?;
        writeln!(out, "caller_grant_ttl = \"{}\"", DurationText(grant_ttl))?;
    }
    write_site(out, &upstream.connection.own)?;
    write_folders(out, "upstream", &upstream.connection.own)?;
    upstream
        .connection
        .mirrors
        .iter()
        .try_for_each(|it| write_mirror(out, it))
}

fn write_policy(out: &mut String, policy: &Policy) -> fmt::Result {
    let mut write = |key, rules: Vec<String>| match rules.is_empty() {
        true => Ok(()),
        false => writeln!(out, "{key} = [{}]", rules.join(", ")),
    };
    write("allow", policy.allow.iter().map(quoted).collect())?;
    write("deny", policy.deny.iter().map(quoted).collect())?;
    let patterns = policy.require_digest.iter();
    write("require_digest", patterns.map(quoted).collect())
}

fn write_mirror(out: &mut String, mirror: &MirrorConfig) -> fmt::Result {
    writeln!(out, "\n[[upstream.mirror]]")?;
    write_url(out, &mirror.site)?;
    if !mirror.resolves {
        writeln!(out, "resolve = false")?;
    }
    write_site(out, &mirror.site)?;
    write_folders(out, "upstream.mirror", &mirror.site)
}

fn write_url(out: &mut String, site: &SiteConfig) -> fmt::Result {
    // A URI without a path is shown with one.
    let url = site.url.to_string();
    let url = url.trim_end_matches('/');
    match &site.prefix {
        Some(prefix) => writeln!(out, "url = {}", quoted(format_args!("{url}/{prefix}"))),
        None => writeln!(out, "url = {}", quoted(url)),
    }
}

/// Who we are in some of a site's repositories; `table` is the site's.
fn write_folders(out: &mut String, table: &str, site: &SiteConfig) -> fmt::Result {
    for FolderCredential { folder, source } in &site.folder_credentials {
        writeln!(out, "\n[[{table}.credential]]")?;
        writeln!(out, "repositories = {}", quoted(folder))?;
        write_credential(out, source)?;
    }
    Ok(())
}

/// Who we are. Passwords are not known here but for those of variables, which stay where they are.
fn write_credential(out: &mut String, source: &CredentialSource) -> fmt::Result {
    match source {
        CredentialSource::File {
            username,
            password_file,
        } => {
            writeln!(out, "username = {}", quoted(username))?;
            writeln!(out, "password_file = {}", quoted(password_file.display()))
        }
        CredentialSource::Variable {
            username, variable, ..
        } => {
            writeln!(out, "username = {}", quoted(username))?;
            writeln!(out, "password_env = {}", quoted(variable))
        }
        CredentialSource::Helper { program, .. } => {
            let program = program.display().to_string();
            let name = program.strip_prefix("docker-credential-");
            let name = quoted(name.unwrap_or(&program));
            writeln!(out, "credential_helper = {name}")
        }
    }
}

/// How a site is reached, and as whom.
fn write_site(out: &mut String, site: &SiteConfig) -> fmt::Result {
    if let Some(source) = &site.credential {
        write_credential(out, source)?;
    }
    if !site.token_realms.is_empty() {
        let realms = site.token_realms.iter().map(|realm| {
            let realm = realm.to_string();
            quoted(realm.trim_end_matches('/'))
        });
        writeln!(
            out,
            "token_realms = [{}]",
            realms.collect::<Vec<_>>().join(", ")
        )?;
    }
    if !site.redirect_networks.is_empty() {
        let networks: Vec<_> = site.redirect_networks.iter().map(quoted).collect();
        writeln!(out, "redirect_networks = [{}]", networks.join(", "))?;
    }
    if let Some(file) = &site.tls.ca_file {
        writeln!(out, "ca_file = {}", quoted(file.display()))?;
    }
    if let Some(client) = &site.tls.client {
        let certificate = quoted(client.certificate.display());
        writeln!(out, "client_certificate = {certificate}")?;
        writeln!(out, "client_key = {}", quoted(client.key.display()))?;
    }
    write_egress(out, &site.egress)?;
    if site.parallel_ranges > 1 {
        writeln!(out, "parallel_ranges = {}", site.parallel_ranges)?;
    }
    Ok(())
}

/// A proxy of the file's is a key; those of the environment are there already, and may have passwords.
fn write_egress(out: &mut String, egress: &Egress) -> fmt::Result {
    if *egress == no_egress() {
        return writeln!(out, "proxy = {}", quoted(NO_PROXY));
    }
    match (&egress.http, &egress.https, &egress.except) {
        (Some(http), Some(https), None) if http == https && !http.contains('@') => {
            writeln!(out, "proxy = {}", quoted(http))
        }
        (None, None, _) => Ok(()),
        _ => writeln!(out, "# proxy: as the environment has it"),
    }
}

fn share(share: Share) -> String {
    match share {
        Share::Percent(percent) => format!("{percent}%"),
        Share::Bytes(bytes) => SizeText(bytes).to_string(),
    }
}

/// `text` as a TOML string, escaped as needed.
fn quoted(text: impl fmt::Display) -> String {
    Value::String(text.to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use std::slice;

    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use crate::config::error::Error;
    use crate::config::load::tests::{load, load_in, refusal};
    use crate::config::names::NAMES;
    use crate::net::Chain;

    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/layerhold.toml");
    const README: &str = include_str!("../../README.md");

    #[test]
    fn the_example_holds_every_key_at_its_default() {
        assert_eq!(load(EXAMPLE).unwrap().report(), load("").unwrap().report());
        let uncommented: String = EXAMPLE.lines().fold(String::new(), |mut text, line| {
            let key = line
                .strip_prefix("# ")
                .filter(|it| it.contains(" = ") || it.starts_with('['));
            writeln!(text, "{}", key.unwrap_or(line)).unwrap();
            text
        });
        let example: toml::Table = uncommented.parse().unwrap();
        load_in(&[("GHCR_TOKEN", "x")], &uncommented).unwrap();
        assert_eq!(keys_in(&example), documented_keys());
    }

    /// Every key, with the tables that hold it.
    fn keys_in(table: &toml::Table) -> Vec<String> {
        let mut keys = Vec::new();
        for (name, value) in table {
            let values = value
                .as_array()
                .map_or(slice::from_ref(value), Vec::as_slice);
            let tables = values.iter().filter_map(Value::as_table);
            let inner: Vec<_> = tables.flat_map(keys_in).collect();
            if inner.is_empty() {
                keys.push(name.clone());
            }
            keys.extend(inner.into_iter().map(|it| format!("{name}.{it}")));
        }
        keys.sort();
        keys.dedup();
        keys
    }

    /// The first column of the README's table of keys.
    fn documented_keys() -> Vec<String> {
        let (_, section) = README.split_once("\n### Configuration file\n").unwrap();
        let section = section.split("\n#").next().unwrap();
        let rows = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let mut keys: Vec<_> = rows.map(str::to_owned).collect();
        keys.sort();
        keys
    }

    #[test]
    fn every_documented_key_is_accepted() {
        let keys = documented_keys();
        assert!(keys.len() > 30, "{keys:?}");
        for key in keys {
            let path: Vec<_> = key.split('.').collect();
            let text = toml::to_string(&nested(&path)).unwrap();
            // A wrong value is refused by its key; an unknown key would be refused by its line.
            let unknown = matches!(load(&text), Err(Error::Malformed { .. }));
            assert!(!unknown, "{}", refusal(&text));
        }
    }

    /// A number at the end of `path`.
    fn nested(path: &[&str]) -> Value {
        let Some((first, rest)) = path.split_first() else {
            return Value::Integer(1);
        };
        let list = matches!(
            *first,
            "upstream" | "tags" | "mirror" | "credential" | "rule"
        );
        let inner = if list {
            Value::Array(vec![nested(rest)])
        } else {
            nested(rest)
        };
        Value::Table([((*first).to_owned(), inner)].into_iter().collect())
    }

    #[test]
    fn every_documented_flag_and_variable_exists() {
        for name in NAMES {
            let row = format!("| `{}` | `{}` |", name.flag, name.variable);
            assert!(README.lines().any(|line| line.starts_with(&row)), "{row}");
        }
    }

    #[test]
    fn the_report_means_the_same() {
        for text in [
            "",
            EXAMPLE,
            "log_format = \"json\"\nlisten = [\"[::]:0\", \"127.0.0.1:0\"]\n[cache]\ndir = '/with \"quotes\" and \\'\nsize = \"1TiB\"\n\
             free_space_min = \"10GiB\"\nlow_watermark = \"92.5%\"\nscrub_rate = \"0B\"\n[timeouts]\nconnect = \"250ms\"",
            "[[upstream]]\nnamespace = \"a.example:5000\"\nurl = \"http://a.example:5000\"\nfresh_for = \"8d\"\nusable_for = \"9d\"\n\
             [[upstream]]\nnamespace = \"localhost\"\nurl = \"http://[::1]:5001/\"\ndefault = true\nhosts = [\"x\", \"y:5000\"]\n\
             tags = [{ match = '^\"v\\d+$', fresh_for = \"1d\" }]\noffline = true\nusername = 'u'\npassword_file = '/p'\n\
             token_realms = ['https://t.x']\nredirect_networks = ['10.0.0.0/8']\nca_file = '/c'\nclient_certificate = '/d'\nclient_key = '/k'\n\
             proxy = 'egress:3128'\nparallel_ranges = 4\n[[upstream.mirror]]\nurl = 'https://m.x/hub/a'\nresolve = false\ncredential_helper = 'ecr-login'\n\
             proxy = 'none'\n[[upstream.mirror.credential]]\nrepositories = 'a'\ncredential_helper = 'x'\n[[upstream.mirror]]\nurl = 'http://n.x:1'\ncredential_helper = '/opt/helper'\n[[upstream.credential]]\nrepositories = 'a/b'\nusername = 'v'\npassword_file = '/q'",
        ] {
            let report = load(text).unwrap().report();
            assert_eq!(load(&report).unwrap().report(), report);
        }
    }

    /// Whatever the file holds, loading it ends in one line or in a configuration that renders back.
    fn fuzz_config(data: &[u8]) -> bool {
        let text = String::from_utf8_lossy(data);
        match load(&text) {
            Ok(config) => {
                let report = config.report();
                let again = load(&report).unwrap_or_else(|error| panic!("{error}\n{report}"));
                assert_eq!(again.report(), report);
                true
            }
            Err(error) => {
                let message = Chain(&error).to_string();
                assert!(!message.contains(char::is_control), "{message:?}");
                false
            }
        }
    }

    #[test]
    fn no_file_makes_loading_panic() {
        let mut random = StdRng::seed_from_u64(0x1a7e_4401);
        let words: Vec<&str> = EXAMPLE
            .split_inclusive(['\n', ' ', '"', '=', '.', ','])
            .collect();
        let odd = [
            "\"",
            "'''",
            "\n",
            "[",
            "]",
            "{",
            "}",
            "-",
            "1e9",
            "nan%",
            "0",
            "99999999999999999999",
            "\u{0}",
            "é",
            "@",
            "\\",
            "true",
            "1979-05-27",
        ];
        let mut accepted = 0;
        for _ in 0..4_000 {
            let mut text = EXAMPLE.to_owned();
            for _ in 0..random.random_range(1..4) {
                let mut at = random.random_range(0..text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                let rest = text.split_off(at);
                let list = if random.random() { &words[..] } else { &odd };
                text.push_str(list.choose(&mut random).copied().unwrap_or_default());
                let skipped = random.random_range(0..8);
                text.extend(rest.chars().skip(skipped));
            }
            accepted += u32::from(fuzz_config(text.as_bytes()));
        }
        for len in 0..200 {
            let data: Vec<u8> = (0..len).map(|_| random.random()).collect();
            fuzz_config(&data);
        }
        assert!(
            accepted > 100,
            "the mutations are too wild to get anywhere: {accepted}"
        );
    }
}
