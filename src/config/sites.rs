//! How a registry or a mirror of it is reached, and as whom.

use std::time::Duration;

use http::Uri;
use toml::Value;

use crate::net::{Networks, Secret};
use crate::oci::RepositoryName;
use crate::upstream::{
    AddressBook, ClientCertificate, CredentialSource, Egress, FolderCredential, MirrorConfig,
    SiteConfig, TlsConfig,
};

use super::addresses::{read_address, read_url};
use super::error::{At, Error};
use super::file;
use super::given::{Given, Place, Setting, Sources};
use super::networks::read_networks;

/// What an upstream has unless its own keys say otherwise.
pub(super) struct Defaults {
    pub(super) fresh_for: Setting<Duration>,
    pub(super) usable_for: Setting<Duration>,
    pub(super) retry_after: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) first_byte_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) requests_max: usize,
    /// The proxies that the environment names.
    pub(super) egress: Egress,
}

/// The keys of one table.
pub(super) struct Keys<'a> {
    pub(super) sources: &'a Sources<'a>,
    /// The table, as messages name it.
    pub(super) table: String,
}

impl Keys<'_> {
    pub(super) fn place(&self, name: &str, value: Option<Value>) -> Place {
        self.sources.key(&format!("{}.{name}", self.table), value)
    }

    fn missing(&self, name: &str, wanted: &'static str) -> Error {
        let at = self.sources.at(&format!("{}.{name}", self.table));
        Error::Missing { at, wanted }
    }
}

/// A site that is nothing but its address.
pub(super) fn bare(url: Uri, defaults: &Defaults) -> SiteConfig {
    SiteConfig {
        url,
        prefix: None,
        credential: None,
        folder_credentials: Vec::new(),
        token_realms: Vec::new(),
        redirect_networks: Networks::default(),
        tls: TlsConfig::default(),
        egress: defaults.egress.clone(),
        connect_timeout: defaults.connect_timeout,
        first_byte_timeout: defaults.first_byte_timeout,
        idle_timeout: defaults.idle_timeout,
        rest: defaults.retry_after,
        requests_max: defaults.requests_max,
        parallel_ranges: 1,
        addresses: AddressBook::default(),
    }
}

/// A mirror, whose address may have a path: the part that stands before the names of repositories there.
pub(super) fn mirror(
    keys: &Keys<'_>,
    mut table: file::Mirror,
    defaults: &Defaults,
) -> Result<MirrorConfig, Error> {
    let site = table.site();
    let url = keys.place("url", table.url).given();
    let url = url.ok_or_else(|| keys.missing("url", MIRROR_URL))?;
    let uri = read_address(&url, MIRROR_URL)?;
    let prefix = match uri.path().trim_matches('/') {
        "" => None,
        path => Some(RepositoryName::parse(path).map_err(|_| url.wrong(MIRROR_URL))?),
    };
    let resolves = keys.place("resolve", table.resolve).given();
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let root = Uri::from_parts(parts).map_err(|_| url.wrong(MIRROR_URL))?;
    let mut mirror = MirrorConfig {
        site: SiteConfig {
            prefix,
            ..bare(root, defaults)
        },
        resolves: resolves.map_or(Ok(true), |it| it.bool())?,
    };
    read(keys, site, &mut mirror.site)?;
    Ok(mirror)
}

/// Reads what a registry and its mirrors have in common into a site that is nothing but its address so far.
pub(super) fn read(keys: &Keys<'_>, table: file::Site, site: &mut SiteConfig) -> Result<(), Error> {
    if let Some(realms) = keys.place("token_realms", table.token_realms).given() {
        for realm in realms.list(REALMS)? {
            site.token_realms.push(read_url(&realm)?);
        }
    }
    let networks = keys.place("redirect_networks", table.redirect_networks);
    if let Some(networks) = networks.given() {
        site.redirect_networks = read_networks(networks)?;
    }
    if let Some(file) = keys.place("ca_file", table.ca_file).given() {
        site.tls.ca_file = Some(file.str(FILE)?.into());
    }
    let certificate = keys.place("client_certificate", table.client_certificate);
    let key = keys.place("client_key", table.client_key);
    site.tls.client = match (certificate.given(), key.given()) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(ClientCertificate {
            certificate: certificate.str(FILE)?.into(),
            key: key.str(FILE)?.into(),
        }),
        (Some(_), None) => return Err(keys.missing("client_key", FILE)),
        (None, Some(_)) => return Err(keys.missing("client_certificate", FILE)),
    };
    if let Some(proxy) = keys.place("proxy", table.proxy).given() {
        site.egress = read_proxy(&proxy)?;
    }
    if let Some(given) = keys.place("parallel_ranges", table.parallel_ranges).given() {
        site.parallel_ranges = given.count(PARALLEL_RANGES_MAX)?;
    }
    let credential = Credential {
        username: keys.place("username", table.username).given(),
        password_file: keys.place("password_file", table.password_file).given(),
        password_env: keys.place("password_env", table.password_env).given(),
        helper: keys
            .place("credential_helper", table.credential_helper)
            .given(),
    };
    site.credential = credential.read(keys, &site.url)?;
    for (nth, folder) in table.credential.into_iter().enumerate() {
        let table = format!("{}.credential[{}]", keys.table, nth + 1);
        let sources = keys.sources;
        read_folder(&Keys { sources, table }, folder, site)?;
    }
    Ok(())
}

/// Reads who we are in some repositories.
fn read_folder(
    keys: &Keys<'_>,
    table: file::Credential,
    site: &mut SiteConfig,
) -> Result<(), Error> {
    let given = keys.place("repositories", table.repositories).given();
    let given = given.ok_or_else(|| keys.missing("repositories", REPOSITORIES))?;
    let folder = RepositoryName::parse(given.str(REPOSITORIES)?);
    let folder = folder.map_err(|_| given.wrong(REPOSITORIES))?;
    if site.folder_credentials.iter().any(|it| it.folder == folder) {
        return Err(given.taken("another credential is for these"));
    }
    let credential = Credential {
        username: keys.place("username", table.username).given(),
        password_file: keys.place("password_file", table.password_file).given(),
        password_env: keys.place("password_env", table.password_env).given(),
        helper: keys
            .place("credential_helper", table.credential_helper)
            .given(),
    };
    let source = credential.read(keys, &site.url)?;
    let source = source.ok_or_else(|| keys.missing("username", USERNAME))?;
    site.folder_credentials
        .push(FolderCredential { folder, source });
    Ok(())
}

/// More connections for one blob are no way to treat a registry.
const PARALLEL_RANGES_MAX: i64 = 16;

/// The keys that say who we are.
struct Credential {
    username: Option<Given>,
    password_file: Option<Given>,
    password_env: Option<Given>,
    helper: Option<Given>,
}

impl Credential {
    fn read(self, keys: &Keys<'_>, url: &Uri) -> Result<Option<CredentialSource>, Error> {
        let both = |given: &Given, other: &str| {
            Err(given.taken(format!("{}.{other} is given already", keys.table)))
        };
        if let Some(helper) = self.helper {
            if self.username.is_some() || self.password_file.is_some() {
                let other = self.username.map_or("password_file", |_| "username");
                return both(&helper, other);
            }
            if self.password_env.is_some() {
                return both(&helper, "password_env");
            }
            let program = read_helper(&helper)?;
            let server = helper_server(url);
            return Ok(Some(CredentialSource::Helper { program, server }));
        }
        let username = match (self.username, &self.password_file, &self.password_env) {
            (None, None, None) => return Ok(None),
            (None, ..) => return Err(keys.missing("username", USERNAME)),
            (Some(username), ..) => {
                let name = username.str(USERNAME)?;
                // A colon ends the user in what is sent (RFC 7617 §2).
                if name.contains(|it: char| it == ':' || it.is_control()) {
                    return Err(username.wrong(USERNAME));
                }
                name.to_owned()
            }
        };
        match (self.password_file, self.password_env) {
            (Some(_), Some(variable)) => both(&variable, "password_file"),
            (Some(file), None) => Ok(Some(CredentialSource::File {
                username,
                password_file: file.str(FILE)?.into(),
            })),
            (None, Some(given)) => {
                let variable = given.str(VARIABLE)?;
                let password = keys.sources.variable(variable)?;
                if password.is_none() && keys.sources.pulls {
                    return Err(given.wrong(VARIABLE));
                }
                let password = password.unwrap_or_default();
                Ok(Some(CredentialSource::Variable {
                    username,
                    variable: variable.to_owned(),
                    password: Secret::new(password),
                }))
            }
            (None, None) => Err(keys.missing("password_file", PASSWORD)),
        }
    }
}

/// The egress proxies that the environment names, as most programs read it: lower case comes first, since a web server
/// may have set `HTTP_PROXY` from a request's `Proxy` header.
pub(super) fn egress(sources: &Sources<'_>) -> Result<Egress, Error> {
    if !sources.pulls {
        return Ok(Egress::default());
    }
    let read = |names: [&str; 4]| -> Result<Option<String>, Error> {
        for name in names {
            if let Some(value) = sources.variable(name)? {
                let given = Given {
                    at: At::Variable(name.to_owned()),
                    value: Value::String(value),
                };
                let address = proxy_address(&given, true).map_err(|_| given.wrong(VARIABLE_PROXY));
                return address.map(Some);
            }
        }
        Ok(None)
    };
    let except = match sources.variable("no_proxy")? {
        Some(hosts) => Some(hosts),
        None => sources.variable("NO_PROXY")?,
    };
    Ok(Egress {
        http: read(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?,
        https: read(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
        except,
    })
}

/// No proxy, whatever the environment says.
pub(super) fn no_egress() -> Egress {
    Egress {
        except: Some("*".to_owned()),
        ..Egress::default()
    }
}

fn read_proxy(given: &Given) -> Result<Egress, Error> {
    if given.str(PROXY)? == NO_PROXY {
        return Ok(no_egress());
    }
    let address = proxy_address(given, false)?;
    Ok(Egress {
        http: Some(address.clone()),
        https: Some(address),
        except: None,
    })
}

/// `http://host:port`, with a user only where that is no configuration file's.
fn proxy_address(given: &Given, has_user: bool) -> Result<String, Error> {
    let text = given.str(PROXY)?;
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let (bare, user) = match text.rsplit_once('@') {
        Some((user, host)) => (
            format!("http://{host}"),
            user.strip_prefix("http://").map(str::to_owned),
        ),
        None => (text.clone(), Some(String::new())),
    };
    let at = given.at.clone();
    let bare = Given {
        at,
        value: Value::String(bare),
    };
    let uri = read_url(&bare).map_err(|_| given.wrong(PROXY))?;
    let is_plain = uri.scheme_str() == Some("http");
    let user_allowed = user.is_some_and(|user| has_user || user.is_empty());
    // A password with a slash or an at sign in it, not encoded, would make another host of the user, or none.
    let whole: Option<Uri> = text.parse().ok();
    let is_meant = text.matches('@').count() < 2
        && whole.is_some_and(|it| it.host() == uri.host() && it.port() == uri.port());
    if is_plain && user_allowed && is_meant {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err(given.wrong(PROXY))
    }
}

/// What is run for `ecr-login`, or for a path.
fn read_helper(given: &Given) -> Result<std::path::PathBuf, Error> {
    let name = given.str(HELPER)?;
    if name.contains('/') {
        return Ok(name.into());
    }
    let is_word = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
    if name.chars().all(is_word) && !name.starts_with('-') {
        Ok(format!("docker-credential-{name}").into())
    } else {
        Err(given.wrong(HELPER))
    }
}

/// What docker asks a helper about: the registry's host, and for Docker Hub the address of its old index.
fn helper_server(url: &Uri) -> String {
    let host = url.authority().map_or("", |it| it.as_str());
    match host {
        "registry-1.docker.io" | "index.docker.io" | "docker.io" => HUB_SERVER.to_owned(),
        _ => host.to_owned(),
    }
}

/// The name by which docker and its helpers keep the credentials of Docker Hub.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// The word for no proxy, whatever the environment says.
pub(super) const NO_PROXY: &str = "none";

const MIRROR_URL: &str = "a mirror's address such as `https://mirror.example` or `https://mirror.example/docker.io`: http or https, a host, perhaps a port and a path, and no user or query";
const REALMS: &str = "a list of token servers such as `[\"https://auth.example\"]`";
const FILE: &str = "a file such as `/etc/layerhold/hub.pem`";
const REPOSITORIES: &str =
    "a repository such as `team/app`, or what stands before the names of several, such as `team`";
const USERNAME: &str = "a user name without a colon";
const PASSWORD: &str = "where the password is: password_file or password_env";
const VARIABLE: &str = "the name of an environment variable that is set";
const HELPER: &str =
    "a credential helper such as `ecr-login`, which runs docker-credential-ecr-login, or a path";
const VARIABLE_PROXY: &str = "a proxy such as `http://egress.example:3128`, the only kind that is understood: unset it for this program, and name one by `proxy`";
const PROXY: &str = "`none`, or a proxy such as `http://egress.example:3128`; one that wants a password is named by HTTP_PROXY and HTTPS_PROXY";

#[cfg(test)]
mod tests {
    use crate::config::load::tests::{load, load_in, refusal};

    use super::*;

    fn site(keys: &str) -> SiteConfig {
        let text = format!("[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b:5000'\n{keys}");
        let config = load(&text).unwrap_or_else(|error| panic!("{keys}: {error}"));
        config.proxy.upstreams[0].connection.own.clone()
    }

    #[test]
    fn every_key_of_a_site_finds_its_place() {
        let site = site(
            "username = 'robot'\npassword_file = '/p'\ntoken_realms = ['https://t.c']\n\
             redirect_networks = ['10.0.0.0/8', '::1']\nca_file = '/ca'\nclient_certificate = '/c'\nclient_key = '/k'\n\
             proxy = 'http://egress:3128'",
        );
        let (username, password_file) = ("robot".to_owned(), "/p".into());
        let file = CredentialSource::File {
            username,
            password_file,
        };
        assert_eq!(site.credential, Some(file));
        assert_eq!(site.token_realms, ["https://t.c"]);
        let networks: Vec<_> = site
            .redirect_networks
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(networks, ["10.0.0.0/8", "::1"]);
        assert_eq!(site.tls.ca_file, Some("/ca".into()));
        assert_eq!(site.tls.client.unwrap().key, std::path::Path::new("/k"));
        assert_eq!(site.egress.https.as_deref(), Some("http://egress:3128"));
    }

    #[test]
    fn a_list_may_be_empty_as_by_default() {
        let site = site("token_realms = []\nredirect_networks = []\nhosts = []");
        assert!(site.token_realms.is_empty() && site.redirect_networks.is_empty());
    }

    #[test]
    fn a_helper_is_a_name_or_a_path_and_asked_by_dockers_name() {
        for (name, program) in [
            ("ecr-login", "docker-credential-ecr-login"),
            ("/opt/x", "/opt/x"),
        ] {
            let source = site(&format!("credential_helper = '{name}'")).credential;
            let (program, server) = (program.into(), "a.b:5000".to_owned());
            assert_eq!(source, Some(CredentialSource::Helper { program, server }));
        }
        let hub = "https://registry-1.docker.io".parse().unwrap();
        assert_eq!(helper_server(&hub), HUB_SERVER);
    }

    #[test]
    fn a_mirror_may_have_a_path_before_its_names() {
        let text = "[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b'\n[[upstream.mirror]]\nurl = 'http://m.x:1/hub/proxy/'\nresolve = false\n\
                    [[upstream.mirror]]\nurl = 'https://n.x'\nusername = 'u'\npassword_file = '/f'";
        let config = load(text).unwrap();
        let [first, second] = &config.proxy.upstreams[0].connection.mirrors[..] else {
            panic!("not two");
        };
        assert_eq!(first.site.url, "http://m.x:1/");
        assert_eq!(
            first.site.prefix.as_ref().map(RepositoryName::as_str),
            Some("hub/proxy")
        );
        assert!(!first.resolves && second.resolves);
        assert!(first.site.credential.is_none() && second.site.credential.is_some());
    }

    #[test]
    fn a_variable_that_is_no_text_is_not_shown() {
        let broken = "hu\u{fffd}sh";
        let file = "[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b'\nusername = 'u'\npassword_env = 'HUB'";
        for name in ["HUB", "HTTPS_PROXY"] {
            let error = load_in(&[("HUB", "right"), (name, broken)], file).unwrap_err();
            assert_eq!(error.to_string(), format!("{name}: not UTF-8"));
        }
    }

    #[test]
    fn proxies_come_from_the_environment_unless_the_file_has_one() {
        let variables = [
            ("HTTPS_PROXY", "http://u:p@egress:1"),
            ("all_proxy", "egress:2"),
            ("no_proxy", "localhost"),
        ];
        let upstreams = "[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b'\n[[upstream]]\nnamespace = 'c.d'\nurl = 'https://c.d'\nproxy = 'none'";
        let config = load_in(&variables, upstreams).unwrap();
        let [first, second] = &config.proxy.upstreams[..] else {
            panic!("not two");
        };
        let egress = &first.connection.own.egress;
        assert_eq!(egress.https.as_deref(), Some("http://u:p@egress:1"));
        assert_eq!(egress.http.as_deref(), Some("http://egress:2"));
        assert_eq!(egress.except.as_deref(), Some("localhost"));
        assert!(!format!("{config:?}").contains("u:p"));
        assert_eq!(second.connection.own.egress.https, None);
        let report = config.report();
        assert!(report.contains("\nproxy = \"none\"\n"), "{report}");
        assert!(!report.contains("u:p"), "{report}");
        for password in ["1/b", "a#b", "a?b", "a@b"] {
            let proxy = format!("http://u:{password}@x:1");
            let message = load_in(&[("HTTPS_PROXY", &*proxy)], "").unwrap_err();
            assert!(!message.to_string().contains(password), "{message}");
        }
        let wrong = [("HTTPS_PROXY", "socks5://u:p@x:1")];
        let message = load_in(&wrong, "").unwrap_err().to_string();
        assert!(
            message.starts_with("HTTPS_PROXY: \"socks5://***@x:1\": not a proxy such as"),
            "{message}"
        );
    }

    #[test]
    fn a_password_may_be_in_a_variable_that_the_file_names() {
        let text = "[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b'\nusername = 'u'\npassword_env = 'LAYERHOLD_HUB'";
        let config = load_in(&[("LAYERHOLD_HUB", "hush")], text).unwrap();
        let own = &config.proxy.upstreams[0].connection.own;
        let Some(CredentialSource::Variable { password, .. }) = &own.credential else {
            panic!("{own:?}");
        };
        assert_eq!(password.reveal(), "hush");
        assert!(!format!("{config:?}{}", config.report()).contains("hush"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_key() {
        for (keys, message) in REFUSALS {
            let text = format!("[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b'\n{keys}");
            let refusal = refusal(&text);
            let start = format!("layerhold.toml: upstream[a.b].{message}");
            assert!(refusal.starts_with(&start), "{refusal}\n{start}");
        }
    }

    const REFUSALS: [(&str, &str); 22] = [
        (
            "username = 'u'",
            "password_file: missing: give where the password is",
        ),
        (
            "password_file = '/f'",
            "username: missing: give a user name",
        ),
        (
            "username = 'a:b'\npassword_file = '/f'",
            "username: \"a:b\": not a user name without a colon",
        ),
        (
            "username = 'u'\npassword_file = '/f'\npassword_env = 'X'",
            "password_env: \"X\": upstream[a.b].password_file is given already",
        ),
        (
            "username = 'u'\npassword_env = 'X'",
            "password_env: \"X\": not the name of an environment variable that is set",
        ),
        (
            "username = 'u'\ncredential_helper = 'x'",
            "credential_helper: \"x\": upstream[a.b].username is given already",
        ),
        (
            "credential_helper = 'a b'",
            "credential_helper: \"a b\": not a credential helper",
        ),
        (
            "token_realms = 'https://x'",
            "token_realms: \"https://x\": not a list of token servers",
        ),
        (
            "token_realms = ['x']",
            "token_realms: \"x\": not a registry's root",
        ),
        (
            "redirect_networks = ['10.0.0.0/33']",
            "redirect_networks: \"10.0.0.0/33\": not an address such as",
        ),
        (
            "client_certificate = '/c'",
            "client_key: missing: give a file",
        ),
        (
            "client_key = '/c'",
            "client_certificate: missing: give a file",
        ),
        (
            "proxy = 'https://x'",
            "proxy: \"https://x\": not `none`, or a proxy",
        ),
        (
            "proxy = 'http://u:p@x'",
            "proxy: \"http://***@x\": not `none`, or a proxy",
        ),
        ("offline = 1", "offline: 1: not true or false"),
        (
            "[[upstream.mirror]]\nresolve = true",
            "mirror[1].url: missing: give a mirror's address",
        ),
        (
            "[[upstream.mirror]]\nurl = 'https://m/A'",
            "mirror[1].url: \"https://m/A\": not a mirror's address",
        ),
        (
            "[[upstream.credential]]\ncredential_helper = 'x'",
            "credential[1].repositories: missing: give a repository such as",
        ),
        (
            "[[upstream.credential]]\nrepositories = 'a/'",
            "credential[1].repositories: \"a/\": not a repository such as",
        ),
        (
            "[[upstream.credential]]\nrepositories = 'a'",
            "credential[1].username: missing: give a user name",
        ),
        (
            "[[upstream.credential]]\nrepositories = 'a'\ncredential_helper = 'x'\n\
             [[upstream.credential]]\nrepositories = 'a'\ncredential_helper = 'y'",
            "credential[2].repositories: \"a\": another credential is for these",
        ),
        (
            "[[upstream.mirror]]\nurl = 'https://m'\n[[upstream.mirror.credential]]\nrepositories = 'a'\n\
             username = 'u'\npassword_env = 'X'",
            "mirror[1].credential[1].password_env: \"X\": not the name of an environment variable",
        ),
    ];
}
