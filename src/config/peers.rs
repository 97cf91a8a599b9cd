//! Whom to believe about who is asking.

use toml::Value;

use crate::net::Networks;

use super::error::Error;
use super::given::Sources;
use super::networks::read_networks;

/// The networks of the proxies in front of us, none unless somebody gives some; and whether they send PROXY headers.
pub(super) fn read(
    sources: &Sources<'_>,
    trusted_proxies: Option<Value>,
    proxy_protocol: Option<Value>,
) -> Result<(Networks, bool), Error> {
    let trusted = sources.key("trusted_proxies", trusted_proxies).given();
    let trusted = trusted.map_or_else(|| Ok(Networks::default()), read_networks)?;
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
