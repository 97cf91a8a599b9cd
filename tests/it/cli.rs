//! What is typed, and what the process says and exits with.

use std::process::Command;

use crate::harness::proxy::TWO;
use crate::harness::{Binary, FakeRegistry, TestProxy};

#[tokio::test]
async fn check_prints_what_would_run_and_starts_nothing() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream)
        .and(TWO, &upstream)
        .set("timeouts.answer", "7s");
    let (status, said) = Binary::check(&builder).await;
    assert_eq!(status.code(), Some(0), "{said}");
    let printed: toml::Table = said.parse().unwrap();
    assert_eq!(printed["timeouts"]["answer"].as_str(), Some("7s"));
    assert_eq!(printed["upstream"][1]["namespace"].as_str(), Some(TWO));
    // It means the same when it is read again.
    let file = builder.dir().with_file_name("again.toml");
    std::fs::write(&file, &said).unwrap();
    let (_, again) = Binary::check_file(&file).await;
    assert_eq!(again, said);
    assert!(!builder.dir().exists());
    assert!(upstream.log().is_empty());
}

#[tokio::test]
async fn a_wrong_configuration_is_one_line_and_exit_code_64() {
    let upstream = FakeRegistry::start().await;
    for (key, value) in [
        ("cache.sise", "1GiB"),
        ("cache.size", "a lot"),
        ("listen", "nowhere"),
        ("timeouts.answer", "soon"),
    ] {
        let builder = TestProxy::in_front_of(&upstream).set(key, value);
        let (status, said) = Binary::refused(&builder).await;
        assert_eq!(status.code(), Some(64), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let last = key.rsplit('.').next().unwrap();
        assert!(said.contains(last), "{key}: {said}");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_exit_code_1() {
    let upstream = FakeRegistry::start().await;
    let taken = upstream.address().to_string();
    let builder = TestProxy::in_front_of(&upstream).set("listen", vec![taken.clone()]);
    let (status, said) = Binary::refused(&builder).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(&taken), "{said}");
}

#[tokio::test]
async fn what_a_client_needs_goes_to_stdout_and_nothing_else_does() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream).and(TWO, &upstream);
    let file = builder.file();
    let run = async |client: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.args(["client-config", client, "--config"]);
        command.arg(&file).args(more).env_clear();
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let address = ["--address", "cache.example:5000"];

    let (code, stdout, stderr) = run("podman", &address).await;
    assert_eq!((code, &*stderr), (Some(0), ""));
    let mirror = format!("location = \"cache.example:5000/{TWO}\"\n");
    assert!(
        stdout.starts_with("# /etc/") && stdout.contains(&mirror),
        "{stdout}"
    );

    let (code, stdout, stderr) = run("docker", &address).await;
    assert_eq!(code, Some(0), "{stderr}");
    serde_json::from_str::<serde_json::Value>(&stdout).unwrap();
    assert!(stderr.contains("/etc/docker/daemon.json"), "{stderr}");

    // The harness listens on port 0, which no client can be told.
    let (code, stdout, stderr) = run("k3s", &[]).await;
    assert_eq!((code, &*stdout), (Some(64), ""));
    assert!(
        stderr.starts_with("layerhold: --address: missing"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[tokio::test]
async fn a_command_that_asks_no_upstream_needs_none_of_the_services_secrets() {
    let upstream = FakeRegistry::start().await;
    let builder = TestProxy::in_front_of(&upstream)
        .set("listen", vec!["127.0.0.1:5000"])
        .upstream("username", "robot")
        .upstream("password_env", "LAYERHOLD_HUB");
    let file = builder.file();
    for (words, code) in [(&["client-config", "podman"][..], 0), (&["check"], 64)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layerhold"));
        command.args(words).arg("--config").arg(&file).env_clear();
        // No upstream can be asked through this one.
        command.env("ALL_PROXY", "socks5://proxy.example:1080");
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
    }
}
