//! The image that `deploy/Dockerfile` makes, as a container of a real daemon.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::daemon::Daemon;
use crate::http;
use crate::images;
use crate::lab::Lab;
use crate::proxy::address;
use crate::wait::{run, until};

#[test]
fn the_image_serves_pulls_as_nobody_and_stops_when_asked() {
    let lab = Lab::start();
    let daemon = &lab.daemon;
    // What its first line names is not to be had here; the suite's own Debian takes its place.
    daemon.pull("debian:base");
    daemon.docker(&["tag", "debian:base", "debian:bookworm-slim"]);
    let context = context(lab.dir.path());
    build(daemon, &context, &context.join("deploy/Dockerfile"), IMAGE);
    assert_eq!(taken(daemon, &context), ["target/release/layerhold"]);
    let container = Container::start(daemon, lab.dir.path(), lab.upstream.address());

    http::get(container.admin, "/readyz", "*/*");
    let reference = format!("{}/library/debian:{}", container.registry, images::SECOND);
    let said = daemon.docker(&["pull", &reference]);
    assert!(said.contains(&lab.second.manifest.digest), "{said}");
    assert_eq!(daemon.shell(&reference, images::CHECK), images::SECOND);

    // It is nobody, and the volume is its own.
    let script = "id -u; id -g; stat -c '%u %g' /var/cache/layerhold/VERSION";
    let said = daemon.docker(&["exec", &container.id, "sh", "-ec", script]);
    assert_eq!(said, "65532\n65532\n65532 65532\n");
    // Nobody else may read what is kept, and nothing else can be written.
    let script = "find /var/cache/layerhold -perm /077; touch /x /tmp/x 2>/dev/null || echo no";
    let said = daemon.docker(&["exec", &container.id, "sh", "-ec", script]);
    assert_eq!(said, "no\n");

    daemon.docker(&["stop", "--time", "30", &container.id]);
    let state = daemon.docker(&[
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}}",
        &container.id,
    ]);
    assert_eq!(state.trim(), "exited 0");
}

/// A folder with what the build needs and something that it must not take.
fn context(dir: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let context = dir.join("context");
    let release = context.join("target/release");
    fs::create_dir_all(&release).unwrap();
    fs::create_dir_all(context.join("deploy")).unwrap();
    for file in [".dockerignore", "deploy/Dockerfile"] {
        fs::copy(source.join(file), context.join(file)).unwrap();
    }
    fs::copy(env!("CARGO_BIN_EXE_layerhold"), release.join("layerhold")).unwrap();
    fs::write(release.join("secret"), "not for the image").unwrap();
    context
}

/// The files of the context that a build gets to see.
fn taken(daemon: &Daemon, context: &Path) -> Vec<String> {
    let file = context.join("curious");
    fs::write(&file, "FROM debian:bookworm-slim\nCOPY . /context\n").unwrap();
    build(daemon, context, &file, "curious");
    let found = daemon.shell("curious", "cd /context && find * -type f");
    found.lines().map(str::to_owned).collect()
}

/// Builds an image of `file` and `context`.
fn build(daemon: &Daemon, context: &Path, file: &Path, name: &str) {
    let mut command = daemon.command(&["build", "--network", "none", "--tag", name, "--file"]);
    // The builder that asks no registry for a front end.
    run(command.env("DOCKER_BUILDKIT", "0").arg(file).arg(context));
}

/// A running container of the image, as confined as Kubernetes' restricted profile has it.
struct Container {
    id: String,
    registry: SocketAddr,
    admin: SocketAddr,
}

impl Container {
    fn start(daemon: &Daemon, dir: &Path, upstream: SocketAddr) -> Self {
        // How full the machine is must not decide what is stored.
        let config = dir.join("image.toml");
        fs::write(&config, "cache.free_space_min = \"0%\"\n").unwrap();
        let volume = format!("{}:/layerhold.toml:ro", config.display());
        let upstream = format!("LAYERHOLD_UPSTREAM=docker.io=http://{upstream}");
        let mut args = vec!["run", "--detach", "--network", "host", "--read-only"];
        args.extend(["--cap-drop", "ALL", "--security-opt", "no-new-privileges"]);
        args.extend(["--volume", &volume]);
        for variable in [
            "LAYERHOLD_CONFIG=/layerhold.toml",
            "LAYERHOLD_LISTEN=127.0.0.1:0",
            "LAYERHOLD_ADMIN_LISTEN=127.0.0.1:0",
            &upstream,
        ] {
            args.extend(["--env", variable]);
        }
        args.push(IMAGE);
        let id = daemon.docker(&args).trim().to_owned();
        let bound = |role: &str| {
            until(&format!("{role} address"), || {
                let running = daemon.docker(&["inspect", "-f", "{{.State.Running}}", &id]);
                let events = events(daemon, &id);
                assert_eq!(running.trim(), "true", "{events:?}");
                address(&events, role)
            })
        };
        let (registry, admin) = (bound("registry"), bound("admin"));
        Self {
            id,
            registry,
            admin,
        }
    }
}

/// What a container has logged to stderr, which `docker logs` passes on as its own.
fn events(daemon: &Daemon, id: &str) -> Vec<Value> {
    let output = daemon.command(&["logs", id]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let objects = text.lines().filter_map(|it| serde_json::from_str(it).ok());
    objects.collect()
}

const IMAGE: &str = "layerhold:test";
