//! From whom the admin port takes orders: what changes something, or is much work.
//!
//! Where an order comes from counts, or who gives it. By where it comes from, a browser on the same machine is as good as the
//! operator, and any web page can have its own name mean this machine (DNS rebinding). So such an order must call us by an
//! address, or by a name that is no page's.

use std::net::{IpAddr, Ipv6Addr};

use http::header::HeaderMap;
use http::uri::Authority;
use http::{HeaderName, StatusCode};
use tracing::info;

use super::front::{Access, Authenticated, Showing, Visit};
use super::refusal::Refusal;
use crate::net::Identity;

/// Why an order is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum NotTaken {
    #[error("orders are not taken from this address: see access.admin_networks")]
    Network,
    #[error("orders are not taken through a proxy that is not in trusted_proxies")]
    Proxied,
    #[error("call the admin port by its address: by this name a web page may have called it")]
    Host,
    #[error("orders are taken from those in access.admin_identities only")]
    Nobody,
    #[error("the user, the password or the token is wrong")]
    Wrong,
    #[error("too many passwords are being checked, try again later")]
    Busy,
}

impl Access {
    /// Whether the admin port takes an order: who gives it.
    ///
    /// # Errors
    ///
    /// With why not.
    pub(in crate::server) async fn take_order(
        &self,
        visit: Visit<'_>,
        is_proxied: bool,
    ) -> Result<Identity, NotTaken> {
        let found = self.authenticate(visit).await;
        let Authenticated { identity, shown } = found.map_err(|refusal| match refusal {
            Refusal::Busy | Refusal::TooManyWrong(_) => NotTaken::Busy,
            Refusal::Nothing(_)
            | Refusal::Wrong(_)
            | Refusal::Void(_)
            | Refusal::Denied(_)
            | Refusal::Malformed(_)
            | Refusal::Method => NotTaken::Wrong,
        })?;
        let (networks, identities) = self.admins();
        // A token of ours is for pulling.
        let is_named = shown == Showing::Itself && identities.iter().any(|it| it.is(&identity));
        if !is_named {
            let is_near = networks.contains(visit.client);
            let verdict = if !is_near && !identities.is_empty() {
                Err(NotTaken::Nobody)
            } else if !is_near {
                Err(NotTaken::Network)
            } else if is_proxied {
                Err(NotTaken::Proxied)
            } else if !visit.host.is_none_or(is_no_pages) {
                Err(NotTaken::Host)
            } else {
                Ok(())
            };
            verdict.inspect_err(|why| {
                let client = visit.client;
                info!(%client, identity = identity.name(), reason = %why, "order not taken");
            })?;
        }
        Ok(identity)
    }
}

impl NotTaken {
    /// The status of the answer.
    pub(in crate::server) fn status(self) -> StatusCode {
        match self {
            Self::Network | Self::Proxied | Self::Host => StatusCode::FORBIDDEN,
            Self::Nobody | Self::Wrong => StatusCode::UNAUTHORIZED,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Whether somebody on the way says for whom they ask.
pub(in crate::server) fn is_forwarded(headers: &HeaderMap) -> bool {
    FORWARDING.iter().any(|it| headers.contains_key(it))
}

/// Whether a host is an address, or a name that no web page comes from: without a dot, or below `localhost` (RFC 6761 §6.3).
fn is_no_pages(host: &str) -> bool {
    let host = host.parse::<Authority>();
    let host = host.as_ref().map_or("", Authority::host);
    let name = host.strip_suffix('.').unwrap_or(host);
    let v6 = name.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let is_address =
        name.parse::<IpAddr>().is_ok() || v6.is_some_and(|it| it.parse::<Ipv6Addr>().is_ok());
    is_address || !name.contains('.') || name.to_ascii_lowercase().ends_with(".localhost")
}

const FORWARDING: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("via"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_is_at_an_address_or_at_a_name_without_a_dot() {
        for (host, expected) in [
            ("127.0.0.1:9555", true),
            ("127.0.0.1", true),
            ("192.0.2.1:9555", true),
            ("[::1]:9555", true),
            ("localhost:9555", true),
            ("LocalHost", true),
            ("a.localhost", true),
            ("layerhold:9555", true),
            ("", true),
            ("evil.example:9555", false),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example", false),
            ("evillocalhost.example", false),
            ("0x7f.1", false),
        ] {
            assert_eq!(is_no_pages(host), expected, "{host}");
        }
    }
}
