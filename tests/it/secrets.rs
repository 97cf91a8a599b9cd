//! Secrets stay where they are: in no log, no report, no dump, and in memory no longer than they are of use.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use clap::Parser;
use layerhold::cli::{Args, Command};
use layerhold::config::Config;
use toml::{Table, Value};

use crate::harness::egress::FakeProxy;
use crate::harness::token::{TOKEN, basic};
use crate::harness::{
    APP, Authority, Binary, Blob, FakeRegistry, Fault, HelperScript, KIB, PasswordFile,
    ProxyBuilder, TestProxy, TokenServer, any, poll,
};

const USER: &str = "robot";

/// A secret for each place that one can come from.
const SECRETS: [&str; 8] = [
    "c4nary-of-a-file",
    "c4nary-of-a-variable",
    "c4nary-of-a-helper",
    "c4nary-of-a-folders-file",
    "c4nary-of-a-folders-variable",
    "c4nary-of-a-folders-helper",
    "c4nary-of-an-egress-proxy",
    "c4nary-of-a-signature",
];

/// What all of them begin with.
const CANARY: &str = "c4nary";

/// None of them is in a text, nor a key or a token.
fn assert_silent(what: &str, text: &str) {
    let coded = SECRETS.map(|it| basic(USER, it));
    let coded = coded.iter().map(|it| it.trim_start_matches("Basic "));
    for secret in [CANARY, TOKEN, "PRIVATE KEY"].into_iter().chain(coded) {
        let at = text.find(secret).unwrap_or_default();
        let near = text.get(at.saturating_sub(200)..text.len().min(at + 200));
        assert!(!text.contains(secret), "{secret} in {what}: {near:?}");
    }
}

fn table(pairs: &[(&str, String)]) -> Table {
    let pairs = pairs.iter().cloned();
    let pairs = pairs.map(|(key, value)| (key.to_owned(), Value::from(value)));
    pairs.collect()
}

/// Three registries, and where the secrets are that we have for them.
struct Scene {
    registries: [FakeRegistry; 3],
    files: [PasswordFile; 2],
    helpers: [HelperScript; 2],
    egress: FakeProxy,
}

impl Scene {
    async fn new() -> Self {
        let [file, _, helper, folder_file, _, folder_helper, ..] = SECRETS;
        Self {
            registries: [
                FakeRegistry::start().await,
                FakeRegistry::start().await,
                FakeRegistry::start().await,
            ],
            files: [file, folder_file].map(PasswordFile::new),
            helpers: [helper, folder_helper].map(|it| HelperScript::saying(USER, it)),
            egress: FakeProxy::start().await,
        }
    }

    /// A proxy that has all of the secrets, and says all that it can.
    fn proxy(&self) -> ProxyBuilder {
        let [_, variable, _, _, folder_variable, _, egress, _] = SECRETS;
        let egress = format!("http://{USER}:{egress}@{}", self.egress.address());
        let user = ("username", USER.to_owned());
        let by_file = |file: &PasswordFile| vec![user.clone(), ("password_file", file.path())];
        let by_variable = |name: &str| vec![user.clone(), ("password_env", name.to_owned())];
        let by_helper = |helper: &HelperScript| vec![("credential_helper", helper.path())];
        let folder = |mut keys: Vec<(&'static str, String)>| {
            keys.push(("repositories", "folder".to_owned()));
            vec![table(&keys)]
        };
        let [first, second] = &self.files;
        let [first_helper, second_helper] = &self.helpers;
        let sources = [
            (by_file(first), folder(by_variable("LAYERHOLD_TEST_B"))),
            (
                by_variable("LAYERHOLD_TEST_A"),
                folder(by_helper(second_helper)),
            ),
            (by_helper(first_helper), folder(by_file(second))),
        ];
        let ours = Authority::new().vouch(&["us.example"]);
        let mut proxy = TestProxy::in_front_of(&self.registries[0])
            .set("log_level", "trace")
            .variable("LAYERHOLD_TEST_A", variable)
            .variable("LAYERHOLD_TEST_B", folder_variable)
            .variable("HTTP_PROXY", &egress);
        let certificate = proxy.write("us.pem", &ours.certificate_pem);
        let key = proxy.write("us.key", &ours.key_pem);
        for (nth, (keys, folders)) in sources.into_iter().enumerate() {
            if nth > 0 {
                proxy = proxy.and(&format!("r{nth}.example"), &self.registries[nth]);
            }
            for (key, value) in keys {
                proxy = proxy.upstream(key, value);
            }
            proxy = proxy
                .upstream("credential", folders)
                .upstream("client_certificate", certificate.clone())
                .upstream("client_key", key.clone());
        }
        proxy
    }

    /// Pulls from everywhere where we are somebody else: all that is answered.
    async fn answers(&self, binary: &Binary) -> String {
        let mut said = String::new();
        for name in ["", "r1.example/", "r2.example/"] {
            for folder in ["app", "folder/app"] {
                let (digest, name) = (Blob::random(KIB), format!("{name}{folder}"));
                let whole = binary.blob(&name, digest.digest()).whole().await;
                said += &format!("{:?}{}", whole.head, whole.text());
            }
        }
        said
    }
}

#[tokio::test]
async fn pitfall_38_no_secret_of_any_source_is_said_by_anybody() {
    let (tokens, host) = (TokenServer::start().await, FakeRegistry::start().await);
    let scene = Scene::new().await;
    let binary = Binary::start(&scene.proxy()).await;
    host.always(any("/1"), Fault::Status(403));
    host.always(any("/2"), Fault::Refuse);
    tokens.lock(USER, "something-else");
    let [.., signature] = SECRETS;
    // What a registry may say, what its token server, and whom it may lead to.
    for trouble in 0..6 {
        for registry in &scene.registries {
            registry.heal();
            match trouble {
                // To where nobody is led, to whom it is refused, and who breaks off.
                0..3 => {
                    let address = host.address().to_string();
                    let place = if trouble == 0 { "10.0.0.1" } else { &address };
                    let query = format!("sig={signature}&x=1#{signature}");
                    let location = format!("http://{place}/{trouble}?{query}");
                    registry.redirect(any(""), 307, location);
                }
                3 => registry.always(any(""), Fault::Status(500)),
                4 => registry.require_token(&tokens),
                _ => registry.lock(USER, "something-else"),
            }
        }
        assert_silent("an answer", &scene.answers(&binary).await);
    }
    assert_silent("the metrics", &binary.metrics().await);
    let log: Vec<String> = binary.log().iter().map(ToString::to_string).collect();
    // It came to each of them.
    for phrase in ["redirected", "may not lead to", "refused our credentials"] {
        let is_said = log.iter().any(|it| it.contains(phrase));
        assert!(is_said, "{phrase}: {log:#?}");
    }
    assert_silent("the log", &log.join("\n"));
    assert!(!scene.egress.log().is_empty());
    let command = fs::read(format!("/proc/{}/cmdline", binary.pid().as_raw_nonzero())).unwrap();
    assert_silent("the command line", &String::from_utf8_lossy(&command));
}

#[tokio::test]
async fn pitfall_38_no_configuration_shows_its_secrets() {
    let proxy = Scene::new().await.proxy();
    let path = proxy.file();
    let words = ["layerhold", "serve", "--config", path.to_str().unwrap()];
    let Command::Serve(options) = Args::parse_from(words).command else {
        panic!("serve is not serve");
    };
    let config = Config::load(&options, proxy.variables()).unwrap();
    let shown = format!("{config:?} {config:#?}");
    for part in [USER, "us.key", "LAYERHOLD_TEST_B"] {
        assert!(shown.contains(part), "{part}");
    }
    assert_silent("a configuration", &shown);
    // What `check` prints.
    let report = config.report();
    for part in [
        "[[upstream.credential]]",
        "password_env",
        "client_key",
        "# proxy:",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    assert_silent("a report", &report);
}

#[tokio::test]
async fn no_core_is_dumped_unless_it_is_asked_for_while_we_run() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream);
    let binary = Binary::start_with_core_dumps(&builder).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", binary.pid().as_raw_nonzero()));
    let limits = limits.unwrap();
    let mut lines = limits.lines();
    let cores = lines.find_map(|it| it.strip_prefix("Max core file size"));
    let words: Vec<_> = cores.unwrap().split_whitespace().collect();
    assert_eq!(words[..2], ["0", "unlimited"], "{limits}");
}

/// How often a text is in the memory of a process.
fn copies(pid: i32, text: &str) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for map in maps.lines() {
        let mut words = map.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|it| u64::from_str_radix(it, 16).unwrap());
        let mut at = from;
        while at < to {
            let mut bytes = vec![0; usize::try_from((to - at).min(4 << 20)).unwrap()];
            let Ok(n @ 1..) = memory.read_at(&mut bytes, at) else {
                break;
            };
            let bytes = bytes.get(..n).unwrap();
            found += bytes
                .windows(text.len())
                .filter(|it| *it == text.as_bytes())
                .count();
            at += n as u64;
        }
    }
    found
}

#[tokio::test]
async fn a_password_that_is_of_no_use_any_more_is_in_memory_no_more() {
    let upstream = FakeRegistry::start().await;
    // So long that nothing else is soon put where it was: what is found no more was overwritten.
    let old = format!("{}c4nary-the-old-one", "x".repeat(20 * KIB));
    let file = PasswordFile::new(&old);
    upstream.lock(USER, &old);
    upstream.lock_too(USER, "c4nary-the-new-password");
    let builder = TestProxy::in_front_of(&upstream)
        .upstream("username", USER)
        .upstream("password_file", file.path());
    let binary = Binary::start(&builder).await;
    let pid = binary.pid().as_raw_nonzero().get();
    let pull = async || {
        let blob = Blob::random(KIB);
        upstream.serve_blob(APP, &blob);
        binary.pull_blob(APP, &blob).await;
    };
    pull().await;
    // The one that is kept.
    assert_eq!(copies(pid, "c4nary-the-old-one"), 1);
    file.write("c4nary-the-new-password");
    pull().await;
    assert_eq!(copies(pid, "c4nary-the-old-one"), 0);
    assert_eq!(copies(pid, "c4nary-the-new-password"), 1);
}

#[tokio::test]
async fn a_helper_that_hangs_does_not_outlive_us() {
    for signals in [1, 2] {
        let upstream = FakeRegistry::start().await;
        let script = "trap '' TERM; echo $$ > self; sleep 1000 & echo $! > child; wait";
        let helper = HelperScript::new(script);
        let builder = TestProxy::in_front_of(&upstream)
            .set("timeouts.drain", if signals == 1 { "0s" } else { "1m" })
            .upstream("credential_helper", helper.path());
        let binary = Binary::start(&builder).await;
        let request = binary.get(format!("/v2/{APP}/tags/list"));
        let _connection = request.dispatch().await;
        poll("the helper to run", async || {
            let child = fs::read_to_string(helper.file("child")).unwrap_or_default();
            child.ends_with('\n').then_some(())
        })
        .await;
        binary.terminate();
        if signals == 2 {
            let draining = |it: &serde_json::Value| it.to_string().contains("draining");
            binary.wait_for_log(draining).await;
            binary.terminate();
        }
        binary.exited().await;
        helper.dead("self").await;
        helper.dead("child").await;
    }
}
