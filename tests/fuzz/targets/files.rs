//! Files that an operator keeps for us, and the one that says whose the cache directory is.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use layerhold::cache::{self, Cache, OpenError};
use layerhold::cli::Options;
use layerhold::config::Config;
use layerhold::net::Chain;
use layerhold::upstream::check_files;
use prometheus::Registry;
use tempfile::TempDir;

use super::{Pattern, Target, text, whole};

/// A directory with one file, and a configuration that names it.
struct Place {
    _home: TempDir,
    file: PathBuf,
    config: Config,
}

impl Place {
    /// Where `FILE` in the configuration stands for the file.
    fn new(name: &str, config: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(name);
        let dir = home.path().to_str().unwrap();
        let text = config.replace("FILE", file.to_str().unwrap());
        // Not where the cache is, which has to be empty.
        let own = tempfile::tempdir().unwrap();
        let path = own.path().join("layerhold.toml");
        fs::write(&path, format!("cache.dir = '{dir}'\n{text}")).unwrap();
        let options = Options {
            config: Some(path),
            ..Options::default()
        };
        let config = Config::load(&options, &BTreeMap::new()).unwrap();
        Self {
            _home: home,
            file,
            config,
        }
    }

    /// Whether the files that the upstream names are what they should be; why not is said in a line that quotes nothing.
    fn is_right(&self, content: &[u8]) -> bool {
        fs::write(&self.file, content).unwrap();
        let Err(error) = check_files(&self.config.proxy.upstreams[0].connection) else {
            return true;
        };
        let message = Chain(&error).to_string();
        assert!(!message.contains(char::is_control), "one line: {message:?}");
        let said = message.replace(self.file.to_str().unwrap(), "");
        let content = String::from_utf8_lossy(content);
        let words = content.split(|it: char| !it.is_ascii_alphanumeric());
        let mut secrets = words.filter(|it| it.len() >= SECRET_CHARS_MIN);
        assert!(!secrets.any(|it| said.contains(it)), "quoted: {said}");
        false
    }
}

/// Shorter words are in messages by themselves.
const SECRET_CHARS_MIN: usize = 16;

pub(super) const PASSWORD_FILE: Target = Target {
    name: "password_file",
    run: |input| {
        thread_local! {
            static PLACE: LazyCell<Place> = LazyCell::new(|| {
                Place::new("p", "[[upstream]]\nnamespace = 'a.b'\nurl = 'http://a.b'\nusername = 'u'\npassword_file = 'FILE'")
            });
        }
        let is_right = PLACE.with(|it| it.is_right(input));
        let text = text(input).unwrap_or_default();
        let line = text.strip_suffix('\n').unwrap_or(text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let is_line = !line.is_empty() && !line.contains(char::is_control);
        let is_document = serde_json::from_str::<serde::de::IgnoredAny>(line).is_ok();
        let is_password = is_line || (!line.is_empty() && is_document);
        assert_eq!(is_right, is_password, "one line, or a document");
        is_right
    },
    seeds: &[
        b"correct-horse-battery-staple\n",
        b"correct-horse-battery-staple\r\n",
        b"dckr_pat_abcdefghijklmnopqrstuvwxyz",
        b"{\n  \"type\": \"service_account\",\n  \"private_key\": \"-----BEGIN PRIVATE KEY-----\\nabcdefghijklmnopqrstuvwxyz\\n\"\n}\n",
        b"two-lines-of-a-password\nare-none-that-is-meant\n",
        b"\n",
        b"\xff\xfe",
    ],
    words: &[b"\n", b"\r", b"\0", b"{", b"}", b"\"", b"\xff", b"\xc2\x85", b"\t"],
};

pub(super) const CERTIFICATES: Target = Target {
    name: "certificates",
    run: |input| {
        thread_local! {
            static PLACE: LazyCell<Place> = LazyCell::new(|| {
                Place::new("c", "[[upstream]]\nnamespace = 'a.b'\nurl = 'https://a.b'\nca_file = 'FILE'")
            });
        }
        PLACE.with(|it| it.is_right(input))
    },
    seeds: &[
        include_bytes!("certificate.pem"),
        b"-----BEGIN CERTIFICATE-----\n",
        b"\x30\x82",
    ],
    words: &[
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\n",
        b"-----END PRIVATE KEY-----\n",
        b"-----BEGIN EC PRIVATE KEY-----\n",
        b"\n",
        b"=",
        b"MII",
        b"-",
    ],
};

pub(super) const ACCESS_FILE: Target = Target {
    name: "access_file",
    run: layerhold::server::fuzz_access_file,
    seeds: &[
        b"ann:$2y$05$......................7p18asIPSQOtBXWfNDRLdyD6SgVNCiO\n",
        b"# who\n\nbob:$2b$10$......................7p18asIPSQOtBXWfNDRLdyD6SgVNCiO\r\n",
        b"ci:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n",
        b"ann:$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00",
        b"ann:$2y$31$......................7p18asIPSQOtBXWfNDRLdyD6SgVNCiO",
        b"anonymous:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        b":",
        b"",
    ],
    words: &[
        b":",
        b"\n",
        b"\r\n",
        b"#",
        b" ",
        b"$2y$",
        b"$2a$04$",
        b"$14$",
        b"$",
        b"\0",
        b"\xff",
        b"anonymous",
        b"authenticated",
    ],
};

pub(super) const STORE_VERSION: Target = Target {
    name: "store_version",
    run: store_version,
    seeds: &[
        b"1\n",
        b"1\nsize 53687091200\n",
        b"0",
        b"2\n",
        b"1\nsize -5\nsize 99999999999999999999\n",
        b"\x01",
    ],
    words: &[
        b"1",
        b"0",
        b"2",
        b"\n",
        b"size ",
        b"+",
        b" ",
        b"4294967297",
        b"\xff",
        b"\0",
    ],
};

/// A store of another version is not touched.
fn store_version(input: &[u8]) -> bool {
    thread_local! {
        static PLACE: LazyCell<Place> = LazyCell::new(|| Place::new("VERSION", ""));
    }
    static PATTERN: Pattern = Pattern::new(|| whole(r"\s*\+?0*[01]\s*"));
    let (file, config) = PLACE.with(|it| (it.file.clone(), it.config.cache.clone()));
    fs::write(&file, input).unwrap();
    let metrics = cache::Metrics::register(&Registry::new()).unwrap();
    let opened = Cache::open_to_verify(&config, metrics, false);
    let line = text(input).and_then(|it| it.lines().next());
    let expected = line.is_some_and(|it| PATTERN.is_match(it));
    if let Err(error) = &opened {
        let message = Chain(error).to_string();
        assert!(!message.contains(char::is_control), "one line: {message:?}");
        assert!(!matches!(error, OpenError::NotOurs { .. }), "{message}");
    }
    let is_open = opened.is_ok();
    assert!(is_open == expected || input.is_empty(), "a version of ours");
    assert_eq!(fs::read(&file).unwrap(), input, "nothing is written");
    is_open
}
