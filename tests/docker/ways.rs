//! Other ways to a registry than straight there: an egress proxy, a mirror.

use std::collections::BTreeSet;

use serde_json::json;

use crate::certificates::Authority;
use crate::egress::{EGRESS, Egress};
use crate::gets;
use crate::images::{FIRST, SECOND};
use crate::proxy::{Proxy, in_front_of};
use crate::registry::Registry;
use crate::shelf::Shelf;
use crate::skopeo::pull;

#[test]
fn an_https_registry_is_reached_through_a_tunnel_of_the_egress_proxy() {
    let shelf = Shelf::filled();
    let authority = Authority::new(shelf.dir.path());
    let identity = authority.issue("registry");
    let tls = json!({ "certificate": identity.certificate, "key": identity.key });
    let demands = json!({ "tls": tls });
    let registry = Registry::demanding(&shelf.storage, &shelf.place("registry"), &demands);
    let egress = Egress::start(&shelf.place("egress"), &registry);
    let upstream = format!(
        "{}proxy = \"{}\"\nca_file = \"{}\"\n",
        in_front_of("docker.io", &registry.url()),
        egress.url(),
        authority.certificate.display()
    );
    let proxy = Proxy::with(&shelf.place("proxy"), &upstream);

    pull(&proxy, FIRST, &shelf.first);

    let sent = gets(&registry.requests(), &shelf.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.first.contents()));
    // Whatever came was the egress proxy's, and all that it was asked for are tunnels.
    assert_eq!(registry.peers(), BTreeSet::from([EGRESS.to_owned()]));
    let tunnel = format!("CONNECT {} HTTP/1.1", registry.address());
    let asked: BTreeSet<String> = egress.requests().into_iter().collect();
    assert_eq!(asked, BTreeSet::from([tunnel]));
}

#[test]
fn an_http_registry_is_asked_through_the_egress_proxy_by_its_whole_address() {
    let shelf = Shelf::filled();
    let registry = Registry::start(&shelf.storage, &shelf.place("registry"));
    let egress = Egress::start(&shelf.place("egress"), &registry);
    let upstream = format!(
        "{}proxy = \"{}\"\n",
        in_front_of("docker.io", &registry.url()),
        egress.url()
    );
    let proxy = Proxy::with(&shelf.place("proxy"), &upstream);

    pull(&proxy, FIRST, &shelf.first);

    let requests = registry.requests();
    let sent = gets(&requests, &shelf.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.first.contents()));
    assert_eq!(registry.peers(), BTreeSet::from([EGRESS.to_owned()]));
    let mut passed: Vec<String> = requests
        .iter()
        .map(|it| format!("{} {}{} HTTP/1.1", it.method, registry.url(), it.path))
        .collect();
    let mut asked = egress.requests();
    passed.sort();
    asked.sort();
    assert_eq!(asked, passed);
}

#[test]
fn a_mirror_is_pulled_from_until_it_stops_and_then_the_registry_itself_is() {
    let shelf = Shelf::filled();
    let registry = Registry::start(&shelf.storage, &shelf.place("registry"));
    let mut mirror = Registry::start(&shelf.storage, &shelf.place("mirror"));
    let proxy = Proxy::with(&shelf.place("proxy"), &mirrored(&registry, &mirror));

    pull(&proxy, FIRST, &shelf.first);
    let sent = gets(&mirror.requests(), &shelf.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.first.contents()));
    assert_eq!(registry.requests(), []);

    mirror.stop();
    pull(&proxy, SECOND, &shelf.second);
    let sent = gets(&registry.requests(), &shelf.second.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.second.contents()));
}

#[test]
fn what_a_mirror_does_not_have_is_pulled_from_the_registry_itself() {
    let shelf = Shelf::filled();
    let registry = Registry::start(&shelf.storage, &shelf.place("registry"));
    let mirror = Registry::start(&shelf.place("nothing"), &shelf.place("mirror"));
    let proxy = Proxy::with(&shelf.place("proxy"), &mirrored(&registry, &mirror));

    pull(&proxy, FIRST, &shelf.first);

    assert_ne!(mirror.requests(), []);
    let sent = gets(&registry.requests(), &shelf.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.first.contents()));
}

/// The tables of an upstream that has a mirror.
fn mirrored(registry: &Registry, mirror: &Registry) -> String {
    let upstream = in_front_of("docker.io", &registry.url());
    format!(
        "{upstream}[[upstream.mirror]]\nurl = \"{}\"\n",
        mirror.url()
    )
}
