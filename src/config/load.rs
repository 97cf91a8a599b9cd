//! From what was given to what to run on.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use toml::Value;
use tracing::Level;

use crate::cache::{self, Share};
use crate::cli::Options;
use crate::proxy;
use crate::server;

use super::access;
use super::effective::{Config, Log, LogFormat};
use super::error::Error;
use super::file::{self, File};
use super::given::{FRESHNESS_MOST, Place, Setting, Sources, ordered};
use super::limits::ClientLimits;
use super::names::{
    ADMIN_LISTEN, CACHE_DIR, CACHE_SIZE, CONFIG, LISTEN, LOG_FORMAT, LOG_LEVEL, check_variables,
};
use super::peers;
use super::sandbox;
use super::sites::{self, Defaults};
use super::tls;
use super::upstreams;

impl Config {
    /// Puts together what was typed, the environment and the file, and checks the whole of it.
    ///
    /// Opens the configuration file and nothing else. An error is one line, its source included.
    pub fn load(options: &Options, environment: &BTreeMap<String, String>) -> Result<Self, Error> {
        Self::put_together(options, environment, true)
    }

    /// The same for a command that asks no upstream: what only pulling needs, as passwords in variables and the environment's
    /// proxies, is not looked for.
    ///
    /// # Errors
    ///
    /// When anything else is wrong.
    pub fn load_for_commands(
        options: &Options,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        Self::put_together(options, environment, false)
    }

    fn put_together(
        options: &Options,
        environment: &BTreeMap<String, String>,
        pulls: bool,
    ) -> Result<Self, Error> {
        let mut sources = Sources {
            environment,
            file: Arc::default(),
            pulls,
        };
        let path = match &options.config {
            Some(path) => Some(path.clone()),
            None => sources.variable(CONFIG.variable)?.map(PathBuf::from),
        };
        let Some(path) = path else {
            check_variables(environment, &[])?;
            return resolve(options, &sources, File::default());
        };
        let text = fs::read_to_string(&path).map_err(|source| {
            let file = path.clone();
            Error::Unreadable { file, source }
        })?;
        // Written in this moment, or mounted from nowhere: the built-in upstreams are hardly what is meant.
        if text.trim().is_empty() {
            return Err(Error::Empty { file: path });
        }
        let file = File::parse(&path, &text)?;
        check_variables(environment, &file.variables())?;
        sources.file = Arc::new(path);
        resolve(options, &sources, file)
    }
}

/// Reads every value and compares those that depend on each other.
fn resolve(options: &Options, sources: &Sources<'_>, file: File) -> Result<Config, Error> {
    let limits = file.limits;
    let clients = ClientLimits::read(sources, &limits)?;
    let count = |name: &str, value, default| sources.key(name, value).count(default);
    let manifest_bytes = sources
        .key("limits.manifest_bytes", limits.manifest_bytes)
        .size(4 * MIB, KIB..=MANIFEST_BYTES_MOST)?;
    let fills_max = count("limits.fills", limits.fills, 64)?;
    let timeouts = Timeouts::read(sources, file.timeouts)?;
    let negative_for = sources.key(
        "freshness.negative_for",
        file.freshness.negative_for.clone(),
    );
    let requests_max = count(
        "limits.requests_per_upstream",
        limits.requests_per_upstream,
        64,
    )?;
    let defaults = read_defaults(sources, file.freshness, &timeouts, requests_max)?;
    let upstreams =
        upstreams::resolve(sources, texts(&options.upstream), file.upstream, &defaults)?;
    let listen = sources.find(&LISTEN, texts(&options.listen), file.listen)?;
    let admin_listen = sources.find(
        &ADMIN_LISTEN,
        text(options.admin_listen.as_ref()),
        file.admin_listen,
    )?;
    let (listen, admin_listen) = read_addresses(listen, admin_listen)?;
    let (trusted_proxies, proxy_protocol) =
        peers::read(sources, file.trusted_proxies, file.proxy_protocol)?;
    let tls = tls::read(sources, "tls", file.tls)?;
    let certificates = tls
        .as_ref()
        .is_some_and(|it| it.clients.ca_file().is_some());
    Ok(Config {
        server: server::Config {
            listen,
            admin_listen,
            tls,
            admin_tls: tls::read(sources, "admin_tls", file.admin_tls.map(Into::into))?,
            trusted_proxies,
            proxy_protocol,
            connections_max: clients.connections,
            connections_per_source_max: clients.connections_per_source,
            requests_per_source: clients.requests_per_source,
            requests_per_identity: clients.requests_per_identity,
            header_read_timeout: timeouts.header_read,
            write_idle_timeout: timeouts.write_idle,
            drain_timeout: timeouts.drain,
        },
        access: access::read(sources, file.access, &upstreams, certificates)?,
        cache: read_cache(options, sources, file.cache, &manifest_bytes, fills_max)?,
        proxy: proxy::Config {
            upstreams,
            answer_timeout: timeouts.answer,
            manifest_bytes_max: manifest_bytes.value,
            negative_for: negative_for
                .duration(secs(5), Duration::ZERO..=FRESHNESS_MOST)?
                .value,
            bypasses_max: count("limits.bypasses", limits.bypasses, 64)?,
        },
        log: read_log(options, sources, file.log_format, file.log_level)?,
        sandbox: sandbox::read(sources, text(options.sandbox.as_ref()), file.sandbox)?,
    })
}

/// What every upstream has unless its own keys say otherwise.
fn read_defaults(
    sources: &Sources<'_>,
    table: file::Freshness,
    timeouts: &Timeouts,
    requests_max: usize,
) -> Result<Defaults, Error> {
    let any = Duration::ZERO..=FRESHNESS_MOST;
    let fresh_for = sources.key("freshness.fresh_for", table.fresh_for);
    let usable_for = sources.key("freshness.usable_for", table.usable_for);
    let retry_after = sources.key("freshness.retry_after", table.retry_after);
    let retry_after = retry_after.duration(secs(5), MILLISECOND..=DAY)?;
    Ok(Defaults {
        fresh_for: fresh_for.duration(Duration::ZERO, any.clone())?,
        usable_for: usable_for.duration(7 * DAY, any)?,
        retry_after: retry_after.value,
        connect_timeout: timeouts.connect,
        first_byte_timeout: timeouts.first_byte,
        idle_timeout: timeouts.idle,
        requests_max,
        egress: sites::egress(sources)?,
    })
}

struct Timeouts {
    answer: Duration,
    connect: Duration,
    first_byte: Duration,
    idle: Duration,
    header_read: Duration,
    write_idle: Duration,
    drain: Duration,
}

impl Timeouts {
    fn read(sources: &Sources<'_>, table: file::Timeouts) -> Result<Self, Error> {
        let read = |name: &str, value, default| {
            sources
                .key(name, value)
                .duration(secs(default), MILLISECOND..=DAY)
        };
        let drain = sources.key("timeouts.drain", table.drain);
        Ok(Self {
            // The one deadline over all others, which need not be shorter to be bounded by it.
            answer: read("timeouts.answer", table.answer, 20)?.value,
            connect: read("timeouts.connect", table.connect, 5)?.value,
            first_byte: read("timeouts.first_byte", table.first_byte, 10)?.value,
            idle: read("timeouts.idle", table.idle, 30)?.value,
            header_read: read("timeouts.header_read", table.header_read, 30)?.value,
            write_idle: read("timeouts.write_idle", table.write_idle, 60)?.value,
            // Zero is a choice here: whoever is still reading at SIGTERM is cut off.
            drain: drain.duration(secs(30), Duration::ZERO..=DAY)?.value,
        })
    }
}

fn read_cache(
    options: &Options,
    sources: &Sources<'_>,
    table: file::Cache,
    manifest_bytes: &Setting<u64>,
    fills_max: usize,
) -> Result<cache::Config, Error> {
    let size = sources.find(&CACHE_SIZE, text(options.cache_size.as_ref()), table.size)?;
    let size = size.given().map(|given| {
        let size = given.size()?;
        let text = given.text();
        let size = Setting {
            at: given.at,
            text,
            value: size,
        };
        // Below this everything is bypass: it is `200` where `200GiB` was meant.
        ordered(manifest_bytes, &size, true)?;
        Ok(size.value)
    });
    let free_space_min = sources.key("cache.free_space_min", table.free_space_min);
    let free_space_min = free_space_min.given().map(|given| given.share());
    let watermark =
        |name: &str, value, default| sources.key(name, value).percent(default, 1.0..=100.0);
    let high = watermark("cache.high_watermark", table.high_watermark, 100.0)?;
    let low = watermark("cache.low_watermark", table.low_watermark, 98.0)?;
    ordered(&low, &high, true)?;
    let repositories_max = sources.key("cache.repositories_max", table.repositories_max);
    let scrub_rate = sources.key("cache.scrub_rate", table.scrub_rate);
    Ok(cache::Config {
        dir: read_dir(options.cache_dir.as_deref(), sources, table.dir)?,
        size: size.transpose()?,
        free_space_min: free_space_min.transpose()?.unwrap_or(Share::Percent(5.0)),
        high_watermark: Share::Percent(high.value),
        low_watermark: Share::Percent(low.value),
        repositories_max: repositories_max.count(100_000)?,
        scrub_rate: scrub_rate.size(8 * MIB, 0..=u64::MAX)?.value,
        fills_max,
        faults: cache::Faults::default(),
    })
}

/// The flag, the variable, the key; else where systemd, the desktop's rules or custom put caches.
fn read_dir(
    flag: Option<&Path>,
    sources: &Sources<'_>,
    key: Option<Value>,
) -> Result<PathBuf, Error> {
    let wanted = "a directory such as `/var/cache/layerhold`";
    if let Some(dir) = flag.filter(|it| !it.as_os_str().is_empty()) {
        // A path need not be UTF-8, so it does not pass through a TOML value.
        return Ok(dir.to_owned());
    }
    let flag = flag.map(|_| Value::String(String::new()));
    if let Some(given) = sources.find(&CACHE_DIR, flag, key)?.given() {
        return Ok(PathBuf::from(given.str(wanted)?));
    }
    // A unit with several cache directories has them separated by colons (systemd.exec(5)).
    if let Some(dirs) = sources.variable("CACHE_DIRECTORY")? {
        let first = dirs.split(':').find(|dir| !dir.is_empty());
        return first.map(PathBuf::from).ok_or(Error::NoCacheDir);
    }
    // A relative XDG_CACHE_HOME is to be ignored, says the XDG base directory specification.
    if let Some(home) = sources.variable("XDG_CACHE_HOME")?
        && Path::new(&home).is_absolute()
    {
        return Ok(PathBuf::from(home).join("layerhold"));
    }
    let home = sources.variable("HOME")?.ok_or(Error::NoCacheDir)?;
    Ok(PathBuf::from(home).join(".cache").join("layerhold"))
}

/// Where both ports listen; no address serves twice.
fn read_addresses(
    listen: Place,
    admin_listen: Place,
) -> Result<(Vec<SocketAddr>, SocketAddr), Error> {
    let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let mut addresses: Vec<SocketAddr> = Vec::new();
    if let Some(given) = listen.given() {
        for given in given.list_or_one("an address such as `127.0.0.1:5000`, or a list of them")? {
            let address = given.address()?;
            if address.port() != 0 && addresses.contains(&address) {
                return Err(given.taken("listed twice"));
            }
            addresses.push(address);
        }
    } else {
        addresses.push(local(5000));
    }
    let admin = admin_listen.or(local(9555), SocketAddr::to_string, |given| given.address())?;
    // An address that stands for all takes the port of each.
    let clashes = |it: &SocketAddr| {
        let same_family = it.is_ipv4() == admin.value.is_ipv4();
        let either_is_all = it.ip().is_unspecified() || admin.value.ip().is_unspecified();
        it.port() == admin.value.port()
            && (it.ip() == admin.value.ip() || (same_family && either_is_all))
    };
    if admin.value.port() != 0 && addresses.iter().any(clashes) {
        let (at, value) = (admin.at, admin.text);
        let taken = "the registry API listens there".to_owned();
        return Err(Error::Taken { at, value, taken });
    }
    Ok((addresses, admin.value))
}

fn read_log(
    options: &Options,
    sources: &Sources<'_>,
    format: Option<Value>,
    level: Option<Value>,
) -> Result<Log, Error> {
    let format = sources.find(&LOG_FORMAT, text(options.log_format.as_ref()), format)?;
    let level = sources.find(&LOG_LEVEL, text(options.log_level.as_ref()), level)?;
    Ok(Log {
        format: read_format(format)?,
        level: read_level(level)?,
    })
}

fn read_format(place: Place) -> Result<Option<LogFormat>, Error> {
    let wanted = "`text` or `json`";
    let format = place.given().map(|given| match given.str(wanted)? {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(given.wrong(wanted)),
    });
    format.transpose()
}

fn read_level(place: Place) -> Result<Level, Error> {
    let wanted = "`error`, `warn`, `info`, `debug` or `trace`";
    let level = place.given().map(|given| match given.str(wanted)? {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err(given.wrong(wanted)),
    });
    Ok(level.transpose()?.unwrap_or(Level::INFO))
}

/// The words of a flag that may be repeated, unless it was not typed.
fn texts(words: &[String]) -> Option<Value> {
    let values: Vec<_> = words.iter().cloned().map(Value::String).collect();
    (!values.is_empty()).then_some(Value::Array(values))
}

fn text(word: Option<&String>) -> Option<Value> {
    word.cloned().map(Value::String)
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = secs(24 * 60 * 60);

/// Manifests are held in memory whole; no registry takes larger ones.
const MANIFEST_BYTES_MOST: u64 = 64 * MIB;

#[cfg(test)]
pub(super) mod tests {
    use crate::net::Chain;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let home = [("HOME", "/home/ann")];
        let pairs = home.iter().chain(pairs);
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// Loads a file of this text, without touching a disk.
    fn load_with(options: &Options, pairs: &[(&str, &str)], text: &str) -> Result<Config, Error> {
        let environment = environment(pairs);
        let path = PathBuf::from("layerhold.toml");
        let file = File::parse(&path, text)?;
        check_variables(&environment, &file.variables())?;
        let sources = Sources {
            environment: &environment,
            file: Arc::new(path),
            pulls: true,
        };
        resolve(options, &sources, file)
    }

    pub(in crate::config) fn load(text: &str) -> Result<Config, Error> {
        load_with(&Options::default(), &[], text)
    }

    /// Loads a file of this text in this environment.
    pub(in crate::config) fn load_in(pairs: &[(&str, &str)], text: &str) -> Result<Config, Error> {
        load_with(&Options::default(), pairs, text)
    }

    pub(in crate::config) fn refusal(text: &str) -> String {
        match load(text) {
            Ok(config) => panic!("accepted {text}:\n{}", config.report()),
            Err(error) => Chain(&error).to_string(),
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn nothing_configured_gives_the_documented_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.server.listen, ["127.0.0.1:5000".parse().unwrap()]);
        assert_eq!(
            config.server.admin_listen,
            "127.0.0.1:9555".parse().unwrap()
        );
        assert!(config.server.trusted_proxies.is_empty());
        assert!(!config.server.proxy_protocol);
        assert_eq!(config.server.connections_max, 16_384);
        assert_eq!(config.server.header_read_timeout, secs(30));
        assert_eq!(config.server.write_idle_timeout, secs(60));
        assert_eq!(config.server.drain_timeout, secs(30));
        assert_eq!(config.cache.dir, Path::new("/home/ann/.cache/layerhold"));
        assert_eq!(config.cache.size, None);
        assert_eq!(config.cache.free_space_min, Share::Percent(5.0));
        assert_eq!(config.cache.high_watermark, Share::Percent(100.0));
        assert_eq!(config.cache.low_watermark, Share::Percent(98.0));
        assert_eq!(config.cache.repositories_max, 100_000);
        assert_eq!(config.cache.scrub_rate, 8 * MIB);
        assert_eq!(config.cache.fills_max, 64);
        assert_eq!(config.proxy.answer_timeout, secs(20));
        assert_eq!(config.proxy.manifest_bytes_max, 4 << 20);
        assert_eq!(config.proxy.negative_for, secs(5));
        assert_eq!(config.proxy.bypasses_max, 64);
        assert_eq!(
            config.log,
            Log {
                format: None,
                level: Level::INFO
            }
        );
        let hub = &config.proxy.upstreams[0];
        assert_eq!(hub.namespace.as_str(), "docker.io");
        assert_eq!(hub.connection.own.url.host(), Some("registry-1.docker.io"));
        assert_eq!(hub.connection.own.connect_timeout, secs(5));
        assert_eq!(hub.connection.own.first_byte_timeout, secs(10));
        assert_eq!(hub.connection.own.idle_timeout, secs(30));
        assert_eq!(hub.connection.own.requests_max, 64);
        assert_eq!(hub.freshness.fresh_for, Duration::ZERO);
        assert_eq!(hub.freshness.usable_for, 7 * DAY);
        assert_eq!(hub.freshness.retry_after, secs(5));
        let names: Vec<_> = config
            .proxy
            .upstreams
            .iter()
            .map(|it| it.namespace.as_str())
            .collect();
        let rest = [
            "quay.io",
            "registry.k8s.io",
            "gcr.io",
            "mcr.microsoft.com",
            "public.ecr.aws",
            "registry.gitlab.com",
        ];
        assert_eq!(names, [&["docker.io", "ghcr.io"][..], &rest].concat());
        assert_eq!(
            config
                .proxy
                .upstreams
                .iter()
                .filter(|it| it.default)
                .count(),
            1
        );
    }

    fn every_flag() -> Options {
        Options {
            config: None,
            listen: words(&["127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0"]),
            admin_listen: Some("127.0.0.1:11".to_owned()),
            cache_dir: Some(PathBuf::from("/flag")),
            cache_size: Some("1GiB".to_owned()),
            upstream: words(&["a.example=https://a.example"]),
            log_format: Some("text".to_owned()),
            log_level: Some("warn".to_owned()),
            sandbox: Some("none".to_owned()),
        }
    }

    #[test]
    fn the_flag_goes_before_the_variable_before_the_key_before_the_default() {
        let text = "listen = \"127.0.0.1:3\"\nadmin_listen = \"127.0.0.1:13\"\nlog_level = \"trace\"\nlog_format = \"text\"\n\
            [cache]\ndir = \"/key\"\nsize = \"3GiB\"\n[[upstream]]\nnamespace = \"key.example\"\nurl = \"http://key.example\"";
        let pairs = [
            ("LAYERHOLD_LISTEN", "127.0.0.1:2, [::1]:2"),
            ("LAYERHOLD_ADMIN_LISTEN", "127.0.0.1:12"),
            ("LAYERHOLD_LOG_LEVEL", "debug"),
            ("LAYERHOLD_LOG_FORMAT", "json"),
            ("LAYERHOLD_CACHE_DIR", "/variable"),
            ("LAYERHOLD_CACHE_SIZE", "2GiB"),
            (
                "LAYERHOLD_UPSTREAM",
                "b.example=http://b.example,c.example=http://c.example:5000/",
            ),
        ];
        let seen = |config: Config| {
            let listen = config
                .server
                .listen
                .iter()
                .map(|it| it.port())
                .collect::<Vec<_>>();
            let first = config.proxy.upstreams[0].clone();
            assert!(first.default);
            let name = first.namespace.to_string();
            (
                listen,
                config.server.admin_listen.port(),
                config.cache.dir,
                config.cache.size,
                name,
                config.log,
            )
        };
        let log = |format, level| Log {
            format: Some(format),
            level,
        };
        let expected = |listen: &[u16], admin, dir: &str, gib: u64, name: &str, log| {
            (
                listen.to_vec(),
                admin,
                PathBuf::from(dir),
                Some(gib << 30),
                name.to_owned(),
                log,
            )
        };

        let flag = load_with(&every_flag(), &pairs, text).unwrap();
        let log_flag = log(LogFormat::Text, Level::WARN);
        assert_eq!(
            seen(flag),
            expected(&[1, 0, 0], 11, "/flag", 1, "a.example", log_flag)
        );
        let variable = load_with(&Options::default(), &pairs, text).unwrap();
        let log_variable = log(LogFormat::Json, Level::DEBUG);
        assert_eq!(
            seen(variable),
            expected(&[2, 2], 12, "/variable", 2, "b.example", log_variable)
        );
        let key = load_with(
            &Options::default(),
            &pairs.map(|(name, _)| (name, "")),
            text,
        )
        .unwrap();
        let log_key = log(LogFormat::Text, Level::TRACE);
        assert_eq!(
            seen(key),
            expected(&[3], 13, "/key", 3, "key.example", log_key)
        );
    }

    #[test]
    fn the_cache_goes_where_systemd_or_the_desktop_keep_caches() {
        for (pairs, dir) in [
            (
                &[
                    ("CACHE_DIRECTORY", "/var/cache/layerhold"),
                    ("XDG_CACHE_HOME", "/x"),
                ][..],
                "/var/cache/layerhold",
            ),
            (
                &[("CACHE_DIRECTORY", "/var/cache/a:/var/cache/b")],
                "/var/cache/a",
            ),
            (&[("XDG_CACHE_HOME", "/x")], "/x/layerhold"),
            (&[("XDG_CACHE_HOME", "x")], "/home/ann/.cache/layerhold"),
            (&[("XDG_CACHE_HOME", "")], "/home/ann/.cache/layerhold"),
        ] {
            let config = load_with(&Options::default(), pairs, "").unwrap();
            assert_eq!(config.cache.dir, Path::new(dir));
        }
        let error = load_with(&Options::default(), &[("HOME", "")], "").unwrap_err();
        assert!(
            error.to_string().starts_with("--cache-dir: missing: "),
            "{error}"
        );
    }

    #[test]
    fn an_upstream_has_its_own_freshness_hosts_and_tag_rules() {
        let config = load(
            "[freshness]\nfresh_for = \"1m\"\nusable_for = \"1d\"\n[[upstream]]\nnamespace = \"a.example\"\nurl = \"http://a.example:5000/\"\n\
             [[upstream]]\nnamespace = \"b.example\"\nurl = \"HTTPS://B.example\"\ndefault = true\nhosts = [\"Hub.Example\"]\n\
             fresh_for = \"2m\"\nusable_for = \"2d\"\ntags = [{ match = \"^v\\\\d+$\", fresh_for = \"30d\" }]",
        )
        .unwrap();
        let [a, b] = &config.proxy.upstreams[..] else {
            panic!("two upstreams")
        };
        assert_eq!((a.default, b.default), (false, true));
        assert_eq!(
            (a.freshness.fresh_for, a.freshness.usable_for),
            (secs(60), DAY)
        );
        assert_eq!(
            (b.freshness.fresh_for, b.freshness.usable_for),
            (secs(120), 2 * DAY)
        );
        assert_eq!(b.hosts, ["hub.example"]);
        assert!(b.tags[0].pattern.is_match("v12") && b.tags[0].fresh_for == 30 * DAY);
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place_and_what_is_allowed() {
        for row in REFUSALS.lines() {
            let (text, message) = row.split_once(" => ").unwrap();
            assert_eq!(
                refusal(text),
                format!("layerhold.toml: {message}"),
                "{text}"
            );
        }
    }

    const REFUSALS: &str = r#"timeouts.answer = "20x" => timeouts.answer: "20x": not a duration such as `20s` or `5m`
timeouts.idle = 30 => timeouts.idle: 30: not a duration such as `20s` or `5m`
timeouts.idle = "0s" => timeouts.idle: "0s": must be 1ms to 1d
timeouts.drain = "2d" => timeouts.drain: "2d": must be 0s to 1d
freshness.fresh_for = "8d" => freshness.fresh_for: "8d": must be at most freshness.usable_for (7d)
freshness.retry_after = "0s" => freshness.retry_after: "0s": must be 1ms to 1d
freshness.usable_for = "4000d" => freshness.usable_for: "4000d": must be 0s to 3650d
limits.fills = 0 => limits.fills: 0: must be 1 to 100000000
limits.connections = -1 => limits.connections: -1: must be 1 to 100000000
limits.bypasses = "64" => limits.bypasses: "64": not a whole number such as `64`
limits.manifest_bytes = "1GiB" => limits.manifest_bytes: "1GiB": must be 1KiB to 64MiB
cache.size = "lots" => cache.size: "lots": not a size such as `512MiB` or `200GiB`
cache.size = "1MiB" => cache.size: "1MiB": must be at least limits.manifest_bytes (4MiB)
cache.low_watermark = "101%" => cache.low_watermark: "101%": must be 1% to 100%
cache.high_watermark = "90%" => cache.high_watermark: "90%": must be at least cache.low_watermark (98%)
cache.high_watermark = "9GiB" => cache.high_watermark: "9GiB": not a percentage such as `95%`
cache.free_space_min = "100%" => cache.free_space_min: "100%": must be 0% to 99%
cache.scrub_rate = "off" => cache.scrub_rate: "off": not a size such as `512MiB` or `200GiB`
cache.dir = "" => cache.dir: "": not a directory such as `/var/cache/layerhold`
listen = ":5000" => listen: ":5000": not an IP address and a port such as `127.0.0.1:5000` or `[::]:5000`
listen = [] => listen: []: not an address such as `127.0.0.1:5000`, or a list of them
listen = ["[::]:1", "[::]:1"] => listen: "[::]:1": listed twice
admin_listen = "127.0.0.1:5000" => admin_listen: "127.0.0.1:5000": the registry API listens there
log_format = "xml" => log_format: "xml": not `text` or `json`
log_level = "INFO" => log_level: "INFO": not `error`, `warn`, `info`, `debug` or `trace`
upstream = [] => upstream: missing: give at least one upstream, or leave the key out"#;

    #[test]
    fn a_wrong_flag_or_variable_is_named_as_such() {
        let options = Options {
            cache_size: Some("x".to_owned()),
            ..Options::default()
        };
        let error = load_with(&options, &[("LAYERHOLD_CACHE_SIZE", "1GiB")], "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "--cache-size: \"x\": not a size such as `512MiB` or `200GiB`"
        );
        let options = Options {
            cache_dir: Some(PathBuf::new()),
            ..Options::default()
        };
        let error = load_with(&options, &[], "").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("--cache-dir: \"\": not a directory"),
            "{error}"
        );
        for (name, value, message) in [
            (
                "LAYERHOLD_LOG_LEVEL",
                "loud",
                "\"loud\": not `error`, `warn`, `info`, `debug` or `trace`",
            ),
            (
                "LAYERHOLD_LISTEN",
                "127.0.0.1:1,",
                "\"\": not an IP address",
            ),
            (
                "LAYERHOLD_ADMIN_LISTEN",
                "127.0.0.1:5000",
                "\"127.0.0.1:5000\": the registry API listens there",
            ),
            (
                "LAYERHOLD_UPSTREAM",
                "https://ghcr.io",
                "\"https://ghcr.io\": not NAMESPACE=URL",
            ),
            (
                "LAYERHOLD_UPSTREAM",
                "a.b=https://u:p@a.b",
                "\"https://***@a.b\": not a registry's root",
            ),
            ("LAYERHOLD_CACHE_DIR", "/\u{fffd}", "not UTF-8"),
            (
                "LAYERHOLD_CACH_DIR",
                "/x",
                "no such variable: expected one of LAYERHOLD_CONFIG, LAYERHOLD_LISTEN, ",
            ),
        ] {
            let error = load_with(&Options::default(), &[(name, value)], "").unwrap_err();
            let start = format!("{name}: {message}");
            assert!(error.to_string().starts_with(&start), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let options = Options {
            config: Some(PathBuf::from("/nowhere/layerhold.toml")),
            ..Options::default()
        };
        let error = Config::load(&options, &environment(&[])).unwrap_err();
        let message = Chain(&error).to_string();
        assert!(
            message.starts_with("could not read /nowhere/layerhold.toml: "),
            "{message}"
        );
    }

    #[test]
    fn a_file_named_by_a_variable_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layerhold.toml");
        fs::write(&path, "[limits]\nfills = 7").unwrap();
        let pairs = [("LAYERHOLD_CONFIG", path.to_str().unwrap())];
        let config = Config::load(&Options::default(), &environment(&pairs)).unwrap();
        assert_eq!(config.cache.fills_max, 7);
    }

    #[test]
    fn a_file_that_is_being_written_is_no_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("layerhold.toml");
        let options = Options {
            config: Some(file.clone()),
            ..Options::default()
        };
        for (text, is_one) in [("", false), ("\n \n", false), ("# nothing else\n", true)] {
            fs::write(&file, text).unwrap();
            let loaded = Config::load(&options, &environment(&[]));
            assert_eq!(loaded.is_ok(), is_one, "{text:?}");
            let empty = matches!(loaded, Err(Error::Empty { .. }));
            assert_eq!(empty, !is_one, "{text:?}");
        }
    }
}
