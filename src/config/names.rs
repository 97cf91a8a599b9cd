//! What the values that can be given outside the file are called, and which variables are none of ours.

use std::collections::BTreeMap;

use super::error::Error;

/// The three names of a value that can be given outside the file.
pub(super) struct Name {
    pub(super) flag: &'static str,
    pub(super) variable: &'static str,
    pub(super) key: &'static str,
}

/// Refuses a misspelt variable, which would otherwise be a setting that silently does nothing.
/// Those that the file names are ours, too.
pub(super) fn check_variables(
    environment: &BTreeMap<String, String>,
    named: &[&str],
) -> Result<(), Error> {
    let known = |name: &str| NAMES.iter().any(|it| it.variable == name) || named.contains(&name);
    let stray = environment
        .keys()
        .find(|name| name.starts_with("LAYERHOLD_") && !known(name) && !is_service_link(name));
    stray.map_or(Ok(()), |name| {
        Err(Error::UnknownVariable {
            name: name.clone(),
            expected: NAMES.map(|it| it.variable).join(", "),
        })
    })
}

/// Whether `name` is one of those that Kubernetes gives every pod for a service called `layerhold` or `layerhold-…`
/// (`LAYERHOLD_SERVICE_HOST`, `LAYERHOLD_PORT_5000_TCP_ADDR`, …; Docker's old container links look the same).
fn is_service_link(name: &str) -> bool {
    let (_, port) = name.rsplit_once("_PORT").unwrap_or((name, "_"));
    let numbered = name
        .split("_PORT_")
        .skip(1)
        .any(|it| it.starts_with(|c: char| c.is_ascii_digit()));
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || port.is_empty() || numbered
}

pub(super) const CONFIG: Name = Name {
    flag: "--config",
    variable: "LAYERHOLD_CONFIG",
    key: "",
};
pub(super) const LISTEN: Name = Name {
    flag: "--listen",
    variable: "LAYERHOLD_LISTEN",
    key: "listen",
};
pub(super) const ADMIN_LISTEN: Name = Name {
    flag: "--admin-listen",
    variable: "LAYERHOLD_ADMIN_LISTEN",
    key: "admin_listen",
};
pub(super) const CACHE_DIR: Name = Name {
    flag: "--cache-dir",
    variable: "LAYERHOLD_CACHE_DIR",
    key: "cache.dir",
};
pub(super) const CACHE_SIZE: Name = Name {
    flag: "--cache-size",
    variable: "LAYERHOLD_CACHE_SIZE",
    key: "cache.size",
};
pub(super) const LOG_FORMAT: Name = Name {
    flag: "--log-format",
    variable: "LAYERHOLD_LOG_FORMAT",
    key: "log_format",
};
pub(super) const LOG_LEVEL: Name = Name {
    flag: "--log-level",
    variable: "LAYERHOLD_LOG_LEVEL",
    key: "log_level",
};
pub(super) const SANDBOX: Name = Name {
    flag: "--sandbox",
    variable: "LAYERHOLD_SANDBOX",
    key: "sandbox",
};
pub(super) const UPSTREAM: Name = Name {
    flag: "--upstream",
    variable: "LAYERHOLD_UPSTREAM",
    key: "upstream",
};
/// All of them.
pub(super) const NAMES: [Name; 9] = [
    CONFIG,
    LISTEN,
    ADMIN_LISTEN,
    CACHE_DIR,
    CACHE_SIZE,
    UPSTREAM,
    LOG_FORMAT,
    LOG_LEVEL,
    SANDBOX,
];

#[cfg(test)]
mod tests {
    use super::*;

    fn is_let_pass(name: &str) -> bool {
        let environment = [(name.to_owned(), "x".to_owned())];
        check_variables(&environment.into_iter().collect(), &[]).is_ok()
    }

    #[test]
    fn variables_that_kubernetes_sets_for_a_service_are_none_of_ours() {
        for name in [
            "LAYERHOLD_SERVICE_HOST",
            "LAYERHOLD_SERVICE_PORT",
            "LAYERHOLD_SERVICE_PORT_REGISTRY",
            "LAYERHOLD_PORT",
            "LAYERHOLD_PORT_5000_TCP",
            "LAYERHOLD_PORT_5000_TCP_ADDR",
            "LAYERHOLD_ADMIN_PORT_9555_TCP_PROTO",
            "LAYERHOLD_ADMIN_SERVICE_HOST",
            "PATH",
        ] {
            assert!(is_let_pass(name), "{name}");
        }
        for name in [
            "LAYERHOLD_",
            "LAYERHOLD_PORTS",
            "LAYERHOLD_PORT_X",
            "LAYERHOLD_HOST",
        ] {
            assert!(!is_let_pass(name), "{name}");
        }
    }
}
