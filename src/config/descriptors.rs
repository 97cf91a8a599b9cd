//! How many connections the limit of open files is enough for.

use super::effective::Config;
use crate::cache;
use crate::upstream::SiteConfig;

impl Config {
    /// The connections from clients that are taken at once, in a process that may have so many files open: as many as are
    /// configured, or as leave enough descriptors for what they ask for (files that are read, files that come in,
    /// connections to upstreams). So it is connections that wait when descriptors are few, and not pulls that fail. A
    /// limit that is low altogether is shared half and half.
    pub fn connections_within(&self, open_files: u64) -> usize {
        let besides = self.descriptors_besides().min(open_files / 2);
        let left = usize::try_from(open_files - besides).unwrap_or(usize::MAX);
        self.server.connections_max.min(left).max(1)
    }

    /// What may be open besides connections from clients.
    fn descriptors_besides(&self) -> u64 {
        let sites = self.proxy.upstreams.iter().flat_map(|it| {
            let mirrors = it.connection.mirrors.iter().map(|it| &it.site);
            mirrors.chain([&it.connection.own])
        });
        // A request may be under way at the host that another one was redirected to.
        let of_site = |it: &SiteConfig| (it.requests_max as u64).saturating_mul(2);
        let to_sites = sites.map(of_site).fold(0, u64::saturating_add);
        let files = (cache::OPEN_FILES_MAX + self.cache.fills_max) as u64;
        OWN_DESCRIPTORS + files.saturating_add(to_sites)
    }
}

/// Listeners, the admin port's connections, the lock, the runtime's own, and files that are checked or written meanwhile.
const OWN_DESCRIPTORS: u64 = 192;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::Parser;

    use super::*;
    use crate::cli::{Args, Command};

    fn defaults() -> Config {
        let line = ["layerhold", "serve", "--cache-dir", "/nowhere"];
        let Command::Serve(options) = Args::try_parse_from(line).unwrap().command else {
            panic!("serve is not serve");
        };
        Config::load(&options, &BTreeMap::new()).unwrap()
    }

    #[test]
    fn connections_get_what_pulls_do_not_need() {
        let config = defaults();
        let besides = config.descriptors_besides();
        assert!((1000..2500).contains(&besides), "{besides}");
        let left = |open_files: u64| usize::try_from(open_files - besides).unwrap();
        let table = [
            // What deploy/layerhold.service sets, and what containers often have.
            (65_536, 16_384),
            (1 << 20, 16_384),
            (u64::MAX, 16_384),
            (20_000, 16_384),
            (16_384, left(16_384)),
            (4 * besides, left(4 * besides)),
            (1024, 512),
            (64, 32),
            (0, 1),
        ];
        for (open_files, connections) in table {
            assert_eq!(
                config.connections_within(open_files),
                connections,
                "{open_files}"
            );
        }
    }
}
