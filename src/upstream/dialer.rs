//! Which addresses are dialled, and on whose word.
//!
//! The check of an address is made on the very addresses that are then connected to: a name that means something else a
//! moment later gains nothing.
//!
//! A name's addresses are tried one after the other, each with its share of the connect timeout, and those of the other IP
//! version from 300 ms on at the same time (hyper-util, after RFC 8305 §5); the first that answers is taken.
//!
//! Where a request leaves through a proxy, the proxy looks the name up and dials. An address that is written out is then
//! still checked before the proxy is asked, and so are the names that mean the same everywhere; any other name is taken on
//! trust. The proxy itself is the operator's word.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{io, vec};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::time::timeout;
use tower_service::Service;

use super::address::{self, AddressClass};
use super::config::{AddressBook, SiteConfig};
use super::egress::{Hop, Proxies, ProxyError, Stream};
use super::party;
use crate::net::Networks;

/// On whose word an address is dialled, and what is known of where the upstream itself is.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    word: Word,
    site: Arc<Site>,
}

/// On whose word an address is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The operator's, who configured the upstream: any address will do, and tells where the upstream is.
    Operators,
    /// The operator's, who listed somebody else: any address will do, and tells nothing of the upstream.
    Listed,
    /// The upstream's, which named somebody: only some addresses will do.
    Upstreams,
}

/// What the rules of one upstream have in common.
#[derive(Debug)]
struct Site {
    whereabouts: Mutex<Whereabouts>,
    /// Where a redirect may lead, too.
    networks: Networks,
    addresses: AddressBook,
    /// How often a name of the book was looked up.
    looks: Mutex<HashMap<String, usize>>,
}

/// Where an upstream is, by all the addresses that its name ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    /// Nobody has looked yet, or a proxy looks in our place.
    Unknown,
    /// Always in places of this kind.
    At(AddressClass),
    /// Here and there. Its name may be in the hands of the very party that names others: one answer of its name server
    /// must not open a private network to what it says in the next.
    Mixed,
}

/// Makes TCP connections by a rule.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    tcp: HttpConnector<Resolver>,
    rule: Rule,
    proxies: Arc<Proxies>,
    /// Reaches the proxies.
    proxy_tcp: HttpConnector<Resolver>,
    connect_timeout: Duration,
}

/// Looks names up by a rule; what it gives is what is dialled.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    rule: Rule,
}

/// An address that must not be dialled.
#[derive(Debug, thiserror::Error)]
#[error(
    "the upstream named an address that it may not lead to ({0:?}), and redirect_networks does not list"
)]
struct Forbidden(AddressClass);

impl Rule {
    /// The rules of one upstream, by whose word they are.
    pub(super) fn all(config: &SiteConfig) -> impl Fn(Word) -> Self {
        let site = Arc::new(Site {
            whereabouts: Mutex::new(Whereabouts::Unknown),
            networks: config.redirect_networks.clone(),
            addresses: config.addresses.clone(),
            looks: Mutex::default(),
        });
        move |word| Self {
            word,
            site: Arc::clone(&site),
        }
    }

    fn check(&self, address: IpAddr) -> Result<(), Forbidden> {
        let class = AddressClass::of(address);
        // Nobody who lists a network thinks of the one address in it where secrets are to be had.
        let is_listed = match class {
            AddressClass::Metadata => self.site.networks.names(address),
            AddressClass::Public
            | AddressClass::Loopback
            | AddressClass::Private
            | AddressClass::CarrierNat
            | AddressClass::LinkLocal
            | AddressClass::Never => self.site.networks.contains(address),
        };
        self.check_class(class, is_listed)
    }

    /// Checks a host that somebody else looks up, as far as that can be.
    fn check_unseen(&self, host: &str) -> Result<(), Forbidden> {
        match party::literal(host) {
            Some(address) => self.check(address),
            None => address::class_of_name(host).map_or(Ok(()), |it| self.check_class(it, false)),
        }
    }

    fn check_class(&self, class: AddressClass, is_listed: bool) -> Result<(), Forbidden> {
        match self.word {
            Word::Operators => {
                let mut whereabouts = self.site.whereabouts.lock();
                *whereabouts = whereabouts.and(class);
                Ok(())
            }
            Word::Listed => Ok(()),
            Word::Upstreams => {
                let own = self.site.whereabouts.lock().class();
                let is_allowed = is_listed || class.is_allowed_from(own);
                is_allowed.then_some(()).ok_or(Forbidden(class))
            }
        }
    }

    /// Who is dialled for an address that was checked: itself, outside of tests. It is raced by its own IP version.
    fn stand_in(&self, address: IpAddr) -> SocketAddr {
        let stand_in = self.site.addresses.stand_ins.get(&address);
        stand_in.copied().unwrap_or(SocketAddr::new(address, 0))
    }

    /// The addresses of a name.
    async fn look_up(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let name_known = name.to_ascii_lowercase();
        if let Some(answers) = self.site.addresses.names.get(&name_known) {
            let mut looks = self.site.looks.lock();
            let look = looks.entry(name_known).or_default();
            let answer = answers.get(*look).or(answers.last());
            *look += 1;
            return Ok(answer.cloned().unwrap_or_default());
        }
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|it| it.ip()).collect())
    }
}

impl Whereabouts {
    /// What is known after one more address.
    fn and(self, class: AddressClass) -> Self {
        match self {
            Self::Unknown => Self::At(class),
            Self::At(known) if known == class => self,
            Self::At(_) | Self::Mixed => Self::Mixed,
        }
    }

    /// The one kind of place where it is.
    fn class(self) -> Option<AddressClass> {
        match self {
            Self::At(class) => Some(class),
            Self::Unknown | Self::Mixed => None,
        }
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let rule = self.rule.clone();
        Box::pin(async move {
            let mut allowed = Vec::new();
            let mut refused = None;
            for address in rule.look_up(name.as_str()).await? {
                match rule.check(address) {
                    Ok(()) => allowed.push(rule.stand_in(address)),
                    Err(forbidden) => refused = Some(forbidden),
                }
            }
            match refused.filter(|_| allowed.is_empty()) {
                Some(forbidden) => Err(io::Error::other(forbidden)),
                None => Ok(allowed.into_iter()),
            }
        })
    }
}

/// A connection, or why there is none.
type Dialling =
    Pin<Box<dyn Future<Output = Result<Stream, Box<dyn std::error::Error + Send + Sync>>> + Send>>;

impl Dialer {
    /// Dials by the rule of somebody's word, and proxies by the operator's.
    pub(super) fn new(
        rules: impl Fn(Word) -> Rule,
        word: Word,
        proxies: Arc<Proxies>,
        connect_timeout: Duration,
    ) -> Self {
        Self {
            tcp: connector(rules(word), connect_timeout),
            rule: rules(word),
            proxies,
            proxy_tcp: connector(rules(Word::Listed), connect_timeout),
            connect_timeout,
        }
    }

    fn directly(&mut self, mut uri: Uri) -> Dialling {
        // An address is not looked up, so that nobody else would check it.
        let address = uri.host().and_then(party::literal);
        if let Some(address) = address {
            if let Err(forbidden) = self.rule.check(address) {
                return Box::pin(async move { Err(forbidden.into()) });
            }
            let stand_in = self.rule.stand_in(address);
            if stand_in.ip() != address {
                uri = party::with_address(&uri, stand_in);
            }
        }
        let dialling = self.tcp.call(uri);
        Box::pin(async move { Ok(Stream::direct(dialling.await?)) })
    }

    fn through(&mut self, hop: Hop, uri: Uri) -> Dialling {
        if let Err(forbidden) = self.rule.check_unseen(uri.host().unwrap_or_default()) {
            return Box::pin(async move { Err(forbidden.into()) });
        }
        let dialling = self.proxy_tcp.call(hop.proxy.clone());
        let patience = self.connect_timeout;
        Box::pin(async move {
            let opening = async {
                let tcp = dialling.await.map_err(|source| ProxyError::Unreachable {
                    proxy: hop.name(),
                    source: source.into(),
                })?;
                hop.open(tcp, &uri).await
            };
            // What is cut off by the timeout is this connection, which nobody has yet.
            let opened = timeout(patience, opening).await;
            Ok(opened.map_err(|_| ProxyError::Silent { proxy: hop.name() })??)
        })
    }
}

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Dialling;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        ready!(self.tcp.poll_ready(cx))?;
        self.proxy_tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self.proxies.before(&uri) {
            Some(hop) => self.through(hop, uri),
            None => self.directly(uri),
        }
    }
}

/// Whether it is our own rule or limit that there is no connection, and no fault of whoever was dialled.
pub(super) fn is_ours(error: &(dyn std::error::Error + 'static)) -> bool {
    let links = std::iter::successors(Some(error), |it| it.source());
    links
        .filter_map(|it| it.downcast_ref::<io::Error>())
        .any(|it| {
            let forbidden = it.get_ref().is_some_and(|it| it.is::<Forbidden>());
            let errno = it.raw_os_error().map(Errno::from_raw_os_error);
            forbidden || errno.is_some_and(|it| OUR_LIMITS.contains(&it))
        })
}

/// What the machine says when it has no files, ports or memory for one more connection.
const OUR_LIMITS: [Errno; 5] = [
    Errno::MFILE,
    Errno::NFILE,
    Errno::ADDRNOTAVAIL,
    Errno::NOBUFS,
    Errno::NOMEM,
];
const KEEPALIVE: Duration = Duration::from_secs(30);

fn connector(rule: Rule, connect_timeout: Duration) -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(Resolver { rule });
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(connect_timeout));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_where_it_always_was() {
        use AddressClass::{Loopback, Public};
        let known = |classes: &[AddressClass]| {
            let all = classes.iter().copied();
            all.fold(Whereabouts::Unknown, Whereabouts::and).class()
        };
        assert_eq!(known(&[]), None);
        assert_eq!(known(&[Loopback, Loopback]), Some(Loopback));
        assert_eq!(known(&[Loopback, Public]), None);
        assert_eq!(known(&[Public, Loopback, Loopback]), None);
    }

    #[test]
    fn our_own_limits_and_rules_are_nobodys_fault() {
        let of = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for (error, expected) in [
            (of(Errno::MFILE), true),
            (of(Errno::ADDRNOTAVAIL), true),
            (io::Error::other(Forbidden(AddressClass::Loopback)), true),
            (of(Errno::CONNREFUSED), false),
            (of(Errno::NETUNREACH), false),
            (io::ErrorKind::TimedOut.into(), false),
        ] {
            let text = error.to_string();
            // As what the client says is wrapped.
            let wrapped = ProxyError::Unreachable {
                proxy: String::new(),
                source: Box::new(error),
            };
            assert_eq!(is_ours(&wrapped), expected, "{text}");
        }
    }
}
