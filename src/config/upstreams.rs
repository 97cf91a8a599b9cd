//! The closed list of upstreams: built in, or given by flag, variable or file.

use regex::Regex;
use toml::Value;

use crate::oci::Namespace;
use crate::proxy::{Access, Freshness, Policy, TagRule, UpstreamConfig};
use crate::upstream;

use super::addresses::{URL, is_authority, read_url};
use super::callers;
use super::error::{At, Error};
use super::file;
use super::given::{Given, Sources, ordered};
use super::names::UPSTREAM;
use super::policies;
use super::sites::{self, Defaults, Keys};

/// The upstreams: those of the flags, else of the variable, else of the file, else the built-in ones.
pub(super) fn resolve(
    sources: &Sources<'_>,
    flags: Option<Value>,
    tables: Option<Vec<file::Upstream>>,
    defaults: &Defaults,
) -> Result<Vec<UpstreamConfig>, Error> {
    ordered(&defaults.fresh_for, &defaults.usable_for, true)?;
    let mut list = List::default();
    if let Some(given) = sources.find(&UPSTREAM, flags, None)?.given() {
        for pair in given.list(PAIR)? {
            list.add_pair(&pair, defaults)?;
        }
    } else if let Some(tables) = tables {
        if tables.is_empty() {
            let at = sources.at(UPSTREAM.key);
            return Err(Error::Missing {
                at,
                wanted: "at least one upstream, or leave the key out",
            });
        }
        for (nth, table) in tables.into_iter().enumerate() {
            list.add_table(sources, nth, table, defaults)?;
        }
    } else {
        for (namespace, url) in BUILT_IN {
            let given = |text: &str| Given {
                at: At::Default(UPSTREAM.key.to_owned()),
                value: Value::String(text.to_owned()),
            };
            list.add(&given(namespace), &given(url), defaults)?;
        }
    }
    Ok(list.finish())
}

/// The upstreams so far; every namespace and host is in it once.
#[derive(Default)]
struct List {
    upstreams: Vec<UpstreamConfig>,
}

impl List {
    /// Adds an upstream that is nothing but a name and an address.
    fn add(
        &mut self,
        namespace: &Given,
        url: &Given,
        defaults: &Defaults,
    ) -> Result<&mut UpstreamConfig, Error> {
        let name =
            Namespace::parse(namespace.str(NAMESPACE)?).map_err(|_| namespace.wrong(NAMESPACE))?;
        if self.upstreams.iter().any(|it| it.namespace == name) {
            return Err(namespace.taken("another upstream has this namespace"));
        }
        Ok(self.upstreams.push_mut(UpstreamConfig {
            namespace: name,
            connection: upstream::Config {
                own: sites::bare(read_url(url)?, defaults),
                mirrors: Vec::new(),
                offline: false,
            },
            default: false,
            hosts: Vec::new(),
            freshness: Freshness {
                fresh_for: defaults.fresh_for.value,
                usable_for: defaults.usable_for.value,
                retry_after: defaults.retry_after,
            },
            tags: Vec::new(),
            access: Access::Shared,
            policy: Policy::default(),
            verifier: None,
        }))
    }

    /// Adds `NAMESPACE=URL`, as flags and the variable have it.
    fn add_pair(&mut self, pair: &Given, defaults: &Defaults) -> Result<(), Error> {
        let (namespace, url) = pair
            .str(PAIR)?
            .split_once('=')
            .ok_or_else(|| pair.wrong(PAIR))?;
        let part = |text: &str| Given {
            at: pair.at.clone(),
            value: Value::String(text.to_owned()),
        };
        self.add(&part(namespace), &part(url), defaults)?;
        Ok(())
    }

    /// Adds the `nth` `[[upstream]]` of the file.
    fn add_table(
        &mut self,
        sources: &Sources<'_>,
        nth: usize,
        mut table: file::Upstream,
        defaults: &Defaults,
    ) -> Result<(), Error> {
        // Messages name an upstream by its namespace; one that has none, or a wrong one, by its number.
        let label = table.namespace.as_ref().and_then(Value::as_str);
        let label = match label.filter(|it| Namespace::parse(it).is_ok()) {
            Some(namespace) => namespace.to_owned(),
            None => format!("#{}", nth + 1),
        };
        let key = |name: &str| format!("upstream[{label}].{name}");
        let place = |name: &str, value| sources.key(&key(name), value);

        let (site, rules) = (table.site(), table.rules());
        let namespace = place("namespace", table.namespace)
            .required(sources.at(&key("namespace")), NAMESPACE)?;
        let url = place("url", table.url).required(sources.at(&key("url")), URL)?;
        let is_default = place("default", table.is_default).given();
        let hosts = place("hosts", table.hosts).given();
        let fresh_for = place("fresh_for", table.fresh_for).duration_or(&defaults.fresh_for)?;
        let usable_for = place("usable_for", table.usable_for).duration_or(&defaults.usable_for)?;
        ordered(&fresh_for, &usable_for, true)?;
        let offline = place("offline", table.offline).given();
        let offline = offline.map_or(Ok(false), |it| it.bool())?;

        let is_default = self.read_default(is_default.as_ref())?;
        let hosts = self.read_hosts(hosts)?;
        let upstream = self.add(&namespace, &url, defaults)?;
        upstream.default = is_default;
        upstream.hosts = hosts;
        upstream.freshness.fresh_for = fresh_for.value;
        upstream.freshness.usable_for = usable_for.value;
        upstream.connection.offline = offline;
        let keys = Keys {
            sources,
            table: format!("upstream[{label}]"),
        };
        upstream.policy = policies::read(&keys, rules)?;
        upstream.verifier = policies::verifier(keys.place("verifier", table.verifier))?;
        sites::read(&keys, site, &mut upstream.connection.own)?;
        let access = (table.access, table.caller_grant_ttl);
        upstream.access = callers::read(place, access, &upstream.connection)?;
        for (nth, mirror) in table.mirror.into_iter().enumerate() {
            let table = format!("upstream[{label}].mirror[{}]", nth + 1);
            let mirror = sites::mirror(&Keys { sources, table }, mirror, defaults)?;
            upstream.connection.mirrors.push(mirror);
        }
        for rule in table.tags {
            let pattern = place("tags.match", rule.pattern)
                .required(sources.at(&key("tags.match")), PATTERN)?;
            let fresh_for = place("tags.fresh_for", rule.fresh_for).required(
                sources.at(&key("tags.fresh_for")),
                "a duration such as `1d`",
            )?;
            upstream.tags.push(TagRule {
                pattern: read_pattern(&pattern)?,
                fresh_for: fresh_for.freshness()?,
            });
        }
        Ok(())
    }

    fn read_default(&self, given: Option<&Given>) -> Result<bool, Error> {
        let Some(given) = given else {
            return Ok(false);
        };
        let is_default = given.bool()?;
        match self.upstreams.iter().find(|it| it.default) {
            Some(other) if is_default => {
                Err(given.taken(format!("{} is the default already", other.namespace)))
            }
            Some(_) | None => Ok(is_default),
        }
    }

    fn read_hosts(&self, given: Option<Given>) -> Result<Vec<String>, Error> {
        let mut hosts = Vec::new();
        let Some(given) = given else {
            return Ok(hosts);
        };
        for given in given.list(HOSTS)? {
            let host = given.str(HOST)?.to_ascii_lowercase();
            if !is_authority(&host) {
                return Err(given.wrong(HOST));
            }
            if let Some(other) = self.upstreams.iter().find(|it| it.hosts.contains(&host)) {
                return Err(given.taken(format!("{} has this host already", other.namespace)));
            }
            if hosts.contains(&host) {
                return Err(given.taken("listed twice"));
            }
            hosts.push(host);
        }
        Ok(hosts)
    }

    /// The list; unless one is marked as the default, the first is.
    fn finish(mut self) -> Vec<UpstreamConfig> {
        if !self.upstreams.iter().any(|it| it.default)
            && let Some(first) = self.upstreams.first_mut()
        {
            first.default = true;
        }
        self.upstreams
    }
}

fn read_pattern(given: &Given) -> Result<Regex, Error> {
    let pattern = given.str(PATTERN)?;
    Regex::new(pattern).map_err(|error| {
        // The parser draws the place under the pattern; its last line says what is wrong.
        let text = error.to_string();
        let last = text.lines().last().unwrap_or_default().trim();
        Error::Pattern {
            at: given.at.clone(),
            value: given.text(),
            reason: last.strip_prefix("error: ").unwrap_or(last).to_owned(),
        }
    })
}

/// What is mirrored when nothing is configured; the first serves requests that name no registry.
const BUILT_IN: [(&str, &str); 8] = [
    ("docker.io", "https://registry-1.docker.io"),
    ("ghcr.io", "https://ghcr.io"),
    ("quay.io", "https://quay.io"),
    ("registry.k8s.io", "https://registry.k8s.io"),
    ("gcr.io", "https://gcr.io"),
    ("mcr.microsoft.com", "https://mcr.microsoft.com"),
    ("public.ecr.aws", "https://public.ecr.aws"),
    ("registry.gitlab.com", "https://registry.gitlab.com"),
];

const PAIR: &str = "NAMESPACE=URL such as `ghcr.io=https://ghcr.io`";
const NAMESPACE: &str = "a namespace such as `ghcr.io` or `cache.example:5000`: a host in lower case with a dot or a port, or `localhost`";
const HOSTS: &str = "a list of hosts such as `[\"hub.cache.example\"]`";
const HOST: &str = "a host such as `hub.cache.example` or `hub.cache.example:5000`";
const PATTERN: &str = "a regular expression such as `^v\\d+$`";

#[cfg(test)]
mod tests {
    use http::Uri;

    use crate::config::load::tests::{load, refusal};

    #[test]
    fn a_wrong_upstream_is_named_by_its_namespace_or_number() {
        for row in REFUSALS.lines() {
            let (keys, message) = row.split_once(" => ").unwrap();
            let a = "namespace = 'a.example', url = 'https://a.example'";
            let refusal = refusal(&format!("upstream = [{{ {} }}]", keys.replace("A", a)));
            let start = format!("layerhold.toml: upstream[{message}");
            assert!(refusal.starts_with(&start), "{refusal}\n{start}");
        }
    }

    /// The keys of upstreams, where `A` is a right name and address, and how the message about them begins.
    const REFUSALS: &str = r#"url = 'x' => #1].namespace: missing: give a namespace such as `ghcr.io`
namespace = 'ghcr', url = 'https://x' => #1].namespace: "ghcr": not a namespace such as
namespace = 7, url = 'https://x' => #1].namespace: 7: not a namespace such as
namespace = 'a.b' => a.b].url: missing: give a registry's root
namespace = 'a.b', url = 'https://u:p@x.y' => a.b].url: "https://***@x.y": not a registry's root
A }, { A => a.example].namespace: "a.example": another upstream has this namespace
A, default = 1 => a.example].default: 1: not true or false
A, hosts = 'a' => a.example].hosts: "a": not a list of hosts
A, hosts = ['a/b'] => a.example].hosts: "a/b": not a host such as
A, hosts = ['x', 'X'] => a.example].hosts: "X": listed twice
A, fresh_for = '8d' => a.example].fresh_for: "8d": must be at most freshness.usable_for (7d)
A, usable_for = '8d', fresh_for = '9d' => a.example].fresh_for: "9d": must be at most upstream[a.example].usable_for ("8d")
A, tags = [{ match = 'a(', fresh_for = '1d' }] => a.example].tags.match: "a(": not a regular expression: unclosed group
A, tags = [{ match = 'a' }] => a.example].tags.fresh_for: missing: give a duration
A, tags = [{ fresh_for = '1d' }] => a.example].tags.match: missing: give a regular expression
A, tags = [{ match = 'a', fresh_for = '1y' }] => a.example].tags.fresh_for: "1y": not a duration
A, hosts = ['h'] }, { namespace = 'b.c', url = 'http://b', hosts = ['h'] => b.c].hosts: "h": a.example has this host already
A, default = true }, { namespace = 'b.c', url = 'http://b', default = true => b.c].default: true: a.example is the default already"#;

    #[test]
    fn a_url_is_a_root_and_nothing_else() {
        let with = |url: &str| format!("[[upstream]]\nnamespace = 'a.b'\nurl = \"{url}\"");
        for url in [
            "https://a",
            "http://a:5000/",
            "http://[::1]:5000",
            "https://192.0.2.1",
        ] {
            let config = load(&with(url)).unwrap();
            let expected: Uri = url.parse().unwrap();
            assert_eq!(config.proxy.upstreams[0].connection.own.url, expected);
        }
        for url in [
            "",
            "a",
            "a.b",
            "ftp://a",
            "https://",
            "https:///",
            "https://a/v2",
            "https://a?x",
            "https://a#x",
            "https://a:99999",
            "https://a:0",
            "https://u@a",
            "https://a b",
        ] {
            let refusal = refusal(&with(url));
            assert!(
                refusal.starts_with("layerhold.toml: upstream[a.b].url: \""),
                "{refusal}"
            );
        }
    }
}
