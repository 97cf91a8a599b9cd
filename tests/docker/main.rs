//! Real clients pull through layerhold from real registries.
//!
//! Needs root and the Debian packages that `lab.rs` names; the network only once, for a Debian
//! from the machine's own package mirror. So it is run by name:
//!
//! ```text
//! cargo test --release --test docker
//! ```
//!
//! Every test has a client, a proxy and a registry of its own, and looks at what each of them
//! says: the client's answers, the registry's log, the proxy's metrics and published files.
//! Clients are told to pull through layerhold with what `layerhold client-config` prints.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up has failed"
)]

mod clients;
mod partial;
mod image;
mod private;
mod access;
mod callers;
mod scrape;
mod tls;
mod ways;

mod lab;
mod shelf;
mod images;
mod skopeo;
mod proxy;
mod daemon;
mod containerd;
mod podman;
mod egress;
mod registry;
mod tokens;
mod certificates;
mod process;
mod http;
mod wait;

use std::collections::BTreeSet;
use std::fs;

use crate::lab::Lab;
use crate::registry::{Descriptor, REPOSITORY, Request, digest};
use crate::wait::{bounded, run};

#[test]
fn a_daemon_pulls_an_image_through_its_mirror_and_runs_it() {
    let lab = Lab::start();

    assert_eq!(lab.daemon.pull("debian:base"), lab.first.manifest.digest);

    assert_eq!(lab.daemon.shell("debian:base", images::CHECK), "first");
    let gets = gets(&lab.upstream.requests(), &lab.first.manifest.digest);
    assert_eq!(gets, Vec::from_iter(lab.first.contents()));
    lab.proxy.counted("miss", lab.first.contents().len());
}

#[test]
fn a_removed_image_is_pulled_again_without_a_get_from_upstream() {
    let lab = Lab::start();
    lab.daemon.pull("debian:base");
    let before = lab.upstream.requests().len();

    assert_eq!(lab.daemon.pull("debian:base"), lab.first.manifest.digest);

    let since = lab.upstream.requests().split_off(before);
    let mut asked = since.iter().filter(|it| it.content().is_some());
    assert!(asked.all(|it| it.method == "HEAD"), "{since:?}");
    let asked: BTreeSet<&str> = since.iter().filter_map(Request::content).collect();
    assert_eq!(asked, BTreeSet::from(["manifests/base"]));
    assert_eq!(lab.daemon.shell("debian:base", images::CHECK), "first");
}

#[test]
fn a_version_that_changes_one_layer_moves_that_layer_its_config_and_its_manifest() {
    let lab = Lab::start();
    lab.daemon.pull("debian:base");
    let published = lab.proxy.published(&lab.first.parts());
    assert_eq!(published, lab.first.parts());
    let before = lab.upstream.requests().len();
    lab.upstream.tag("base", &lab.second);

    assert_eq!(lab.daemon.pull("debian:base"), lab.second.manifest.digest);

    let new: BTreeSet<Descriptor> = &lab.second.parts() - &lab.first.parts();
    assert_eq!(new.len(), 3);
    let since = lab.upstream.requests().split_off(before);
    assert_eq!(
        gets(&since, &lab.second.manifest.digest),
        Vec::from_iter(&lab.second.contents() - &lab.first.contents())
    );
    let published = lab.proxy.published(&new);
    assert_eq!(&published - &lab.first.parts(), new);
    assert_eq!(lab.daemon.shell("debian:base", images::CHECK), "second");
}

#[test]
fn a_tag_that_moved_upstream_is_new_at_the_next_pull() {
    let lab = Lab::small();
    let pull = || lab.daemon.pull("debian:base");
    assert_eq!(pull(), lab.first.manifest.digest);

    lab.upstream.tag("base", &lab.second);
    assert_eq!(pull(), lab.second.manifest.digest);

    lab.upstream.tag("base", &lab.first);
    assert_eq!(pull(), lab.first.manifest.digest);
}

#[test]
fn with_upstream_stopped_digests_pull_and_the_tag_is_served_stale() {
    let mut lab = Lab::small();
    lab.daemon.pull("debian:base");
    lab.upstream.tag("base", &lab.second);
    lab.daemon.pull("debian:base");
    lab.proxy.published(&lab.first.parts());
    lab.proxy.published(&lab.second.parts());
    lab.upstream.stop();

    let old = format!("debian@{}", lab.first.manifest.digest);
    assert_eq!(lab.daemon.pull(&old), lab.first.manifest.digest);
    assert_eq!(lab.proxy.requests_with_outcome("stale"), 0);

    assert_eq!(lab.daemon.pull("debian:base"), lab.second.manifest.digest);
    lab.proxy.counted("stale", 1);
}

#[test]
fn a_daemon_takes_from_an_index_only_what_is_for_its_platform() {
    let lab = Lab::start();
    let native = lab.daemon.docker(&["version", "-f", "{{.Server.Arch}}"]);
    let images = [(native.trim(), &lab.first), ("s390x", &lab.second)];
    let index = lab.upstream.tag_index("both", &images);

    assert_eq!(lab.daemon.pull("debian:both"), digest(&index));

    assert_eq!(lab.daemon.shell("debian:both", images::CHECK), "first");
    let mut expected = lab.first.contents();
    expected.insert(format!("manifests/{}", digest(&index)));
    let gets = gets(&lab.upstream.requests(), &digest(&index));
    assert_eq!(gets, Vec::from_iter(expected));
}

#[test]
fn an_index_copied_by_path_prefix_is_equal_byte_for_byte() {
    let lab = Lab::small();
    let images = [("amd64", &lab.first), ("arm64", &lab.second)];
    let index = lab.upstream.tag_index("both", &images);
    let copy = lab.dir.path().join("copy");

    let from = lab.proxy.address();
    let from = format!("docker://{from}/docker.io/{REPOSITORY}:both");
    run(bounded("skopeo")
        .args([
            "--insecure-policy",
            "copy",
            "--all",
            "--src-tls-verify=false",
        ])
        .args([&from, &format!("dir:{}", copy.display())]));

    let copied = |name: &str| fs::read(copy.join(name)).unwrap();
    assert_eq!(copied("manifest.json"), index);
    for image in [&lab.first, &lab.second] {
        let manifest = copied(&format!("{}.manifest.json", image.manifest.hex()));
        assert_eq!(manifest, lab.upstream.document(&image.manifest.digest));
        for blob in image.layers.iter().chain([&image.config]) {
            assert_eq!(digest(&copied(blob.hex())), blob.digest);
        }
    }
}

/// What was got from the repository, sorted, each as often as it was. Whether a tag's manifest is
/// got by the tag or by the digest it is known to have makes no difference.
fn gets(requests: &[Request], tagged: &str) -> Vec<String> {
    let gets = requests.iter().filter(|request| request.method == "GET");
    let contents = gets.filter_map(Request::content);
    let mut contents: Vec<String> = contents
        .map(|content| match content.split_once('/') {
            Some((kind, tag)) if !tag.contains(':') => format!("{kind}/{tagged}"),
            _ => content.to_owned(),
        })
        .collect();
    contents.sort();
    contents
}
