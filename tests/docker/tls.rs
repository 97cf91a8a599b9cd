//! Real clients pull over TLS, trust a private authority as each of them is told to, and show certificates of their own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::certificates::{Authority, Identity};
use crate::containerd::Containerd;
use crate::daemon::Daemon;
use crate::images::FIRST;
use crate::proxy::{Proxy, in_front_of};
use crate::registry::{REPOSITORY, Registry};
use crate::shelf::Shelf;
use crate::skopeo::try_pull_with;

/// A proxy that speaks TLS, with a registry behind it.
struct Lab {
    shelf: Shelf,
    authority: Authority,
    /// Nobody whom anybody trusts.
    stranger: Authority,
    proxy: Proxy,
    _registry: Registry,
}

impl Lab {
    /// With more keys of `[tls]`, made with the authority.
    fn start(more: impl Fn(&Authority) -> String) -> Self {
        let shelf = Shelf::filled();
        let registry = Registry::start(&shelf.storage, &shelf.place("registry"));
        let authority = Authority::new(&shelf.place("authority"));
        let stranger = Authority::new(&shelf.place("stranger"));
        let ip = address();
        let Identity { certificate, key } = authority.issue_at("proxy", ip);
        let tls = format!(
            "[tls]\ncertificate = \"{}\"\nkey = \"{}\"\n{}\n",
            certificate.display(),
            key.display(),
            more(&authority)
        );
        let upstream = in_front_of("docker.io", &registry.url());
        let proxy = Proxy::at(ip, &shelf.place("proxy"), &(tls + &upstream));
        Self {
            shelf,
            authority,
            stranger,
            proxy,
            _registry: registry,
        }
    }

    /// A directory of certificates, as dockerd, podman and skopeo have them.
    fn certificates(&self, dir: &Path, authority: &Authority, client: Option<&Identity>) {
        fs::create_dir_all(dir).unwrap();
        fs::copy(&authority.certificate, dir.join("ca.crt")).unwrap();
        if let Some(Identity { certificate, key }) = client {
            fs::copy(certificate, dir.join("client.cert")).unwrap();
            fs::copy(key, dir.join("client.key")).unwrap();
        }
    }

    /// The image by the proxy's own name: no failure makes a daemon go to Docker Hub itself.
    fn reference(&self) -> String {
        format!("{}/docker.io/{REPOSITORY}:{FIRST}", self.proxy.address())
    }

    /// The certificate in the log of the last request.
    fn seen(&self) -> Option<String> {
        let last = self.proxy.requests().pop()?;
        assert_eq!(last["tls"], true);
        last["certificate"].as_str().map(str::to_owned)
    }
}

/// dockerd's own directory for the proxy, which no flag moves. Removed when it is dropped.
struct CertsD(PathBuf);

impl CertsD {
    fn of(proxy: &Proxy) -> Self {
        Self(Path::new("/etc/docker/certs.d").join(proxy.address().to_string()))
    }
}

impl Drop for CertsD {
    fn drop(&mut self) {
        // A test that failed before there is one leaves none.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An address of this machine that is not loopback, where there is one: dockerd verifies nobody at loopback.
fn address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent (RFC 5737).
    let connected = socket.connect("192.0.2.1:9");
    let address = connected.and_then(|()| socket.local_addr());
    address.map_or(Ipv4Addr::LOCALHOST.into(), |it| it.ip())
}

fn asking(authority: &Authority) -> String {
    let file = authority.certificate.display();
    format!("client_certificates = \"required\"\nclient_ca_file = \"{file}\"")
}

#[test]
fn a_daemon_pulls_over_tls_with_the_authority_in_its_directory() {
    let lab = Lab::start(|_| "http2 = true".to_owned());
    let config = lab.proxy.client_config("docker");
    let parsed: Value = serde_json::from_str(&config).unwrap();
    let root = format!("https://{}", lab.proxy.address());
    assert_eq!(parsed["registry-mirrors"][0], root.as_str());
    let certs = CertsD::of(&lab.proxy);
    let place = lab.shelf.place("docker");
    let daemon = Daemon::start(&place, &config);
    lab.certificates(&certs.0, &lab.authority, None);
    let pulled = daemon.pull(&format!("debian:{FIRST}"));
    assert_eq!(pulled, lab.shelf.first.manifest.digest);
    assert_eq!(lab.seen(), None);

    lab.certificates(&certs.0, &lab.stranger, None);
    if !lab.proxy.address().ip().is_loopback() {
        let refused = daemon.try_pull(&lab.reference()).unwrap_err();
        assert!(refused.contains("x509"), "{refused}");
    }
}

#[test]
fn a_daemon_shows_the_certificate_in_its_directory() {
    let lab = Lab::start(asking);
    let certs = CertsD::of(&lab.proxy);
    let client = lab.authority.issue("node-1");
    let place = lab.shelf.place("docker");
    let daemon = Daemon::start(&place, &lab.proxy.client_config("docker"));
    lab.certificates(&certs.0, &lab.authority, Some(&client));
    let pulled = daemon.pull(&format!("debian:{FIRST}"));
    assert_eq!(pulled, lab.shelf.first.manifest.digest);
    // Its alternative name is an address, which is no name.
    assert_eq!(lab.seen().as_deref(), Some("node-1"));

    drop(certs);
    let certs = CertsD::of(&lab.proxy);
    lab.certificates(&certs.0, &lab.authority, None);
    let refused = daemon.try_pull(&lab.reference()).unwrap_err();
    assert!(refused.contains("certificate required"), "{refused}");
}

#[test]
fn containerd_pulls_over_tls_by_what_its_hosts_file_names() {
    let lab = Lab::start(asking);
    let client = lab.authority.issue("node-2");
    let hosts = lab.proxy.client_config("containerd");
    let mut said = String::new();
    for line in hosts.lines() {
        let (ca, client) = (&lab.authority.certificate, &client);
        match line.trim_start() {
            it if it.starts_with("# ca = ") => {
                said += &format!("  ca = \"{}\"\n", ca.display());
            }
            it if it.starts_with("# client = ") => {
                let (certificate, key) = (client.certificate.display(), client.key.display());
                said += &format!("  client = [[\"{certificate}\", \"{key}\"]]\n");
            }
            _ => said += &format!("{line}\n"),
        }
    }
    assert_eq!(said.matches("\n  c").count(), 3, "{said}");
    let containerd = Containerd::start(&lab.shelf.place("containerd"), &said);

    let pulled = containerd.pull("one", &format!("docker.io/library/debian:{FIRST}"));
    assert_eq!(pulled.digest, lab.shelf.first.manifest.digest);
    assert_eq!(lab.seen().as_deref(), Some("node-2"));
}

#[test]
fn skopeo_pulls_over_tls_with_its_source_directory() {
    let lab = Lab::start(|authority| asking(authority) + "\nhttp2 = true");
    let client = lab.authority.issue("build-3");
    let pull = |authority: &Authority, client: Option<&Identity>, name: &str| {
        let dir = lab.shelf.place(name);
        lab.certificates(&dir, authority, client);
        let flags = ["--src-cert-dir", dir.to_str().unwrap()];
        try_pull_with(&flags, &lab.proxy, FIRST, &lab.shelf.first)
    };
    let refused = pull(&lab.stranger, Some(&client), "strange").unwrap_err();
    assert!(refused.contains("x509"), "{refused}");
    let refused = pull(&lab.authority, None, "nobody").unwrap_err();
    assert!(refused.contains("certificate"), "{refused}");
    assert_eq!(lab.proxy.requests(), [] as [Value; 0]);

    assert_eq!(pull(&lab.authority, Some(&client), "right"), Ok(()));
    assert_eq!(lab.seen().as_deref(), Some("build-3"));
}
