//! What one upstream client runs on.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;

use crate::net::{Networks, Secret};
use crate::oci::RepositoryName;

/// A registry: where it is itself, and where else it can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The registry itself.
    pub own: SiteConfig,
    /// Other places of the same registry, asked before it and in this order.
    pub mirrors: Vec<MirrorConfig>,
    /// Whether nobody is dialled at all: what is here is served, and that is all there is.
    pub offline: bool,
}

/// Another place of the same registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorConfig {
    /// Where it is, and who we are there.
    pub site: SiteConfig,
    /// Whether it is asked what tags mean and for lists, and not only for content by digest.
    pub resolves: bool,
}

/// One place of a registry, who we are there and how long we wait for it. Checked by whoever builds it: `url` has scheme
/// `http` or `https`, a host, and a path that is empty or `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteConfig {
    /// Its root, such as `https://registry-1.docker.io`.
    pub url: Uri,
    /// What stands before every repository's name there, as where a mirror keeps several registries.
    pub prefix: Option<RepositoryName>,
    /// Who we are to it; `None` is nobody.
    pub credential: Option<CredentialSource>,
    /// Who we are instead in some of its repositories; of several folders that hold one, the innermost decides.
    pub folder_credentials: Vec<FolderCredential>,
    /// Token servers that may be asked besides those of its registrable domain.
    pub token_realms: Vec<Uri>,
    /// Networks that a redirect may lead to besides the Internet and the site's own class of addresses.
    pub redirect_networks: Networks,
    /// How its certificates are checked and ours is shown.
    pub tls: TlsConfig,
    /// The egress proxies on the way.
    pub egress: Egress,
    /// How long one connection may take to be made, the way through an egress proxy included; TLS counts towards the first
    /// byte.
    pub connect_timeout: Duration,
    /// How long a sent request may wait for its response head.
    pub first_byte_timeout: Duration,
    /// How long a body may be silent.
    pub idle_timeout: Duration,
    /// How long a host that does not answer is left alone at first; doubles up to a minute.
    pub rest: Duration,
    /// Requests in flight at once; further ones wait.
    pub requests_max: usize,
    /// Parts of one blob that are asked for at once, each over a connection of its own; 1 asks for the whole. Further parts
    /// wait in memory until it is their turn.
    pub parallel_ranges: usize,
    /// What names and addresses mean; nothing but what they are, except in tests.
    pub addresses: AddressBook,
}

/// Who we are in some repositories of a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderCredential {
    /// The repository, or all those below it, by the names that they have behind the site's prefix.
    pub folder: RepositoryName,
    /// Who we are there.
    pub source: CredentialSource,
}

/// Where a user name and a password come from. What may change is read again when it has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// The password is in a file, without the line end that may follow it.
    File {
        /// The user.
        username: String,
        /// Where the password is.
        password_file: PathBuf,
    },
    /// The password was in an environment variable when the process started.
    Variable {
        /// The user.
        username: String,
        /// The variable.
        variable: String,
        /// What was in it.
        password: Secret,
    },
    /// A program of docker's credential-helper protocol knows both.
    Helper {
        /// What is run: `docker-credential-<name>` from `PATH`, or a path.
        program: PathBuf,
        /// What it is asked about: the name by which docker would ask for this registry.
        server: String,
    },
}

/// How certificates are checked, and which one is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificates (PEM) that are trusted besides the machine's own roots.
    pub ca_file: Option<PathBuf>,
    /// What we show to a site that asks who we are.
    pub client: Option<ClientCertificate>,
}

/// A certificate of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and what vouches for it (PEM).
    pub certificate: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
}

/// The HTTP proxies through which requests leave, as `http://host:port`, perhaps with user and password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// For http.
    pub http: Option<String>,
    /// For https.
    pub https: Option<String>,
    /// Hosts that are reached directly, as `NO_PROXY` lists them.
    pub except: Option<String>,
}

/// What names and addresses mean: for tests, which have one machine and no name server. An address is checked as what it is
/// and dialled as what stands here for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressBook {
    /// The addresses of some names, which are then not looked up: what the first look finds, the second, and so on; the last
    /// is found by all that follow.
    pub names: BTreeMap<String, Vec<Vec<IpAddr>>>,
    /// Who is dialled instead of some addresses; with a port, instead of the scheme's own.
    pub stand_ins: BTreeMap<IpAddr, SocketAddr>,
}

impl fmt::Debug for Egress {
    /// Without what may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("except", &self.except)
            .finish()
    }
}
