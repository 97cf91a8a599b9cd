//! Other ways to what a registry has than straight to it: a mirror.

use crate::gets;
use crate::images::{FIRST, SECOND};
use crate::proxy::{Proxy, in_front_of};
use crate::registry::Registry;
use crate::shelf::Shelf;
use crate::skopeo::pull;

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
