//! A configuration as a file that means the same: what `check` prints.

use std::fmt::{self, Write};

use toml::Value;
use tracing::Level;

use crate::cache::{self, Share};
use crate::net::{DurationText, SizeText};
use crate::proxy::{Freshness, UpstreamConfig};

use super::effective::{Config, Log, LogFormat};

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
        write_log(out, self.log)?;
        write_cache(out, &self.cache)?;
        self.write_freshness(out)?;
        self.write_timeouts(out)?;
        self.write_limits(out)?;
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
            let connection = &upstream.connection;
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
        writeln!(out, "connections = {}", self.server.connections_max)?;
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
                upstream.connection.requests_max
            )?;
        }
        writeln!(out, "bypasses = {}", self.proxy.bypasses_max)
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
    writeln!(out, "repositories_max = {}", cache.repositories_max)
}

fn write_upstream(
    out: &mut String,
    upstream: &UpstreamConfig,
    common: Option<Freshness>,
) -> fmt::Result {
    writeln!(out, "\n[[upstream]]")?;
    writeln!(out, "namespace = {}", quoted(&upstream.namespace))?;
    // A URI without a path is shown with one.
    let url = upstream.connection.url.to_string();
    writeln!(out, "url = {}", quoted(url.trim_end_matches('/')))?;
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
    Ok(())
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
    use crate::config::load::tests::{load, refusal};
    use crate::config::names::NAMES;
    use crate::net::Chain;

    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/layerhold.toml");
    const README: &str = include_str!("../../README.md");

    #[test]
    fn the_example_holds_every_key_at_its_default() {
        assert_eq!(load(EXAMPLE).unwrap().report(), load("").unwrap().report());
        let uncommented: String = EXAMPLE.lines().fold(String::new(), |mut text, line| {
            let key = line.strip_prefix("# ").filter(|it| it.contains(" = "));
            writeln!(text, "{}", key.unwrap_or(line)).unwrap();
            text
        });
        let example: toml::Table = uncommented.parse().unwrap();
        load(&uncommented).unwrap();
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
        let list = matches!(*first, "upstream" | "tags");
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
             free_space_min = \"10GiB\"\nlow_watermark = \"92.5%\"\n[timeouts]\nconnect = \"250ms\"",
            "[[upstream]]\nnamespace = \"a.example:5000\"\nurl = \"http://a.example:5000\"\nfresh_for = \"8d\"\nusable_for = \"9d\"\n\
             [[upstream]]\nnamespace = \"localhost\"\nurl = \"http://[::1]:5001/\"\ndefault = true\nhosts = [\"x\", \"y:5000\"]\n\
             tags = [{ match = '^\"v\\d+$', fresh_for = \"1d\" }]",
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
