//! `[access]`: who may pull what, and from whom the admin port takes orders.

use std::fmt::{self, Write};
use std::path::PathBuf;

use toml::Value;

use crate::net::{Network, Networks, is_identity};
use crate::oci::{Namespace, RepositoryPattern};
use crate::proxy::{self, UpstreamConfig};
use crate::server::{AccessConfig, Action, Rule, Who};

use super::addresses::read_url;
use super::error::Error;
use super::file;
use super::given::{Given, Sources};
use super::networks::read_networks;

/// Reads the table. Rules may name the upstreams that there are; clients may show `certificates` where they are asked for them.
pub(super) fn read(
    sources: &Sources<'_>,
    table: file::Access,
    upstreams: &[UpstreamConfig],
    certificates: bool,
) -> Result<AccessConfig, Error> {
    let given = |name: &str, value| sources.key(&format!("access.{name}"), value).given();
    let file = |name: &str, value: Option<Value>| {
        let file = given(name, value).map(|it| it.str(FILE).map(PathBuf::from));
        file.transpose()
    };
    let external_url = given("external_url", table.external_url);
    let external_url = external_url.map(|given| {
        let wrong = given.wrong(EXTERNAL_URL);
        let url = read_url(&given).map_err(|_| wrong)?.to_string();
        Ok(url.trim_end_matches('/').to_owned())
    });
    let networks = given("admin_networks", table.admin_networks);
    let identities = given("admin_identities", table.admin_identities);
    let identities = identities.map_or(Ok(Vec::new()), |given| {
        let read = |it: Given| match who(&it)? {
            Who::Anonymous => Err(it.wrong(IDENTITY)),
            who @ (Who::Authenticated | Who::Named(_)) => Ok(who),
        };
        list(given, IDENTITIES, read)
    })?;
    let rules = table.rule.into_iter().zip(1..);
    let rules = rules.map(|(rule, number)| read_rule(sources, number, rule, upstreams));
    if let Some(callers) = upstreams
        .iter()
        .find(|it| it.access != proxy::Access::Shared)
    {
        let files = [
            ("htpasswd_file", &table.htpasswd_file),
            ("tokens_file", &table.tokens_file),
        ];
        let mut files = files.into_iter();
        if let Some(file) = files.find_map(|(name, value)| given(name, value.clone())) {
            let namespace = &callers.namespace;
            let both =
                format!("{namespace} has access = \"caller\", and one password cannot be for both");
            return Err(file.taken(both));
        }
    }
    Ok(AccessConfig {
        htpasswd_file: file("htpasswd_file", table.htpasswd_file)?,
        tokens_file: file("tokens_file", table.tokens_file)?,
        certificates,
        external_url: external_url.transpose()?,
        rules: rules.collect::<Result<_, _>>()?,
        admin_networks: networks.map_or_else(|| Ok(loopback()), read_networks)?,
        admin_identities: identities,
    })
}

fn read_rule(
    sources: &Sources<'_>,
    number: usize,
    rule: file::AccessRule,
    upstreams: &[UpstreamConfig],
) -> Result<Rule, Error> {
    let key = |name: &str| format!("access.rule[{number}].{name}");
    let place = |name: &str, value| sources.key(&key(name), value);
    // A list without anything in it could mean everything or nothing.
    let some = |name: &str, value, wanted| {
        let given: Option<Given> = place(name, value).given();
        match given {
            Some(given) if given.value.as_array().is_some_and(Vec::is_empty) => {
                Err(given.wrong(wanted))
            }
            given => Ok(given),
        }
    };
    let action = place("action", rule.action).required(sources.at(&key("action")), ACTION)?;
    let action = match action.str(ACTION)? {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        _ => return Err(action.wrong(ACTION)),
    };
    let identities = some("identities", rule.identities, IDENTITIES)?;
    let networks = some("networks", rule.networks, NETWORKS)?;
    let named = some("upstreams", rule.upstreams, UPSTREAMS)?;
    let repositories = some("repositories", rule.repositories, REPOSITORIES)?;
    let upstream = |given: Given| {
        let namespace =
            Namespace::parse(given.str(UPSTREAM)?).map_err(|_| given.wrong(UPSTREAM))?;
        let is_there = upstreams.iter().any(|it| it.namespace == namespace);
        is_there
            .then_some(namespace)
            .ok_or_else(|| given.wrong(UPSTREAM))
    };
    let pattern = |given: Given| {
        let pattern = RepositoryPattern::parse(given.str(PATTERN)?);
        pattern.map_err(|_| given.wrong(PATTERN))
    };
    Ok(Rule {
        action,
        identities: identities.map_or(Ok(Vec::new()), |it| list(it, IDENTITIES, |it| who(&it)))?,
        networks: networks.map_or_else(|| Ok(Networks::default()), read_networks)?,
        upstreams: named.map_or(Ok(Vec::new()), |it| list(it, UPSTREAMS, upstream))?,
        repositories: repositories.map_or(Ok(Vec::new()), |it| list(it, REPOSITORIES, pattern))?,
    })
}

/// The elements of a list, none of them twice.
fn list<T: PartialEq>(
    given: Given,
    wanted: &'static str,
    read: impl Fn(Given) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    for given in given.list(wanted)? {
        let value = read(given.clone())?;
        if values.contains(&value) {
            return Err(given.taken("listed twice"));
        }
        values.push(value);
    }
    Ok(values)
}

fn who(given: &Given) -> Result<Who, Error> {
    let name = given.str(IDENTITY)?;
    let is_name = is_identity(name).then(|| Who::parse(name));
    is_name.ok_or_else(|| given.wrong(IDENTITY))
}

/// Whoever is on the same machine.
fn loopback() -> Networks {
    let networks = ["127.0.0.0/8", "::1"].map(Network::parse);
    networks.into_iter().flatten().collect()
}

/// Writes the table, as it reads back to the same.
pub(super) fn write(out: &mut String, access: &AccessConfig) -> fmt::Result {
    let AccessConfig {
        htpasswd_file,
        tokens_file,
        certificates: _,
        external_url,
        rules,
        admin_networks,
        admin_identities,
    } = access;
    writeln!(out, "\n[access]")?;
    for (key, file) in [
        ("htpasswd_file", htpasswd_file),
        ("tokens_file", tokens_file),
    ] {
        if let Some(file) = file {
            writeln!(out, "{key} = {}", quoted(file.display()))?;
        }
    }
    if let Some(url) = external_url {
        writeln!(out, "external_url = {}", quoted(url))?;
    }
    writeln!(out, "admin_networks = {}", all(admin_networks.iter()))?;
    writeln!(out, "admin_identities = {}", all(admin_identities))?;
    rules.iter().try_for_each(|it| write_rule(out, it))
}

fn write_rule(out: &mut String, rule: &Rule) -> fmt::Result {
    let Rule {
        action,
        identities,
        networks,
        upstreams,
        repositories,
    } = rule;
    let action = match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    writeln!(out, "\n[[access.rule]]\naction = \"{action}\"")?;
    for (key, is_empty, list) in [
        ("identities", identities.is_empty(), all(identities)),
        ("networks", networks.is_empty(), all(networks.iter())),
        ("upstreams", upstreams.is_empty(), all(upstreams)),
        ("repositories", repositories.is_empty(), all(repositories)),
    ] {
        if !is_empty {
            writeln!(out, "{key} = {list}")?;
        }
    }
    Ok(())
}

fn all<T: fmt::Display>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(quoted).collect();
    format!("[{}]", values.join(", "))
}

fn quoted(text: impl fmt::Display) -> String {
    Value::String(text.to_string()).to_string()
}

const FILE: &str = "a file such as `/etc/layerhold/htpasswd`";
const EXTERNAL_URL: &str = "what clients call the proxy, such as `https://cache.example`: http or https, a host, perhaps a port, and nothing else";
const ACTION: &str = "`allow` or `deny`";
const IDENTITIES: &str = "a list of at least one name, such as `[\"ann\", \"ci\"]`; `anonymous` and `authenticated` are those without and with any";
const IDENTITY: &str = "a name such as `ann`, or `authenticated` for any";
const NETWORKS: &str = "a list of at least one network or address, such as `[\"10.0.0.0/8\"]`";
const UPSTREAMS: &str = "a list of at least one upstream, such as `[\"ghcr.io\"]`";
const UPSTREAM: &str = "the namespace of a configured upstream";
const REPOSITORIES: &str = "a list of at least one pattern, such as `[\"team/**\"]`";
const PATTERN: &str = "a repository's name such as `library/debian`, in which `*` stands for any characters but `/`, and `**` for any";

#[cfg(test)]
mod tests {
    use crate::config::load::tests::{load, refusal};

    const WHOLE: &str = "[access]\nhtpasswd_file = '/h'\ntokens_file = '/t \"1\"'\nexternal_url = 'https://C.example:8443/'\n\
        admin_networks = ['10.0.0.0/8']\nadmin_identities = ['ops', 'authenticated']\n\
        [[access.rule]]\naction = 'allow'\nidentities = ['ann', 'anonymous']\nnetworks = ['::1', '10.1.0.0/16']\n\
        upstreams = ['ghcr.io', 'QUAY.io']\nrepositories = ['team/**', 'library/*']\n[[access.rule]]\naction = 'deny'\n";

    #[test]
    fn access_is_read_as_it_is_meant() {
        let config = load(WHOLE).unwrap().access;
        assert_eq!(config.rules.len(), 2);
        assert_eq!(config.rules[0].upstreams[1].as_str(), "quay.io");
        assert!(config.authenticates());
        let report = load(WHOLE).unwrap().report();
        let read = load(&report).unwrap();
        assert_eq!(read.access, config, "{report}");
        assert_eq!(read.report(), report);
        assert!(report.contains("tokens_file = '/t \"1\"'"), "{report}");
        assert!(
            report.contains("external_url = \"https://C.example:8443\"")
                || report.contains("external_url = \"https://c.example:8443\""),
            "{report}"
        );
    }

    #[test]
    fn by_default_everybody_may_pull_and_the_machine_itself_may_order() {
        let config = load("").unwrap().access;
        assert!(!config.authenticates() && config.rules.is_empty());
        for (address, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.1", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(config.admin_networks.contains(address), expected);
        }
    }

    #[test]
    fn a_wrong_rule_is_named() {
        for (text, message) in [
            (
                "[access]\nhtpasswd_file = 1",
                "access.htpasswd_file: 1: not a file",
            ),
            (
                "[access]\nexternal_url = 'https://a.b/c'",
                "access.external_url: \"https://a.b/c\": not what clients call",
            ),
            (
                "[access]\nexternal_url = 'a.b'",
                "access.external_url: \"a.b\": not what clients call",
            ),
            (
                "[access]\nadmin_networks = ['x']",
                "access.admin_networks: \"x\": not an address",
            ),
            (
                "[access]\nadmin_identities = ['anonymous']",
                "access.admin_identities: \"anonymous\": not a name",
            ),
            (
                "[[access.rule]]\nidentities = ['a']",
                "access.rule[1].action: missing: give `allow` or `deny`",
            ),
            (
                "[[access.rule]]\naction = 'permit'",
                "access.rule[1].action: \"permit\": not `allow`",
            ),
            (
                "[[access.rule]]\naction = 'deny'\nidentities = []",
                "access.rule[1].identities: []: not a list of at least one",
            ),
            (
                "[[access.rule]]\naction = 'deny'\nidentities = ['a', 'a']",
                "access.rule[1].identities: \"a\": listed twice",
            ),
            (
                "[[access.rule]]\naction = 'deny'\nidentities = [\"a\\nb\"]",
                "access.rule[1].identities: ",
            ),
            (
                "[[access.rule]]\naction = 'deny'\nnetworks = []",
                "access.rule[1].networks: []: not a list of at least one",
            ),
            (
                "[[access.rule]]\naction = 'deny'\nupstreams = []",
                "access.rule[1].upstreams: []: not a list of at least one",
            ),
            (
                "[[access.rule]]\naction = 'deny'\n[[access.rule]]\naction = 'deny'\nupstreams = ['a.b']",
                "access.rule[2].upstreams: \"a.b\": not the namespace of a configured",
            ),
            (
                "[[access.rule]]\naction = 'deny'\nrepositories = ['A']",
                "access.rule[1].repositories: \"A\": not a repository's name",
            ),
            (
                "[[access.rule]]\naction = 'deny'\nrepositories = 'a'",
                "access.rule[1].repositories: \"a\": not a list",
            ),
        ] {
            let refusal = refusal(text);
            assert!(
                refusal.starts_with(&format!("layerhold.toml: {message}")),
                "{refusal}"
            );
        }
    }
}
