//! What an operator writes: the file, flags and variables, and the units in them.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use layerhold::cli::{Args, Client, Command, Options};
use layerhold::config::{Config, Error};
use layerhold::net::{Chain, DurationText, Rate, SizeText, parse_duration, parse_size};
use tempfile::TempDir;

use super::{Pattern, Target, text, whole};

pub(super) const SIZE: Target = Target {
    name: "size",
    run: size,
    seeds: &[
        b"200GiB",
        b"500 MB",
        b"1024",
        b" 5mib ",
        b"0",
        b"12B",
        b"1.5GiB",
        b"99999999TiB",
        b"-1",
    ],
    words: &[
        b"KiB",
        b"MB",
        b"tib",
        b"b",
        b" ",
        b"0",
        b"18446744073709551615",
        b".",
        b"\xc2\xa0",
    ],
};

fn size(input: &[u8]) -> bool {
    static PATTERN: Pattern =
        Pattern::new(|| whole(r"\s*([0-9]+)\s*((?:[KMGTkmgt][Ii]?)?[Bb])?\s*"));
    let Some(text) = text(input) else {
        return false;
    };
    let expected = PATTERN.captures(text).and_then(|it| {
        let unit = it.get(2).map_or("", |it| it.as_str()).to_ascii_lowercase();
        let power = unit.chars().next().and_then(|it| "kmgt".find(it));
        let base: u128 = if unit.contains('i') { 1024 } else { 1000 };
        let scale = power.map_or(1, |it| base.pow(u32::try_from(it).unwrap() + 1));
        u64::try_from(it[1].parse::<u128>().ok()?.checked_mul(scale)?).ok()
    });
    let parsed = parse_size(text).ok();
    assert_eq!(parsed, expected);
    if let Some(size) = parsed {
        assert_eq!(parse_size(&SizeText(size).to_string()), Ok(size));
    }
    parsed.is_some()
}

pub(super) const RATE: Target = Target {
    name: "rate",
    run: rate,
    seeds: &[
        b"100/s",
        b"600/min",
        b"5000/h",
        b"0/s",
        b"1000001/s",
        b"1/m",
    ],
    words: &[
        b"/",
        b"s",
        b"min",
        b"h",
        b"0",
        b"1",
        b" ",
        b"+",
        b"18446744073709551616",
    ],
};

fn rate(input: &[u8]) -> bool {
    static PATTERN: Pattern = Pattern::new(|| whole("0*([1-9][0-9]{0,6})/(?:s|min|h)"));
    let Some(text) = text(input) else {
        return false;
    };
    let count = PATTERN.captures(text);
    let count = count.map(|it| it[1].parse::<u32>().unwrap());
    let parsed = Rate::parse(text);
    assert_eq!(parsed.is_ok(), count.is_some_and(|it| it <= 1_000_000));
    if let Ok(rate) = parsed {
        assert_eq!(Rate::parse(&rate.to_string()), Ok(rate));
    }
    parsed.is_ok()
}

pub(super) const DURATION: Target = Target {
    name: "duration",
    run: duration,
    seeds: &[
        b"20s", b"500ms", b"1h30m", b" 7d ", b"0s", b"36500d", b"36501d", b"1.5s", b"20", b"1h 30m",
    ],
    words: &[
        b"ms",
        b"s",
        b"m",
        b"h",
        b"d",
        b"0",
        b" ",
        b"18446744073709551615",
        b"-",
        b"\xc2\xa0",
    ],
};

fn duration(input: &[u8]) -> bool {
    static PATTERN: Pattern = Pattern::new(|| whole(r"\s*(?:[0-9]+(?:ms|s|m|h|d))+\s*"));
    static PART: Pattern = Pattern::new(|| regex::Regex::new("([0-9]+)(ms|s|m|h|d)").unwrap());
    let Some(text) = text(input) else {
        return false;
    };
    let millis = PART.captures_iter(text).try_fold(0_u128, |sum, it| {
        let scale = match &it[2] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 86_400_000,
        };
        let number: u128 = it[1].parse().ok()?;
        sum.checked_add(number.checked_mul(scale)?)
    });
    let is_bounded = |it: &u128| *it <= 36_500 * 86_400_000;
    let expected = millis.filter(|it| PATTERN.is_match(text) && is_bounded(it));
    let parsed = parse_duration(text).ok();
    assert_eq!(parsed.as_ref().map(Duration::as_millis), expected);
    if let Some(duration) = parsed {
        assert_eq!(
            parse_duration(&DurationText(duration).to_string()),
            Ok(duration)
        );
    }
    parsed.is_some()
}

pub(super) const CONFIG: Target = Target {
    name: "config",
    run: |input| {
        let config = load(&Options::default(), &environment(), Some(input));
        is_right(&config, &environment(), !contains(input, SECRET))
    },
    seeds: &[
        include_bytes!("../../../deploy/layerhold.toml"),
        b"listen = [\"[::]:0\", \"127.0.0.1:0\"]\nlog_format = \"json\"\nlog_level = \"debug\"\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\nproxy_protocol = true\n[cache]\ndir = '/with \"quotes\" and \\'\nsize = \"1TiB\"\nfree_space_min = \"10GiB\"\nlow_watermark = \"92.5%\"\nscrub_rate = \"0B\"\n[timeouts]\nconnect = \"250ms\"\n[freshness]\nfresh_for = \"1m\"\nnegative_for = \"0s\"\n[limits]\nfills = 7\n",
        b"[[upstream]]\nnamespace = \"a.example:5000\"\nurl = \"http://a.example:5000\"\nfresh_for = \"8d\"\nusable_for = \"9d\"\n[[upstream]]\nnamespace = \"localhost\"\nurl = \"http://[::1]:5001/\"\ndefault = true\nhosts = [\"x\", \"y:5000\"]\ntags = [{ match = '^\"v\\d+$', fresh_for = \"1d\" }]\noffline = true\nusername = 'u'\npassword_file = '/p'\ntoken_realms = ['https://t.x']\nredirect_networks = ['10.0.0.0/8']\nca_file = '/c'\nclient_certificate = '/d'\nclient_key = '/k'\nproxy = 'egress:3128'\n[[upstream.mirror]]\nurl = 'https://m.x/hub/a'\nresolve = false\ncredential_helper = 'ecr-login'\nproxy = 'none'\n[[upstream.mirror]]\nurl = 'http://n.x:1'\nusername = 'r'\npassword_env = 'HUB_PASSWORD'\n",
        b"[cache]\nsize = \"1MiB\"\n",
        b"listen = 5\nlisen = 6",
    ],
    words: &[
        b"\n", b"=", b"\"", b"'", b"'''", b"[", b"]", b"{", b"}", b"[[upstream]]\n", b"[[upstream.mirror]]\n",
        b"#", b"\\", b".", b"-", b"1e9", b"nan", b"nan%", b"true", b"1979-05-27", b"0", b"@", b"/", b":",
        b"\xc3\xa9", b"\0", b"\\u0000", b"url = 'https://m.x/a'\n", b"proxy = 'none'\n",
        b"hosts = ['x']\n", b"99999999999999999999", b"..", b"\xe2\x80\xae",
    ],
};

pub(super) const OPTIONS: Target = Target {
    name: "options",
    run: options,
    seeds: &[
        b"--listen=0.0.0.0:5000\n--cache-size=200GiB\n--log-level=debug\n--upstream=ghcr.io=https://ghcr.io",
        b"LAYERHOLD_UPSTREAM=ghcr.io=https://ghcr.io,quay.io=https://quay.io\nLAYERHOLD_LISTEN=[::]:0\nXDG_CACHE_HOME=/x",
        b"https_proxy=http://u:hushhush@egress:3128\nNO_PROXY=.example,10.0.0.0/8\nCACHE_DIRECTORY=/a:/b",
        b"--admin-listen=127.0.0.1:9555\n--cache-dir=/var/cache\n--log-format=json",
        b"LAYERHOLD_PORT_5000_TCP=tcp://10.0.0.1:5000\nLAYERHOLD_CACH_DIR=/x",
        b"--upstream=a.b=https://u:hushhush@a.b",
    ],
    words: &[
        b"\n", b"=", b",", b":", b"--listen=", b"--upstream=", b"--cache-size=", b"LAYERHOLD_", b"LAYERHOLD_LISTEN=",
        b"HTTP_PROXY=", b"ALL_PROXY=", b"http://", b"@", b"/", b"\xff", b"\0", b"\xef\xbf\xbd", b"[::1]:1",
    ],
};

/// Lines that begin with `--` are flags; others are variables. None of them names a file, since that would be opened.
fn options(input: &[u8]) -> bool {
    let words = String::from_utf8_lossy(input);
    let lines = words
        .lines()
        .filter(|line| !line.to_ascii_lowercase().contains("config"));
    let (flags, variables): (Vec<&str>, Vec<&str>) = lines.partition(|it| it.starts_with("--"));
    let mut environment = environment();
    let pairs = variables.iter().filter_map(|it| it.split_once('='));
    environment.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let typed = ["layerhold", "serve"].into_iter().chain(flags);
    let Ok(Args {
        command: Command::Serve(options),
    }) = Args::try_parse_from(typed)
    else {
        return false;
    };
    // Elsewhere than in the place of a password it is none; nor is it in a name, or in that of a directory.
    let has_no_place = |line: &str| {
        let name = line.split_once('=').map_or(line, |(name, _)| name);
        let name = name.to_ascii_lowercase();
        [SECRET, "dir", "home"].iter().any(|it| name.contains(it))
    };
    let mut lines = words.lines().filter(|it| it.contains(SECRET));
    let is_secret = words.split(SECRET).skip(1).all(|it| it.starts_with('@'))
        && words.matches(SECRET).count() == words.matches(&format!("//u:{SECRET}@")).count()
        && !lines.any(has_no_place);
    let config = load(&options, &environment, None);
    is_right(&config, &environment, is_secret)
}

fn contains(input: &[u8], text: &str) -> bool {
    input.windows(text.len()).any(|it| it == text.as_bytes())
}

/// A password in variables.
const SECRET: &str = "hushhush";

pub(super) const CLIENT_CONFIG: Target = Target {
    name: "client_config",
    run: client_config,
    seeds: &[
        b"docker\ncache.example:5000\n",
        b"containerd\n\n[[upstream]]\nnamespace = 'ghcr.io'\nurl = 'https://ghcr.io'\n[[upstream]]\nnamespace = 'localhost:5000'\nurl = 'http://localhost:5000'\n",
        b"podman\ncache:5000\n[[upstream]]\nnamespace = 'docker.io'\nurl = 'https://registry-1.docker.io'\n",
        b"crio\n[::1]:5000\n",
        b"k3s\n10.0.0.1:5000\nlisten = '0.0.0.0:7000'\n",
        b"buildkit\n\n",
    ],
    words: &[
        b"\n", b"docker", b"containerd", b"podman", b"buildkit", b":", b"\"", b"'", b"[", b"]", b"::1", b"cache",
        b"\\", b" ", b"[[upstream]]\nnamespace = 'a.b'\nurl = 'http://a.b'\n", b"listen = '[::]:80'\n",
    ],
};

/// A line for the client, one for the address, and the file.
fn client_config(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (client, address, file) = (Client::from_str(line(), true), line(), line());
    let file = Some(file.as_bytes()).filter(|it| !it.trim_ascii().is_empty());
    let config = load(&Options::default(), &environment(), file);
    let (Ok(client), Ok(config)) = (client, config) else {
        return false;
    };
    let given = Some(address).filter(|it| !it.is_empty());
    let snippet = match config.client_config(client, given, "cache-host") {
        Ok(snippet) => snippet,
        Err(error) => {
            is_one_line(&error);
            return false;
        }
    };
    let is_wrong = |it: char| it.is_control() && it != '\n';
    assert!(!snippet.text.contains(is_wrong), "{}", snippet.text);
    match client {
        Client::Docker => {
            let json = serde_json::from_str::<serde_json::Value>(&snippet.text);
            assert!(json.is_ok(), "{json:?}: {}", snippet.text);
        }
        Client::Containerd | Client::Podman | Client::Crio | Client::Buildkit => {
            let parsed = snippet.text.parse::<toml::Table>();
            assert!(parsed.is_ok(), "{parsed:?}: {}", snippet.text);
        }
        Client::K3s => {}
    }
    true
}

/// Whether there is a configuration, which then reads back from its report; else that is said in one line.
fn is_right(
    config: &Result<Config, Error>,
    environment: &BTreeMap<String, String>,
    is_secret: bool,
) -> bool {
    let shown = match config {
        Ok(config) => config.report(),
        Err(error) => Chain(error).to_string(),
    };
    assert!(!is_secret || !shown.contains(SECRET), "a secret: {shown}");
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            is_one_line(error);
            return false;
        }
    };
    let report = config.report();
    let ours = |name: &String| !name.starts_with("LAYERHOLD_");
    let rest = environment.clone().into_iter();
    let environment: BTreeMap<_, _> = rest.filter(|(name, _)| ours(name)).collect();
    let again = load(&Options::default(), &environment, Some(report.as_bytes()));
    let again = again.unwrap_or_else(|error| panic!("{}\n{report}", Chain(&error)));
    assert_eq!(again.report(), report, "the report reads back");
    assert_eq!(format!("{again:?}"), format!("{config:?}"), "to the same");
    true
}

fn is_one_line(error: &Error) {
    let message = Chain(error).to_string();
    assert!(!message.contains(char::is_control), "one line: {message:?}");
}

fn environment() -> BTreeMap<String, String> {
    let pairs = [("HOME", "/home/ann"), ("HUB_PASSWORD", SECRET)];
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    pairs.into_iter().collect()
}

/// Loads as the program does, from a file of this content.
fn load(
    options: &Options,
    environment: &BTreeMap<String, String>,
    content: Option<&[u8]>,
) -> Result<Config, Error> {
    thread_local! {
        static PLACE: LazyCell<(TempDir, PathBuf)> = LazyCell::new(|| {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("layerhold.toml");
            (dir, file)
        });
    }
    let Some(content) = content else {
        return Config::load(options, environment);
    };
    let file = PLACE.with(|place| place.1.clone());
    fs::write(&file, content).unwrap();
    let options = Options {
        config: Some(file),
        ..options.clone()
    };
    Config::load(&options, environment)
}
