//! Which upstream a request means, and what it asks for there. A path becomes an [`Endpoint`] here and nowhere else.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::answer::Asked;
use super::error::{Error, RequestFault};
use super::registry::Registry;
use crate::cache::Repository;
use crate::oci::{Endpoint, EndpointPath, InvalidEndpoint, Namespace, RepositoryName};

/// The closed list of upstreams, by every name that clients have for them.
#[derive(Debug)]
pub(super) struct Routes {
    default: Arc<Registry>,
    by_namespace: HashMap<String, Arc<Registry>>,
    by_host: HashMap<String, Arc<Registry>>,
    /// Asked at each request.
    has_callers: bool,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub struct Route {
    /// The upstream that is meant.
    pub registry: Arc<Registry>,
    /// What is asked for there, by the name that it has there.
    pub endpoint: Endpoint,
    /// The `ns` that decided, as it was received.
    pub namespace: Option<String>,
    /// The request in the client's own words.
    pub asked: Asked,
}

/// What of a request decides where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Requested<'a> {
    /// The path, undecoded.
    pub path: &'a str,
    /// The query, undecoded.
    pub query: Option<&'a str>,
    /// The `Host` field.
    pub host: Option<&'a str>,
}

impl Routes {
    /// `None` when no registry is marked as the default.
    pub(super) fn new(registries: &[Arc<Registry>]) -> Option<Self> {
        let default = registries.iter().find(|it| it.config().default)?;
        let mut by_namespace = HashMap::new();
        let mut by_host = HashMap::new();
        for registry in registries {
            by_namespace.insert(
                registry.namespace().as_str().to_owned(),
                Arc::clone(registry),
            );
            for host in &registry.config().hosts {
                by_host.insert(host.to_ascii_lowercase(), Arc::clone(registry));
            }
        }
        Some(Self {
            default: Arc::clone(default),
            by_namespace,
            by_host,
            has_callers: registries.iter().any(|it| it.is_callers()),
        })
    }

    /// Whether any of them decides by its callers' rights.
    pub(super) fn has_callers(&self) -> bool {
        self.has_callers
    }

    /// All of them.
    pub(super) fn registries(&self) -> Vec<Arc<Registry>> {
        self.by_namespace.values().map(Arc::clone).collect()
    }

    /// First match: `ns`, `Host`, the first path segment, the default.
    pub(super) fn route(&self, requested: Requested<'_>) -> Result<Route, Error> {
        let invalid = |error: InvalidEndpoint| Error::Request(Arc::new(error).into());
        let path = EndpointPath::split(requested.path).map_err(invalid)?;
        let namespace = namespace_in(requested.query)?;
        let asked = Asked {
            name: path.name().to_owned(),
            path: requested.path.to_owned(),
            query: requested.query.map(str::to_owned),
        };
        let (registry, path) = if let Some(text) = &namespace {
            (self.named(text)?, path)
        } else if let Some(registry) = requested.host.and_then(|host| self.hosted(host)) {
            (registry, path)
        } else if let Some(registry) = path
            .first_segment()
            .and_then(|it| self.by_namespace.get(it))
        {
            (registry, path.without_first_segment())
        } else {
            (&self.default, path)
        };
        let endpoint = path.endpoint().map_err(invalid)?;
        let endpoint = if registry.has_library() {
            in_library(endpoint)
        } else {
            endpoint
        };
        Ok(Route {
            registry: Arc::clone(registry),
            endpoint,
            namespace: namespace.map(Cow::into_owned),
            asked,
        })
    }

    /// The name that a repository has at its registry, whoever calls it what. The registry need not be configured any more:
    /// what was stored from it is still here.
    pub(super) fn repository(&self, namespace: Namespace, name: RepositoryName) -> Repository {
        let registry = self.by_namespace.get(namespace.as_str());
        let has_library = registry.map_or(namespace.as_str() == "docker.io", |it| it.has_library());
        let name = if has_library { name.in_library() } else { name };
        Repository { namespace, name }
    }

    fn named(&self, text: &str) -> Result<&Arc<Registry>, Error> {
        let unknown = || Error::Route {
            namespace: text.chars().take(NAMESPACE_SHOWN_MAX).collect(),
        };
        let namespace = Namespace::parse(text).map_err(|_| unknown())?;
        self.by_namespace
            .get(namespace.as_str())
            .ok_or_else(unknown)
    }

    /// A `Host` with the port that a list entry names, or without any.
    fn hosted(&self, host: &str) -> Option<&Arc<Registry>> {
        if self.by_host.is_empty() {
            return None;
        }
        let host = host.to_ascii_lowercase();
        let bare = host
            .rsplit_once(':')
            .map_or(host.as_str(), |(bare, _)| bare);
        self.by_host.get(&host).or_else(|| self.by_host.get(bare))
    }
}

/// How much of an unknown namespace a log line shows.
const NAMESPACE_SHOWN_MAX: usize = 64;

/// The `ns` parameter (distribution-spec, "Registry Proxying").
fn namespace_in(query: Option<&str>) -> Result<Option<Cow<'_, str>>, Error> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let mut found = pairs.filter(|(key, _)| key == "ns").map(|(_, value)| value);
    let first = found.next();
    if found.next().is_some() {
        return Err(Error::Request(RequestFault::NamespaceTwice));
    }
    Ok(first)
}

fn in_library(endpoint: Endpoint) -> Endpoint {
    let library = |name: RepositoryName| name.in_library();
    match endpoint {
        Endpoint::Ping => Endpoint::Ping,
        Endpoint::Manifest { name, reference } => Endpoint::Manifest {
            name: library(name),
            reference,
        },
        Endpoint::Blob { name, digest } => Endpoint::Blob {
            name: library(name),
            digest,
        },
        Endpoint::Tags { name } => Endpoint::Tags {
            name: library(name),
        },
        Endpoint::Referrers { name, digest } => Endpoint::Referrers {
            name: library(name),
            digest,
        },
    }
}
