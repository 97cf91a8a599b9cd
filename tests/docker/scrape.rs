//! A real Prometheus scrapes layerhold as `deploy/` has it, and answers what is asked of it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::http;
use crate::lab::Lab;
use crate::process::Process;
use crate::wait::{bounded, run, until};

#[test]
fn each_alert_fires_for_what_it_is_about_and_only_then() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    copy("deploy/prometheus.yml", dir.path());
    copy("deploy/alerts.yml", dir.path());
    copy("tests/docker/alerts.test.yml", dir.path());
    let promtool = |args: &[&str]| run(bounded("promtool").args(args).current_dir(&dir));

    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["test", "rules", "alerts.test.yml"]);

    // Of each there is a case.
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let cases = read("alerts.test.yml");
    let alerts = read("alerts.yml");
    let alerts = alerts.lines().filter_map(|it| it.split_once("- alert: "));
    for (_, alert) in alerts {
        let firing = format!("{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        assert!(cases.contains(&firing), "{alert}");
    }
}

#[test]
fn prometheus_scrapes_it_and_answers_every_question_of_the_dashboard() {
    let lab = Lab::start();
    lab.daemon.pull("debian:base");
    lab.proxy.counted("miss", lab.first.contents().len());
    let admin = lab.proxy.admin();

    let scrape = lab.dir.path().join("metrics.txt");
    fs::write(&scrape, http::get(admin, "/metrics", "*/*")).unwrap();
    let mut promtool = bounded("promtool");
    promtool.args(["check", "metrics"]);
    run(promtool.stdin(File::open(&scrape).unwrap()));

    let prometheus = Prometheus::start(lab.dir.path(), admin);
    prometheus.says("up{job=\"layerhold\"} == 1");
    prometheus.says("sum(layerhold_requests_total{outcome=\"miss\"}) >= 3");
    prometheus.says("layerhold_cache_bytes{state=\"used\"} > 150e6");

    prometheus.evaluates_every_rule();
    let dashboard = fs::read(source("deploy/grafana.json")).unwrap();
    let dashboard: Value = serde_json::from_slice(&dashboard).unwrap();
    let questions = expressions(&dashboard);
    assert!(questions.len() >= 20, "{questions:?}");
    for question in questions {
        prometheus.query(&question);
    }
    // What needs two scrapes comes with the second.
    prometheus.says("sum(rate(layerhold_requests_total{job=~\"layerhold\"}[1m])) >= 0");
}

/// A running Prometheus with the configuration and the alerts of `deploy/`.
struct Prometheus {
    address: SocketAddr,
    // Held for its drop.
    _process: Process,
}

impl Prometheus {
    fn start(dir: &Path, target: SocketAddr) -> Self {
        let dir = dir.join("prometheus");
        fs::create_dir(&dir).unwrap();
        copy("deploy/alerts.yml", &dir);
        let document = fs::read_to_string(source("deploy/prometheus.yml")).unwrap();
        let document = replaced(&document, "127.0.0.1:9555", &target.to_string());
        // A test does not wait a quarter of a minute.
        let document = replaced(&document, "_interval: 15s", "_interval: 1s");
        let config = dir.join("prometheus.yml");
        fs::write(&config, document).unwrap();
        let args = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", dir.join("data").display()),
            "--web.listen-address=127.0.0.1:0".to_owned(),
            "--log.format=json".to_owned(),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut process = Process::start("prometheus", &dir, "prometheus", &args);
        let address = process.wait_for("address", |process| {
            let events = process.events();
            let mut listening = events.iter().filter(|it| it["msg"] == "Listening on");
            listening.next()?["address"].as_str()?.parse().ok()
        });
        process.wait_for("readiness", |process| {
            let mut said = process.events().into_iter();
            said.any(|it| it["msg"] == "Server is ready to receive web requests.")
                .then_some(())
        });
        Self {
            address,
            _process: process,
        }
    }

    /// Waits until a query has a sample, as a comparison has where it is true.
    fn says(&self, query: &str) {
        until(query, || {
            let samples = self.query(query);
            samples
                .as_array()
                .is_some_and(|it| !it.is_empty())
                .then_some(())
        });
    }

    /// The samples that a query has now. Must be one that Prometheus understands.
    fn query(&self, query: &str) -> Value {
        let query: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let mut answer = self.api(&format!("query?query={query}"));
        answer["data"]["result"].take()
    }

    /// Waits until every rule was evaluated, and none of them failed.
    fn evaluates_every_rule(&self) {
        let health = until("evaluation of every rule", || {
            let answer = self.api("rules");
            let groups = answer["data"]["groups"].as_array()?.iter();
            let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
            let health = rules.map(|rule| rule["health"].as_str().map(str::to_owned));
            let health: BTreeSet<String> = health.collect::<Option<_>>()?;
            (!health.is_empty() && !health.contains("unknown")).then_some(health)
        });
        assert_eq!(health, BTreeSet::from(["ok".to_owned()]));
    }

    fn api(&self, path: &str) -> Value {
        let body = http::get(self.address, &format!("/api/v1/{path}"), "*/*");
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer
    }
}

/// What a dashboard asks, with its variables set to all that there is.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    expressions
        .map(|expression| {
            let expression = expression.replace("$__rate_interval", "1m");
            let variables = ["$job", "$instance", "$upstream"];
            let set = |text: String, variable: &&str| text.replace(*variable, ".*");
            let expression = variables.iter().fold(expression, set);
            assert!(!expression.contains('$'), "{expression}");
            expression
        })
        .collect()
}

/// `text` with every `from` made `to`; there must be one.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from} in {text}");
    text.replace(from, to)
}

fn copy(file: &str, dir: &Path) {
    let file = source(file);
    fs::copy(&file, dir.join(file.file_name().unwrap())).unwrap();
}

fn source(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}
