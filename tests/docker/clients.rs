//! Other clients than docker's, told what `client-config` prints, and proxies in a row.

use std::collections::BTreeSet;

use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::daemon::Daemon;
use crate::gets;
use crate::images::{self, FIRST, SECOND};
use crate::lab::refuse_unless_possible;
use crate::podman::Podman;
use crate::proxy::{Proxy, in_front_of};
use crate::registry::{Image, REPOSITORY, Registry, Request};
use crate::shelf::Shelf;

#[test]
fn containerd_pulls_from_two_registries_and_the_layers_they_share_are_sent_once() {
    let pair = Pair::start();
    let hosts_toml = pair.proxy.client_config("containerd");
    let containerd = Containerd::start(pair.dir.path(), &hosts_toml);
    let pull = |namespace: &str, image: &Image| {
        let reference = format!("{namespace}/{REPOSITORY}:base");
        let pulled = containerd.pull(namespace, &reference);
        assert_eq!(pulled.digest, image.manifest.digest);
        // Both are asked for the same path, so nothing else tells the registries apart.
        assert_eq!(pulled.queries, BTreeSet::from([format!("ns={namespace}")]));
        assert_eq!(pulled.namespaces, BTreeSet::from([namespace.to_owned()]));
        containerd.shell(namespace, &reference, images::CHECK)
    };

    assert_eq!(pull(HUB, &pair.first), "first");
    pair.proxy.published(&pair.first.parts());
    assert_eq!(pull(QUAY, &pair.second), "second");

    let shared = &pair.first.contents() & &pair.second.contents();
    assert_eq!(shared.len(), 2);
    let (hub, quay) = (pair.hub.requests(), pair.quay.requests());
    let sent = gets(&hub, &pair.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(pair.first.contents()));
    let sent = gets(&quay, &pair.second.manifest.digest);
    assert_eq!(sent, Vec::from_iter(&pair.second.contents() - &shared));
    assert_eq!(heads_of_blobs(&quay), shared);

    let parts = &pair.first.parts() | &pair.second.parts();
    assert_eq!(pair.proxy.published(&parts), parts);
    let of_quay = [
        "upstream=\"quay.io\"",
        "endpoint=\"blob\"",
        "outcome=\"hit\"",
    ];
    let hits = pair.proxy.counts("layerhold_requests_total", &of_quay);
    assert_eq!(hits, shared.len());
}

#[test]
fn podman_pulls_by_path_prefix_from_two_registries_and_runs_both_images() {
    let pair = Pair::start();
    let registries_conf = pair.proxy.client_config("podman");
    let podman = Podman::new(pair.dir.path(), &registries_conf);

    for (namespace, image, version) in [(HUB, &pair.first, FIRST), (QUAY, &pair.second, SECOND)] {
        let reference = format!("{namespace}/{REPOSITORY}:base");
        assert_eq!(podman.pull(&reference), image.manifest.digest);
        assert_eq!(podman.shell(&reference, images::CHECK), version);
    }

    let sent = gets(&pair.hub.requests(), &pair.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(pair.first.contents()));
    let new = &pair.second.contents() - &pair.first.contents();
    let sent = gets(&pair.quay.requests(), &pair.second.manifest.digest);
    assert_eq!(sent, Vec::from_iter(new));
}

#[test]
fn podman_pulls_from_the_proxys_own_address_with_the_registry_in_the_path() {
    let shelf = Shelf::filled();
    let upstream = Registry::start(&shelf.storage, &shelf.place("registry"));
    let proxy = Proxy::start(&shelf.place("proxy"), upstream.address());
    let podman = Podman::new(&shelf.place("client"), "");
    let reference = format!("{}/{HUB}/{REPOSITORY}:{FIRST}", proxy.address());

    assert_eq!(podman.pull(&reference), shelf.first.manifest.digest);

    let sent = gets(&upstream.requests(), &shelf.first.manifest.digest);
    assert_eq!(sent, Vec::from_iter(shelf.first.contents()));
}

#[test]
fn a_daemon_pulls_through_two_proxies_and_the_first_serves_when_the_rest_is_gone() {
    let shelf = Shelf::filled();
    let image = &shelf.first;
    let mut upstream = Registry::start(&shelf.storage, &shelf.place("registry"));
    let mut far = Proxy::start(&shelf.place("far"), upstream.address());
    let near = Proxy::start(&shelf.place("near"), far.address());
    let daemon = Daemon::start(&shelf.place("docker"), &near.client_config("docker"));
    let pull = || daemon.pull(&format!("debian:{FIRST}"));

    assert_eq!(pull(), image.manifest.digest);
    for proxy in [&near, &far] {
        proxy.counted("miss", image.contents().len());
        assert_eq!(proxy.published(&image.parts()), image.parts());
    }
    let sent = gets(&upstream.requests(), &image.manifest.digest);
    assert_eq!(sent, Vec::from_iter(image.contents()));

    upstream.stop();
    assert_eq!(pull(), image.manifest.digest);
    far.counted("stale", 1);

    far.stop();
    assert_eq!(pull(), image.manifest.digest);
    near.counted("stale", 1);
}

/// One proxy for two registries, each of which has the tag `base` in a repository of one name:
/// the images differ in a layer and share the others.
struct Pair {
    proxy: Proxy,
    hub: Registry,
    quay: Registry,
    first: Image,
    second: Image,
    dir: TempDir,
}

impl Pair {
    fn start() -> Self {
        refuse_unless_possible();
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let registry = |namespace: &str, version: &str| {
            let dir = dir.path().join(namespace);
            std::fs::create_dir(&dir).unwrap();
            let registry = Registry::start(&images::storage_in(&dir), &dir);
            let image = registry.image(version);
            registry.tag("base", &image);
            (registry, image)
        };
        let (hub, first) = registry(HUB, FIRST);
        let (quay, second) = registry(QUAY, SECOND);
        let upstreams = format!(
            "{}[[upstream]]\nnamespace = \"{QUAY}\"\nurl = \"{}\"\n",
            in_front_of(HUB, &hub.url()),
            quay.url()
        );
        Self {
            proxy: Proxy::with(dir.path(), &upstreams),
            hub,
            quay,
            first,
            second,
            dir,
        }
    }
}

/// The blobs that were asked for by HEAD, each once.
fn heads_of_blobs(requests: &[Request]) -> BTreeSet<String> {
    let heads = requests.iter().filter(|request| request.method == "HEAD");
    let contents = heads.filter_map(Request::content);
    let blobs = contents.filter(|content| content.starts_with("blobs/"));
    blobs.map(str::to_owned).collect()
}

const HUB: &str = "docker.io";
const QUAY: &str = "quay.io";
