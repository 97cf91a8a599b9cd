//! The clients of all upstreams, and which of them go on as they are.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::client::Upstream;
use super::config::Config;
use super::metrics::Metrics;
use super::tls::Tls;
use super::transport::TransportError;

/// Makes the clients of upstreams, and gives a client that is in use once more where nothing of it has changed: with its
/// connections, its tokens and what it knows of who does not answer.
#[derive(Debug)]
pub struct Clients {
    metrics: Metrics,
    /// By name.
    known: Mutex<HashMap<String, Known>>,
}

/// A client, and what it was made of.
#[derive(Debug)]
struct Known {
    config: Config,
    /// What was in the files of its places, or what was there a moment before.
    tls: Vec<Tls>,
    upstream: Weak<Upstream>,
}

impl Clients {
    /// Without any yet.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            known: Mutex::default(),
        }
    }

    /// The client for the registry that clients call `name`. Reads the files that its configuration names, and blocks for
    /// that; nothing is dialled.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn client(&self, name: &str, config: &Config) -> Result<Arc<Upstream>, TransportError> {
        let places = config.mirrors.iter().map(|it| &it.site);
        let places = std::iter::once(&config.own).chain(places);
        let tls: Vec<Tls> = places
            .map(|it| Tls::load(&it.tls))
            .collect::<Result<_, _>>()?;
        let mut known = self.known.lock();
        known.retain(|_, it| it.upstream.strong_count() > 0);
        let same = known.get(name).filter(|it| it.is_of(config, &tls));
        if let Some(upstream) = same.and_then(|it| it.upstream.upgrade()) {
            return Ok(upstream);
        }
        let upstream = Arc::new(Upstream::new(name, config.clone(), &self.metrics)?);
        known.insert(
            name.to_owned(),
            Known {
                config: config.clone(),
                tls,
                upstream: Arc::downgrade(&upstream),
            },
        );
        Ok(upstream)
    }
}

impl Known {
    fn is_of(&self, config: &Config, tls: &[Tls]) -> bool {
        let pairs = self.tls.iter().zip(tls);
        self.config == *config && pairs.into_iter().all(|(had, has)| had.is_same(has))
    }
}
