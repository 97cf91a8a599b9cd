//! A real `skopeo`, for pulls that leave every byte to look at.

use std::fs;

use tempfile::TempDir;

use crate::proxy::Proxy;
use crate::registry::{Image, REPOSITORY, digest};
use crate::wait::bounded;

/// Pulls what [`REPOSITORY`] of the default upstream has under a tag or digest, with no
/// credentials, and proves that it is this image. Returns what was said if it is refused.
pub(crate) fn try_pull(proxy: &Proxy, tag: &str, image: &Image) -> Result<(), String> {
    try_pull_with(&["--src-tls-verify=false"], proxy, tag, image)
}

/// The same with these flags for the source.
pub(crate) fn try_pull_with(
    flags: &[&str],
    proxy: &Proxy,
    tag: &str,
    image: &Image,
) -> Result<(), String> {
    let flags = [flags, &["--src-no-creds"]].concat();
    try_pull_from(proxy, &format!("{REPOSITORY}:{tag}"), image, &flags)
}

/// The same from any repository, as this user with this password, if with any.
pub(crate) fn try_pull_as(
    proxy: &Proxy,
    reference: &str,
    image: &Image,
    user: Option<(&str, &str)>,
) -> Result<(), String> {
    let creds = user.map(|(user, password)| format!("--src-creds={user}:{password}"));
    let creds = creds.as_deref().unwrap_or("--src-no-creds");
    try_pull_from(proxy, reference, image, &["--src-tls-verify=false", creds])
}

fn try_pull_from(
    proxy: &Proxy,
    reference: &str,
    image: &Image,
    flags: &[&str],
) -> Result<(), String> {
    let copy = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut skopeo = bounded("skopeo");
    skopeo.args(["--insecure-policy", "copy"]).args(flags);
    let from = format!("docker://{}/{reference}", proxy.address());
    let to = format!("dir:{}", copy.path().display());
    let output = skopeo.args([&from, &to]).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8(output.stderr).unwrap());
    }
    let copied = |name: &str| digest(&fs::read(copy.path().join(name)).unwrap());
    assert_eq!(copied("manifest.json"), image.manifest.digest);
    for blob in image.layers.iter().chain([&image.config]) {
        assert_eq!(copied(blob.hex()), blob.digest);
    }
    Ok(())
}

/// The same for what must not be refused.
pub(crate) fn pull(proxy: &Proxy, tag: &str, image: &Image) {
    let pulled = try_pull(proxy, tag, image);
    assert_eq!(pulled, Ok(()));
}
