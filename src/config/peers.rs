//! Whom to believe about who is asking.

use toml::Value;

use crate::net::{Network, Networks};

use super::error::Error;
use super::given::Sources;

/// The networks of the proxies in front of us, none unless somebody gives some; and whether they send PROXY headers.
pub(super) fn read(
    sources: &Sources<'_>,
    trusted_proxies: Option<Value>,
    proxy_protocol: Option<Value>,
) -> Result<(Networks, bool), Error> {
    let trusted = read_trusted_proxies(sources, trusted_proxies)?;
    let proxy_protocol = sources.key("proxy_protocol", proxy_protocol).given();
    let proxy_protocol = proxy_protocol.map_or(Ok(false), |given| given.bool())?;
    // It would be read from nobody, and the clients' addresses lost unnoticed.
    if proxy_protocol && trusted.is_empty() {
        return Err(Error::Missing {
            at: sources.at("trusted_proxies"),
            wanted: "the networks of the balancers that send PROXY headers, which proxy_protocol = true reads from nobody else",
        });
    }
    Ok((trusted, proxy_protocol))
}

fn read_trusted_proxies(sources: &Sources<'_>, value: Option<Value>) -> Result<Networks, Error> {
    let mut networks: Vec<Network> = Vec::new();
    let given = sources.key("trusted_proxies", value).given();
    // An empty list is the default written down.
    let given = given.filter(|it| it.value.as_array().is_none_or(|list| !list.is_empty()));
    let Some(given) = given else {
        return Ok(Networks::default());
    };
    for given in given.list(NETWORKS)? {
        let network = Network::parse(given.str(NETWORK)?).map_err(|_| given.wrong(NETWORK))?;
        if networks.contains(&network) {
            return Err(given.taken("listed twice"));
        }
        networks.push(network);
    }
    Ok(networks.into_iter().collect())
}

const NETWORKS: &str = "a list of networks and addresses such as `[\"10.0.0.0/8\", \"fd00::1\"]`";
const NETWORK: &str = "an address such as `192.0.2.7`, or a network such as `10.0.0.0/8`, whose address has no bits after the prefix";

#[cfg(test)]
mod tests {
    use crate::config::load::tests::{load, refusal};

    #[test]
    fn networks_are_read_as_they_are_meant() {
        for (text, expected) in [
            ("", "[]"),
            ("trusted_proxies = []", "[]"),
            (
                "trusted_proxies = ['192.0.2.7/32', 'FD00::/8']",
                "[\"192.0.2.7\", \"fd00::/8\"]",
            ),
            (
                "trusted_proxies = ['::ffff:10.0.0.0/104']",
                "[\"10.0.0.0/8\"]",
            ),
        ] {
            let report = load(text).unwrap().report();
            let line = format!("trusted_proxies = {expected}");
            assert!(report.lines().any(|it| it == line), "{text}: {report}");
            assert_eq!(load(&report).unwrap().report(), report);
        }
    }

    #[test]
    fn proxy_headers_are_read_from_somebody_or_not_at_all() {
        let text = "trusted_proxies = ['10.0.0.0/8']\nproxy_protocol = true";
        let report = load(text).unwrap().report();
        assert!(load(&report).unwrap().server.proxy_protocol);
        assert!(
            !load("proxy_protocol = false")
                .unwrap()
                .server
                .proxy_protocol
        );
        for text in [
            "proxy_protocol = true",
            "proxy_protocol = true\ntrusted_proxies = []",
        ] {
            let start =
                "layerhold.toml: trusted_proxies: missing: give the networks of the balancers";
            let refusal = refusal(text);
            assert!(refusal.starts_with(start), "{refusal}");
        }
        assert_eq!(
            refusal("proxy_protocol = 'v2'"),
            "layerhold.toml: proxy_protocol: \"v2\": not true or false"
        );
    }

    #[test]
    fn a_wrong_network_is_refused_with_what_would_be_right() {
        for (text, message) in [
            (
                "trusted_proxies = '10.0.0.0/8'",
                "\"10.0.0.0/8\": not a list of networks and addresses such as",
            ),
            ("trusted_proxies = [8]", "8: not an address such as"),
            ("trusted_proxies = ['']", "\"\": not an address such as"),
            (
                "trusted_proxies = ['lb.example']",
                "\"lb.example\": not an address such as",
            ),
            (
                "trusted_proxies = ['10.1.2.3/8']",
                "\"10.1.2.3/8\": not an address such as",
            ),
            (
                "trusted_proxies = ['10.0.0.0/8', '10.0.0.0/33']",
                "\"10.0.0.0/33\": not an address such as",
            ),
            (
                "trusted_proxies = ['::1', '::1/128']",
                "\"::1/128\": listed twice",
            ),
        ] {
            let refusal = refusal(text);
            let start = format!("layerhold.toml: trusted_proxies: {message}");
            assert!(refusal.starts_with(&start), "{refusal}");
        }
    }
}
