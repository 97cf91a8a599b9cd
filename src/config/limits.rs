//! What clients may have of us at most.

use crate::net::Rate;

use super::error::Error;
use super::file;
use super::given::Sources;

/// The limits of clients.
pub(super) struct ClientLimits {
    pub(super) connections: usize,
    /// `None` where it follows from the number of all connections.
    pub(super) connections_per_source: Option<usize>,
    pub(super) requests_per_source: Option<Rate>,
    pub(super) requests_per_identity: Option<Rate>,
}

impl ClientLimits {
    pub(super) fn read(sources: &Sources<'_>, table: &file::Limits) -> Result<Self, Error> {
        let rate = |name: &str, value: &Option<toml::Value>| {
            let given = sources.key(name, value.clone()).given();
            let rate = given.map(|given| {
                let wanted = "a rate such as `100/s`, `600/min` or `5000/h`";
                let rate = Rate::parse(given.str(wanted)?);
                rate.map_err(|_| given.wrong(wanted))
            });
            rate.transpose()
        };
        let connections = sources.key("limits.connections", table.connections.clone());
        let per_source = table.connections_per_source.clone();
        let per_source = per_source.map(|value| {
            let place = sources.key("limits.connections_per_source", Some(value));
            place.count(1)
        });
        Ok(Self {
            connections: connections.count(16_384)?,
            connections_per_source: per_source.transpose()?,
            requests_per_source: rate("limits.requests_per_source", &table.requests_per_source)?,
            requests_per_identity: rate(
                "limits.requests_per_identity",
                &table.requests_per_identity,
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::load::tests::{load, refusal};

    #[test]
    fn limits_of_a_source_are_read_as_they_are_reported() {
        let report = load("").unwrap().report();
        assert!(
            report.contains("\n# connections_per_source: 8192\n"),
            "{report}"
        );
        assert!(!report.contains("requests_per_source ="), "{report}");
        let text = "limits.connections_per_source = 7\nlimits.requests_per_source = '600/min'\n\
                    limits.requests_per_identity = '50/s'";
        let report = load(text).unwrap().report();
        assert!(
            report.contains("\nconnections_per_source = 7\n"),
            "{report}"
        );
        assert!(
            report.contains("\nrequests_per_source = \"600/min\"\n"),
            "{report}"
        );
        let line = "\nrequests_per_identity = \"50/s\"\n";
        assert!(report.contains(line), "{report}");
        assert_eq!(load(&report).unwrap().report(), report);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for (text, message) in [
            (
                "limits.requests_per_source = 100",
                "limits.requests_per_source: 100: not a rate such as `100/s`, `600/min` or `5000/h`",
            ),
            (
                "limits.requests_per_source = '0/s'",
                "limits.requests_per_source: \"0/s\": not a rate such as `100/s`, `600/min` or `5000/h`",
            ),
            (
                "limits.connections_per_source = 0",
                "limits.connections_per_source: 0: must be 1 to 100000000",
            ),
        ] {
            assert_eq!(refusal(text), format!("layerhold.toml: {message}"));
        }
    }

    #[test]
    fn a_source_may_have_half_of_all_connections_and_all_of_few() {
        for (connections, expected) in [(1, 1), (1000, 1000), (1500, 1024), (16_384, 8192)] {
            let config = load(&format!("limits.connections = {connections}")).unwrap();
            assert_eq!(config.server.connections_per_source(), expected);
        }
        let text = "limits.connections = 9\nlimits.connections_per_source = 100";
        assert_eq!(load(text).unwrap().server.connections_per_source(), 100);
    }
}
