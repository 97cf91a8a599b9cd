//! Where and when a run was made.

use std::fs;
use std::process::Command;

use super::process::version;

/// Prints what somebody who reads the numbers has to know, with the version of each peer, or that it is missing.
pub(crate) fn introduce(peers: &[(&str, Option<String>)]) {
    let cpus = read("/proc/cpuinfo");
    let models = || cpus.lines().filter_map(|it| it.strip_prefix("model name"));
    let model = models().next().unwrap_or(": unknown");
    let memory = read("/proc/meminfo");
    let kib: u64 = memory
        .lines()
        .find_map(|it| it.strip_prefix("MemTotal:"))
        .and_then(|it| it.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    println!(
        "{}, layerhold {} ({})",
        version("date", "+%F %R %Z").unwrap_or_default(),
        env!("CARGO_PKG_VERSION"),
        commit()
    );
    println!(
        "{} x {}, {} GiB of memory, Linux {}, load average {}",
        cpus.matches("processor\t").count(),
        model.trim_start_matches(['\t', ':', ' ']),
        kib >> 20,
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").trim()
    );
    for (name, version) in peers {
        match version {
            Some(version) => println!("{name}: {version}"),
            None => println!("{name}: not installed, its rows are left out"),
        }
    }
    println!();
}

/// Of the sources, and whether they have been edited since.
fn commit() -> String {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        let output = command
            .args(["-C", env!("CARGO_MANIFEST_DIR")])
            .args(args)
            .output();
        let output = output.ok().filter(|it| it.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "of no repository".to_owned();
    };
    let edited = git(&["status", "--porcelain", "--untracked-files=no"]);
    match edited.as_deref() {
        Some("") => commit,
        Some(_) | None => format!("{commit} and edits"),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
