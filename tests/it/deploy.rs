//! What `deploy/` and the README say to the program is what the program takes.

use std::fs;
use std::process;

use clap::Parser;
use layerhold::cli::{Args, Command};
use layerhold::config::Config;

/// The configuration within a manifest: the lines below `layerhold.toml: |`.
fn configuration(manifest: &str) -> String {
    let (_, rest) = manifest.split_once("\n  layerhold.toml: |\n").unwrap();
    let lines = rest
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "));
    lines
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect()
}

/// What the image sets, as `NAME=VALUE`.
fn variables() -> Vec<String> {
    let file = fs::read_to_string("deploy/Dockerfile").unwrap();
    let words = file
        .split_whitespace()
        .filter(|it| it.starts_with("LAYERHOLD_"));
    let variables: Vec<_> = words
        .filter(|it| it.contains('='))
        .map(str::to_owned)
        .collect();
    assert!(!variables.is_empty());
    variables
}

/// The number behind `key: ` in a manifest.
fn number(manifest: &str, key: &str) -> u64 {
    let (_, rest) = manifest.split_once(&format!(" {key}: ")).unwrap();
    rest.lines().next().unwrap().parse().unwrap()
}

#[test]
fn the_manifests_configure_what_there_is_to_configure() {
    for name in ["deployment", "daemonset"] {
        let manifest = fs::read_to_string(format!("deploy/kubernetes/{name}.yaml")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("layerhold.toml");
        fs::write(&file, configuration(&manifest)).unwrap();
        let flags = manifest
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- --"));
        let flags = flags
            .filter(|it| !it.starts_with("config="))
            .map(|it| format!("--{it}"));
        let mut command = process::Command::new("env");
        command
            .args(variables())
            .arg(env!("CARGO_BIN_EXE_layerhold"));
        command.arg("check").arg("--config").arg(&file).args(flags);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {said}");
        let runs: toml::Table = String::from_utf8(output.stdout).unwrap().parse().unwrap();

        let dir = runs["cache"]["dir"].as_str().unwrap();
        assert!(
            manifest.contains(&format!("mountPath: {dir}")),
            "{name}: {dir}"
        );
        for (listens, named) in [("listen", ":5000"), ("admin_listen", ":9555")] {
            let address = runs[listens].as_array().map_or(&runs[listens], |it| &it[0]);
            assert!(
                address.as_str().unwrap().ends_with(named),
                "{name}: {address}"
            );
        }
        let drain = runs["timeouts"]["drain"].as_str().unwrap();
        let drain: u64 = drain.strip_suffix('s').unwrap().parse().unwrap();
        assert!(
            number(&manifest, "terminationGracePeriodSeconds") > drain,
            "{name}"
        );
    }
}

#[test]
fn the_readmes_example_of_access_is_accepted() {
    let readme = fs::read_to_string("README.md").unwrap();
    let (_, section) = readme.split_once("\n## Access\n").unwrap();
    let (_, example) = section.split_once("\n```toml\n").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layerhold.toml");
    fs::write(&file, example.split("```").next().unwrap()).unwrap();
    let words = ["layerhold", "check", "--config", file.to_str().unwrap()];
    let Command::Check(options) = Args::parse_from(words).command else {
        panic!("check is not check");
    };
    let home = [("HOME".to_owned(), "/home/ann".to_owned())];
    let config = Config::load(&options, &home.into_iter().collect()).unwrap();
    assert!(config.access.authenticates());
    assert_eq!(config.access.rules.len(), 5);
}

#[test]
fn the_readmes_examples_of_credentials_are_accepted() {
    let readme = fs::read_to_string("README.md").unwrap();
    let (_, section) = readme.split_once("\n## Credentials\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let examples = section.split("\n```toml\n").skip(1);
    let examples: String = examples.map(|it| it.split("```").next().unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    // Secrets are read at once, from files that only the reader has.
    let secrets = dir.path().to_str().unwrap();
    let examples = examples.replace("/etc/layerhold", secrets);
    let named = examples.split('"').filter(|it| it.starts_with(secrets));
    named.for_each(|secret| fs::write(secret, "secret").unwrap());
    let file = dir.path().join("layerhold.toml");
    fs::write(&file, &examples).unwrap();
    // In process, where the files that are named need not be there.
    let words = ["layerhold", "check", "--config", file.to_str().unwrap()];
    let Command::Check(options) = Args::parse_from(words).command else {
        panic!("check is not check");
    };
    let home = [("HOME".to_owned(), "/home/ann".to_owned())];
    let config = Config::load(&options, &home.into_iter().collect()).unwrap();
    let runs: toml::Table = config.report().parse().unwrap();
    let upstreams = runs["upstream"].as_array().unwrap();
    assert_eq!(upstreams.len(), 6);
    for upstream in upstreams {
        let file = upstream.get("username").and(upstream.get("password_file"));
        let helper = upstream.get("credential_helper");
        // Where clients show their own there is none of ours.
        let access = upstream.get("access").and_then(|it| it.as_str());
        let is_callers = access == Some("caller");
        assert_eq!(file.xor(helper).is_some(), !is_callers, "{upstream}");
    }
}

#[test]
fn the_verifier_says_what_cosign_says() {
    let dir = tempfile::tempdir().unwrap();
    let fake = "#!/bin/sh\necho \"$@\" >> \"$0.asked\"\n\
        case $4 in *signed) exit 0;; esac\necho 'Error: no signatures found' >&2\nexit 10\n";
    let written = process::Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
        .args([dir.path().join("cosign").as_os_str(), fake.as_ref()])
        .status();
    assert!(written.unwrap().success());
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    let says = |image: &str, reference: &str| {
        let mut command = process::Command::new("deploy/verify-cosign.sh");
        command.args([image, reference]).env("PATH", &path);
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    let yes = says("ghcr.io/team/app@signed", "v1");
    assert_eq!(yes, (Some(0), "signed\n".to_owned()));
    let no = says("ghcr.io/team/app@other", "v1");
    assert_eq!(no, (Some(1), "Error: no signatures found\n".to_owned()));
    // Whoever can push an image can push it under such a tag, too.
    let signature = says("ghcr.io/team/app@other", "sha256-00.sig");
    assert_eq!(signature, no);
    let asked = fs::read_to_string(dir.path().join("cosign.asked")).unwrap();
    let key = "verify --key /etc/layerhold/cosign.pub";
    let lines = [
        format!("{key} ghcr.io/team/app@signed"),
        format!("{key} ghcr.io/team/app@other"),
        format!("{key} ghcr.io/team/app@other"),
    ];
    assert_eq!(asked.lines().collect::<Vec<_>>(), lines);
}
