//! What a client must be told to pull through this proxy: what `client-config` prints.
//!
//! Each client has one way to name the registry that it means, and the snippet uses that one:
//!
//! ```text
//!   containerd, k3s, BuildKit   the mirror's own root, and ?ns=ghcr.io in each request
//!   podman, CRI-O               the mirror's path: cache.example:5000/ghcr.io/…
//!   dockerd                     nothing: whoever asks a mirror means Docker Hub
//! ```
//!
//! What a client cannot name is left out and said so; it pulls that from the registry itself.

use std::net::SocketAddr;

use serde_json::Value;

use crate::cli::Client;
use crate::oci::{Namespace, RepositoryName};
use crate::proxy::UpstreamConfig;
use crate::server::{ClientCertificates, TlsConfig};

use super::addresses::is_authority;
use super::effective::Config;
use super::error::{At, Error};

/// A client's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// The content of one file. It begins with a comment that has the file's usual path, where its format has comments.
    pub text: String,
    /// What the format has no comments for.
    pub remarks: Vec<String>,
}

impl Config {
    /// Makes the configuration of a client that calls this proxy `given`, else by the first address that it listens on.
    ///
    /// An address that stands for all of the machine's is called by `host_name`.
    ///
    /// # Errors
    ///
    /// When `given` is not a host and a port, or is needed since nothing else says what clients call the proxy.
    pub fn client_config(
        &self,
        client: Client,
        given: Option<&str>,
        host_name: &str,
    ) -> Result<Snippet, Error> {
        let (scheme, given) = match given {
            Some(text) => scheme(text),
            None => (None, None),
        };
        let address = address(given, self.server.listen.first(), host_name)?;
        let mirror = Mirror {
            upstreams: &self.proxy.upstreams,
            address: &address,
            // A proxy in front may speak what we do not.
            is_https: scheme.unwrap_or(self.server.tls.is_some()),
            shows_certificate: self.server.tls.as_ref().is_some_and(asks_for_certificate),
        };
        let commented = |text| Snippet {
            text,
            remarks: Vec::new(),
        };
        Ok(match client {
            Client::Docker => mirror.docker(),
            Client::Containerd => commented(mirror.containerd()),
            Client::Podman | Client::Crio => commented(mirror.containers()),
            Client::K3s => commented(mirror.k3s()),
            Client::Buildkit => commented(mirror.buildkit()),
        })
    }
}

/// Whether an address says that it is one of https, and the rest of it.
fn scheme(text: &str) -> (Option<bool>, Option<&str>) {
    let after = |scheme: &str| {
        let (start, rest) = text.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    };
    if let Some(rest) = after("https://") {
        return (Some(true), Some(rest));
    }
    match after("http://") {
        Some(rest) => (Some(false), Some(rest)),
        None => (None, Some(text)),
    }
}

/// Whether a client may need a certificate of its own.
fn asks_for_certificate(tls: &TlsConfig) -> bool {
    tls.clients != ClientCertificates::None
}

/// What clients call the proxy.
fn address(
    given: Option<&str>,
    listen: Option<&SocketAddr>,
    host_name: &str,
) -> Result<String, Error> {
    let at = At::Flag("--address");
    if let Some(text) = given {
        let address = text.to_ascii_lowercase();
        return if is_authority(&address) && has_port(&address) {
            Ok(address)
        } else {
            let value = format!("{text:?}");
            let wanted = "a host and a port such as `cache.example:5000`, with or without `https://` before it";
            Err(Error::Kind { at, value, wanted })
        };
    }
    let listen = listen.filter(|it| it.port() != 0);
    let address = listen.map(|listen| {
        if listen.ip().is_unspecified() {
            format!("{}:{}", host_name.to_ascii_lowercase(), listen.port())
        } else {
            listen.to_string()
        }
    });
    address
        .filter(|it| is_authority(it))
        .ok_or(Error::Missing {
            at,
            wanted: "what clients call the proxy, such as `cache.example:5000`, since neither `listen` nor the machine's name says it",
        })
}

/// Whether an authority ends in a port; the colons of an IPv6 address are in brackets.
fn has_port(authority: &str) -> bool {
    authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| !port.ends_with(']'))
}

/// The proxy as clients see it.
struct Mirror<'a> {
    upstreams: &'a [UpstreamConfig],
    address: &'a str,
    is_https: bool,
    /// Whether it asks clients for certificates.
    shows_certificate: bool,
}

impl Mirror<'_> {
    /// `daemon.json`. A mirror stands for Docker Hub and is asked at its root, without a word on which registry is meant.
    fn docker(&self) -> Snippet {
        let mut remarks = vec![
            "this goes to /etc/docker/daemon.json, or its keys into the object that is there; then `systemctl reload docker`"
                .to_owned(),
        ];
        let hub = self
            .rootless()
            .is_some_and(|it| it.namespace.as_str() == DOCKER_HUB);
        let mut keys = Vec::new();
        if hub {
            keys.push(format!("  \"registry-mirrors\": [{}]", self.root()));
        } else {
            remarks.push(format!(
                "no registry-mirrors: dockerd asks a mirror for {DOCKER_HUB} without naming it, and here that does not mean {DOCKER_HUB}"
            ));
        }
        if self.is_https {
            remarks.push(self.trust("/etc/docker/certs.d"));
        } else {
            keys.push(format!(
                "  \"insecure-registries\": [{}]",
                quoted(self.address)
            ));
        }
        let text = format!("{{\n{}\n}}\n", keys.join(",\n"));
        Snippet { text, remarks }
    }

    /// The proxy's root, as a string.
    fn root(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        quoted(&format!("{scheme}://{}", self.address))
    }

    /// What a client of a directory of certificates needs besides, in one line.
    fn trust(&self, directory: &str) -> String {
        let address = self.address;
        let ours = if self.shows_certificate {
            "; a certificate to be shown is client.cert there, its key client.key"
        } else {
            ""
        };
        format!(
            "a certificate by an authority that the machine does not know: put the authority's into {directory}/{address}/ca.crt{ours}"
        )
    }

    /// `hosts.toml` for every registry. Without `server`, containerd goes to the registry itself when the proxy fails or does
    /// not know it; whatever host is asked instead of the registry gets `ns` (containerd, `docs/hosts.md`).
    fn containerd(&self) -> String {
        let mirror = self.root();
        let mut text = format!(
            "# /etc/containerd/certs.d/_default/hosts.toml\n\
             [host.{mirror}]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        if self.is_https {
            text += "  # where the machine does not know the authority of its certificate:\n  \
                     # ca = \"/etc/containerd/certs.d/layerhold-ca.crt\"\n";
        }
        if self.is_https && self.shows_certificate {
            text += "  # client = [[\"/etc/containerd/certs.d/client.crt\", \"/etc/containerd/certs.d/client.key\"]]\n";
        }
        text
    }

    /// A file of `registries.conf.d` (containers-registries.conf(5)): the path names the registry.
    fn containers(&self) -> String {
        let mut text = "# /etc/containers/registries.conf.d/layerhold.conf\n".to_owned();
        let mut insecure = "insecure = true\n";
        if self.is_https {
            text += &format!("# {}\n", self.trust("/etc/containers/certs.d"));
            insecure = "";
        }
        for (nth, upstream) in self.upstreams.iter().enumerate() {
            let namespace = &upstream.namespace;
            if nth > 0 {
                text.push('\n');
            }
            match self.path(upstream) {
                Ok(location) => {
                    let (registry, location) = (quoted(namespace.as_str()), quoted(&location));
                    text += &format!(
                        "[[registry]]\nprefix = {registry}\nlocation = {registry}\n\
                         [[registry.mirror]]\nlocation = {location}\n{insecure}"
                    );
                }
                Err(reason) => text += &format!("# {namespace} is left out: {reason}\n"),
            }
        }
        text
    }

    /// `registries.yaml`, which k3s and RKE2 turn into one `hosts.toml` for each registry.
    fn k3s(&self) -> String {
        let mirror = self.root();
        let mirrors = self.upstreams.iter().map(|upstream| {
            let registry = quoted(upstream.namespace.as_str());
            format!("  {registry}:\n    endpoint: [{mirror}]\n")
        });
        let mirrors: String = mirrors.collect();
        let mut text = format!(
            "# /etc/rancher/k3s/registries.yaml, or /etc/rancher/rke2/registries.yaml\nmirrors:\n{mirrors}"
        );
        if self.is_https {
            let address = quoted(self.address);
            let ours = if self.shows_certificate {
                ", cert_file: /etc/rancher/client.crt, key_file: /etc/rancher/client.key"
            } else {
                ""
            };
            text += &format!(
                "# where the machine does not know the authority of its certificate:\n# configs:\n\
                 #   {address}:\n#     tls: {{ca_file: /etc/rancher/layerhold-ca.crt{ours}}}\n"
            );
        }
        text
    }

    /// `buildkitd.toml`. BuildKit's resolver is containerd's and sends `ns`, so a path would name the registry a second time.
    fn buildkit(&self) -> String {
        let address = quoted(self.address);
        let mut text = "# /etc/buildkit/buildkitd.toml\n".to_owned();
        for upstream in self.upstreams {
            let registry = quoted(upstream.namespace.as_str());
            text += &format!("[registry.{registry}]\n  mirrors = [{address}]\n");
        }
        if !self.is_https {
            return text + &format!("[registry.{address}]\n  http = true\n");
        }
        let ours = if self.shows_certificate {
            "#   [[registry.{address}.keypair]]\n#     cert = \"/etc/buildkit/client.crt\"\n#     key = \"/etc/buildkit/client.key\"\n"
        } else {
            ""
        };
        let ours = ours.replace("{address}", &address);
        text + &format!(
            "# where the machine does not know the authority of its certificate:\n\
             # [registry.{address}]\n#   ca = [\"/etc/buildkit/layerhold-ca.crt\"]\n{ours}"
        )
    }

    /// The upstream that is meant by a request that names none: by the `Host` it comes with, else the default.
    fn rootless(&self) -> Option<&UpstreamConfig> {
        let is_default = |it: &&UpstreamConfig| it.default;
        self.hosted()
            .or_else(|| self.upstreams.iter().find(is_default))
    }

    /// The upstream that this address is a `Host` of.
    fn hosted(&self) -> Option<&UpstreamConfig> {
        let bare = self
            .address
            .rsplit_once(':')
            .map_or(self.address, |(host, _)| host);
        let find = |name: &str| {
            let mut upstreams = self.upstreams.iter();
            upstreams.find(|it| it.hosts.iter().any(|host| host == name))
        };
        find(self.address).or_else(|| find(bare))
    }

    /// Where a client that sends no `ns` finds an upstream, or why it cannot.
    fn path(&self, upstream: &UpstreamConfig) -> Result<String, String> {
        let Self { address, .. } = self;
        let namespace = &upstream.namespace;
        match self.hosted() {
            Some(hosted) if hosted.namespace == *namespace => Ok((*address).to_owned()),
            Some(hosted) => Err(format!("{address} is a host of {}", hosted.namespace)),
            None if is_path(namespace) => Ok(format!("{address}/{namespace}")),
            None => Err("no image's name can have it in its path".to_owned()),
        }
    }
}

/// Whether a namespace may stand in the path of an image's name, as one with a port may not.
fn is_path(namespace: &Namespace) -> bool {
    RepositoryName::parse(namespace.as_str()).is_ok()
}

/// `text` as a string of JSON, which is one of YAML and of TOML, too.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

const DOCKER_HUB: &str = "docker.io";

#[cfg(test)]
mod tests {
    use crate::config::load::tests::load;
    use crate::net::Chain;

    use super::*;

    const README: &str = include_str!("../../README.md");

    const CLIENTS: [Client; 6] = [
        Client::Docker,
        Client::Containerd,
        Client::Podman,
        Client::Crio,
        Client::K3s,
        Client::Buildkit,
    ];

    /// A file with these upstreams, `;` between them.
    fn upstreams(list: &str) -> String {
        let tables = list.split(';').map(|it| format!("{{ {it} }}"));
        format!("upstream = [{}]", tables.collect::<Vec<_>>().join(", "))
    }

    fn snippet(client: Client, file: &str, address: &str) -> Snippet {
        let config = load(file).unwrap();
        config.client_config(client, Some(address), "-").unwrap()
    }

    /// The address that a snippet has when clients are told nothing else.
    fn address_in(listen: &str, given: Option<&str>, host_name: &str) -> Result<String, String> {
        let config = load(&format!("listen = '{listen}'")).unwrap();
        let snippet = config.client_config(Client::Docker, given, host_name);
        let snippet = snippet.map_err(|error| Chain(&error).to_string())?;
        let text: Value = serde_json::from_str(&snippet.text).unwrap();
        Ok(text["insecure-registries"][0].as_str().unwrap().to_owned())
    }

    #[test]
    fn clients_call_the_proxy_what_they_are_told_else_where_it_listens() {
        for (listen, given, expected) in [
            (
                "0.0.0.0:80",
                Some("Cache.example:5000"),
                "cache.example:5000",
            ),
            ("0.0.0.0:80", Some("[::1]:5000"), "[::1]:5000"),
            ("127.0.0.1:0", Some("192.0.2.1:5000"), "192.0.2.1:5000"),
            ("127.0.0.1:5000", None, "127.0.0.1:5000"),
            ("[2001:db8::1]:5000", None, "[2001:db8::1]:5000"),
            ("0.0.0.0:5000", None, "box:5000"),
            ("[::]:5000", None, "box:5000"),
        ] {
            assert_eq!(address_in(listen, given, "Box").unwrap(), expected);
        }
        for given in [
            "",
            "cache",
            ":5000",
            "a:0",
            "[::1]",
            "::1",
            "a:b",
            "a:1/b",
            "https://a",
            "https://a:1/b",
            "ftp://a:1",
        ] {
            let message = address_in("0.0.0.0:80", Some(given), "box").unwrap_err();
            let shown = given.trim_start_matches("https://");
            let start = format!("--address: {shown:?}: not a host and a port such as");
            assert!(message.starts_with(&start), "{message}");
        }
        for (listen, host_name) in [
            ("127.0.0.1:0", "box"),
            ("0.0.0.0:5000", "a box"),
            ("[::]:1", ""),
        ] {
            let message = address_in(listen, None, host_name).unwrap_err();
            assert!(
                message.starts_with("--address: missing: give what clients call"),
                "{message}"
            );
        }
    }

    #[test]
    fn clients_speak_tls_where_the_proxy_or_its_address_says_so() {
        const TLS: &str = "[tls]\ncertificate = '/c'\nkey = '/k'";
        const ASKING: &str = "client_ca_file = '/a'\nclient_certificates = 'required'";
        let asking = format!("{TLS}\n{ASKING}");
        for client in CLIENTS {
            for (file, address, is_https) in [
                ("", "c.example:1", false),
                ("", "https://c.example:1", true),
                (TLS, "c.example:1", true),
                (TLS, "http://c.example:1", false),
                (&asking, "HTTPS://C.example:1", true),
            ] {
                let Snippet { text, remarks } = snippet(client, file, address);
                let all = format!("{text}{}", remarks.join("\n"));
                let has = |words: &str| all.contains(words);
                let is_plain = has("http://") || has("insecure") || has("http = true");
                assert_eq!(is_plain, !is_https, "{client:?} {file} {address}: {all}");
                assert_eq!(has("the machine does not know"), is_https, "{all}");
                assert!(has("c.example:1"), "{all}");
                let asks = has("client.");
                assert_eq!(asks, is_https && file.contains(ASKING), "{client:?}: {all}");
                match client {
                    Client::Docker => drop(serde_json::from_str::<Value>(&text).unwrap()),
                    Client::K3s => {}
                    Client::Containerd | Client::Podman | Client::Crio | Client::Buildkit => {
                        drop(text.parse::<toml::Table>().unwrap());
                    }
                }
            }
        }
    }

    #[test]
    fn docker_gets_a_mirror_only_where_it_is_one_of_docker_hub() {
        let hub = "namespace = 'docker.io', url = 'https://registry-1.docker.io'";
        let other = "namespace = 'ghcr.io', url = 'https://ghcr.io'";
        for (list, is_mirror) in [
            (format!("{hub};{other}"), true),
            (format!("{other};{hub}"), false),
            (format!("{other};{hub}, default = true"), true),
            (format!("{other};{hub}, hosts = ['c.example']"), true),
            (format!("{hub};{other}, hosts = ['c.example:5000']"), false),
            (other.to_owned(), false),
        ] {
            let snippet = snippet(Client::Docker, &upstreams(&list), "c.example:5000");
            let text: Value = serde_json::from_str(&snippet.text).unwrap();
            assert_eq!(text["insecure-registries"][0], "c.example:5000", "{list}");
            let mirror = text["registry-mirrors"].get(0).and_then(Value::as_str);
            assert_eq!(
                mirror,
                is_mirror.then_some("http://c.example:5000"),
                "{list}"
            );
            assert_eq!(snippet.remarks.len(), 2 - usize::from(is_mirror), "{list}");
        }
    }

    #[test]
    fn what_a_client_cannot_name_is_left_out_and_said_so() {
        let list = upstreams(
            "namespace = 'docker.io', url = 'https://registry-1.docker.io';\
             namespace = 'a.example:5001', url = 'http://a.example:5001'",
        );
        let podman = snippet(Client::Podman, &list, "c.example:5000").text;
        let reason = "# a.example:5001 is left out: no image's name can have it in its path\n";
        assert!(podman.ends_with(reason), "{podman}");
        let podman: toml::Table = podman.parse().unwrap();
        assert_eq!(podman["registry"].as_array().unwrap().len(), 1);
        // Those that send `ns` can name it.
        for client in [Client::K3s, Client::Buildkit] {
            let text = snippet(client, &list, "c.example:5000").text;
            assert!(text.contains("\"a.example:5001\""), "{text}");
        }

        let hosted = list
            .replace(":5001'", ":5001', hosts = ['c.example']")
            .replacen(", hosts = ['c.example']", "", 1);
        let podman = snippet(Client::Podman, &hosted, "c.example:5000").text;
        assert!(
            podman
                .contains("# docker.io is left out: c.example:5000 is a host of a.example:5001\n"),
            "{podman}"
        );
        assert!(
            podman.contains("[[registry.mirror]]\nlocation = \"c.example:5000\"\n"),
            "{podman}"
        );
    }

    #[test]
    fn snippets_are_files_of_their_kind_and_say_where_they_go() {
        for client in CLIENTS {
            let Snippet { text, remarks } = snippet(client, "", "cache.example:5000");
            assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{text}");
            match client {
                Client::Docker => {
                    serde_json::from_str::<Value>(&text).unwrap();
                    assert!(remarks[0].contains("/etc/docker/daemon.json"));
                }
                Client::Containerd | Client::Podman | Client::Crio | Client::Buildkit => {
                    text.parse::<toml::Table>().unwrap();
                    assert!(text.starts_with("# /etc/") && remarks.is_empty(), "{text}");
                }
                Client::K3s => {
                    assert!(text.starts_with("# /etc/") && remarks.is_empty(), "{text}");
                    assert_eq!(
                        text.matches("    endpoint: [\"http://cache.example:5000\"]\n")
                            .count(),
                        8
                    );
                }
            }
        }
    }

    #[test]
    fn the_readme_shows_what_is_printed() {
        let two = upstreams(
            "namespace = 'docker.io', url = 'https://registry-1.docker.io';\
             namespace = 'ghcr.io', url = 'https://ghcr.io'",
        );
        for client in CLIENTS {
            let text = snippet(client, &two, "cache.example:5000").text;
            let shown = README.contains(&format!("\n{text}```\n"));
            assert!(
                shown,
                "the README does not show what {client:?} needs:\n{text}"
            );
        }
    }
}
