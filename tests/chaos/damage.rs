//! What happens to the files behind everybody's back, and the check that finds it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use serde_json::Value;

use crate::Run;
use crate::harness::Binary;
use crate::harness::lose;
use crate::journal::OPERATOR;

/// Looks at the directory while no process has it, however that ended: nothing may be wrong but what was damaged while it
/// was served. Then damages some of it, and has that found, left alone, and repaired.
pub(crate) async fn while_nobody_looks(run: &Run, choices: &mut SmallRng) -> String {
    let hurt = std::mem::take(&mut *run.world.hurt());
    let found = verified(run, &["--repair"]).await;
    if !matches!(&found, (0, found) if found.is_subset(&hurt)) {
        let wrong = format!("found where only {hurt:?} may be: {found:?}");
        run.journal.violation(run, OPERATOR, &wrong);
    }
    let files = files(&run.fleet.dir().join("blobs"));
    let mut damaged: BTreeSet<String> = BTreeSet::new();
    for file in files.choose_multiple(choices, 3) {
        if choices.random_bool(0.5) && damage(file, choices) {
            damaged.insert(digest_of(file));
        }
    }
    if choices.random_bool(0.3) {
        damaged.extend(tear_a_record(run, choices));
    }
    if !damaged.is_empty() {
        demand(run, &[], 1, &damaged).await;
        demand(run, &["--repair"], 0, &damaged).await;
        demand(run, &[], 0, &BTreeSet::new()).await;
    }
    format!("{} damaged and repaired", damaged.len())
}

/// Cuts a file short that the process knows, or takes it away; it must not make a difference to any client.
pub(crate) fn while_it_is_served(run: &Run, choices: &mut SmallRng) -> String {
    let files = files(&run.fleet.dir().join("blobs"));
    let Some(file) = files.choose(choices) else {
        return "nothing to damage".to_owned();
    };
    let digest = digest_of(file);
    run.world.hurt().insert(digest.clone());
    // Evicted at this very moment, there is nothing left to damage.
    let Ok(opened) = OpenOptions::new().write(true).open(file) else {
        return format!("{digest} was evicted before it was damaged");
    };
    if choices.random_bool(0.5) {
        let len = opened.metadata().unwrap().len();
        opened.set_len(len.saturating_sub(1)).unwrap();
        return format!("cut of {digest}");
    }
    #[expect(clippy::disallowed_methods, reason = "what a careless person does")]
    let lost = fs::remove_file(file);
    format!("loss of {digest}: {lost:?}")
}

/// Has the process check itself: it finds what was damaged, or less, and nothing else.
pub(crate) async fn check_while_it_serves(run: &Run) -> String {
    let admin = run.fleet.current().await.front.admin.to_string();
    let words = ["verify", "--json", "--rate", "1GiB", "--admin", &admin];
    let (_, out, err) = Binary::command(&words).await;
    let found = serde_json::from_str(&out).ok();
    let found = found.map(|report| found_in(&report)).unwrap_or_default();
    let hurt = run.world.hurt().clone();
    if !found.is_subset(&hurt) || out.is_empty() {
        let wrong = format!("a check of a running process: {out}{err}");
        run.journal.violation(run, OPERATOR, &wrong);
    }
    format!("check, which found {}", found.len())
}

/// Checks the directory, which nobody has, and complains unless it exits so and finds just this.
pub(crate) async fn demand(run: &Run, flags: &[&str], exit: i32, expected: &BTreeSet<String>) {
    let (code, found) = verified(run, flags).await;
    if (code, &found) != (exit, expected) {
        let wrong = format!("verify {flags:?}: {code}, {found:?}, not {exit}, {expected:?}");
        run.journal.violation(run, OPERATOR, &wrong);
    }
}

/// Checks the directory, which nobody has: the exit code, and what was found.
async fn verified(run: &Run, flags: &[&str]) -> (i32, BTreeSet<String>) {
    let file = run.fleet.dir().with_file_name("layerhold.toml");
    let words = ["verify", "--json", "--config", file.to_str().unwrap()];
    let (code, out, err) = Binary::command(&[&words, flags].concat()).await;
    match serde_json::from_str(&out) {
        Ok(report) => (code.unwrap_or(-1), found_in(&report)),
        Err(_) => (code.unwrap_or(-1), BTreeSet::from([err])),
    }
}

/// What a report says is wrong: digests, and names of records.
fn found_in(report: &Value) -> BTreeSet<String> {
    let findings = report["findings"].as_array();
    let what = findings
        .into_iter()
        .flatten()
        .map(|it| it["what"].as_str().unwrap());
    what.map(|it| it.split(": ").next().unwrap().to_owned())
        .collect()
}

/// Damages a published file. Whether it still is there to be found.
fn damage(file: &Path, choices: &mut SmallRng) -> bool {
    let mut bytes = fs::read(file).unwrap();
    match choices.random_range(0..5) {
        0 | 1 if !bytes.is_empty() => {
            let at = choices.random_range(0..bytes.len());
            bytes[at] ^= 1 << choices.random_range(0..8);
        }
        2 if !bytes.is_empty() => bytes.truncate(choices.random_range(0..bytes.len())),
        3 => {
            lose(file);
            return false;
        }
        _ => bytes.push(0),
    }
    fs::write(file, bytes).unwrap();
    true
}

/// Leaves a line of a record torn, as a crash of the machine does. The name of the repository.
fn tear_a_record(run: &Run, choices: &mut SmallRng) -> Option<String> {
    let upstreams = run.fleet.dir().join("upstreams");
    let mut grants = files(&upstreams);
    grants.retain(|it| it.ends_with("_granted"));
    let file = grants.choose(choices)?;
    let mut opened = File::options().append(true).open(file).unwrap();
    opened.write_all(b"blob sha256:0123").unwrap();
    let repository = file.parent()?.strip_prefix(&upstreams).ok()?;
    Some(repository.to_str()?.to_owned())
}

/// All files below, in the order of their names.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // What vanishes meanwhile was evicted.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn digest_of(file: &Path) -> String {
    let name = file.file_name().unwrap().to_str().unwrap();
    format!("sha256:{name}")
}
