//! The end of a run: the trouble is over, and everything must be as if it had never been.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::Run;
use crate::client::{Ask, Object, pull};
use crate::damage;
use crate::fleet::Instance;
use crate::harness::blob::sha256;
use crate::harness::proxy::{staging, sum};
use crate::journal::OPERATOR;
use crate::watch::{metrics, number};

/// Looks at the process that saw the trouble, then at one that did not.
pub(crate) async fn check(run: &Run) {
    let began = Instant::now();
    let tired = run.fleet.current().await;
    settled(run, &tired, false).await;
    outcomes(run, &tired, false).await;
    resources(run, &tired).await;
    drop(tired);
    run.fleet.repair();
    let status = run.fleet.succeed().await;
    ensure(run, status.success(), || format!("exited with {status}"));
    run.journal.note(OPERATOR, began, "the last process");

    let fresh = run.fleet.current().await;
    let before = run.world.sent();
    everything_pulls(run).await;
    settled(run, &fresh, true).await;
    outcomes(run, &fresh, true).await;
    upstream_bytes(run, &fresh, run.world.sent() - before).await;
    resources(run, &fresh).await;
    drop(fresh);
    let status = run.fleet.end().await;
    ensure(run, status.success(), || format!("exited with {status}"));
    damage::demand(run, &[], 0, &BTreeSet::new()).await;
    disk(run, &run.fleet.dir());
}

/// Every blob in every repository that holds it, every manifest, tag and list, and nothing else.
async fn everything_pulls(run: &Run) {
    let world = &run.world;
    for (n, repository) in world.repositories.iter().enumerate() {
        let blobs = (0..world.blobs.len()).map(Object::Blob);
        let manifests = (0..repository.manifests.len()).map(Object::Manifest);
        let tags = repository.tags.iter().cloned().map(Object::Tag);
        let all = blobs.chain(manifests).chain(tags).chain([Object::List]);
        for object in all {
            let ask = Ask::whole(n, object);
            let asked = Instant::now();
            let mut whole = pull(run, &ask).await;
            // What a lie is held against longer than the run lasted is not held against it by a new process.
            for _ in 0..2 {
                whole = whole && pull(run, &ask).await;
            }
            ensure(run, whole, || format!("{} does not pull", ask.name(world)));
            run.journal
                .note(&ask.name(world), asked, "pulled at the end");
        }
    }
}

/// Waits until nothing is under way, and everything that was is counted.
async fn settled(run: &Run, instance: &Instance, exactly: bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut wrong = String::new();
    while Instant::now() < deadline {
        let Some(metrics) = metrics(instance).await else {
            return run.journal.violation(run, OPERATOR, "no metrics");
        };
        let value = |name: &str, labels: &[(&str, &str)]| sum(&metrics, name, labels);
        let counted = value("layerhold_requests_total", &[]);
        let (answered, sent) = instance.requests();
        let fits = match exactly {
            true => counted == number(sent),
            false => (number(answered)..=number(sent)).contains(&counted),
        };
        let left = [
            value("layerhold_fills", &[]),
            value("layerhold_followers", &[]),
            value("layerhold_connections", &[]),
            value("layerhold_cache_bytes", &[("state", "reserved")]),
        ];
        let mut staged = staging(&run.fleet.dir());
        if !exactly {
            without_remainders(&mut staged);
        }
        // What was damaged is aside until the next start.
        let aside = value("layerhold_quarantined_total", &[]);
        let nothing_else = number(staged.len() as u64) <= aside;
        if left == [0.0; 4] && fits && nothing_else {
            return;
        }
        wrong = format!(
            "fills, followers, connections, reserved {left:?}, \
             {counted} counted of {answered}..{sent} requests, staged {staged:?}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    run.journal.violation(run, OPERATOR, &wrong);
}

/// What clients saw of each outcome is what was counted, and all requests have one.
async fn outcomes(run: &Run, instance: &Instance, exactly: bool) {
    let metrics = metrics(instance).await.unwrap_or_default();
    let of = |outcome: &str| {
        let labels = [("outcome", outcome)];
        sum(&metrics, "layerhold_requests_total", &labels)
    };
    for (outcome, seen) in instance.outcomes() {
        let (seen, counted) = (number(seen), of(outcome));
        // A client that leaves early may not have seen how it was answered.
        let right = if exactly {
            counted == seen
        } else {
            counted >= seen
        };
        ensure(run, right, || {
            format!("{counted} answers of outcome {outcome} were counted, {seen} seen")
        });
    }
    let all: f64 = OUTCOMES.iter().map(|it| of(it)).sum();
    let counted = sum(&metrics, "layerhold_requests_total", &[]);
    let ended = sum(&metrics, "layerhold_responses_total", &[]);
    ensure(run, all == counted && ended == counted, || {
        format!("{counted} requests, {all} outcomes and {ended} ends were counted")
    });
}

/// Takes out what interrupted fills have left for whoever asks for them next.
fn without_remainders(staged: &mut Vec<PathBuf>) {
    let is_mark = |it: &PathBuf| it.extension().is_some_and(|it| it == "mark");
    let marks: Vec<PathBuf> = staged.extract_if(.., |it| is_mark(it)).collect();
    staged.retain(|it| !marks.contains(&it.with_extension("mark")));
}

/// What the process still has open, and how much memory it needed.
async fn resources(run: &Run, instance: &Instance) {
    let deadline = Instant::now() + PATIENCE;
    let (files, others, leaked) = loop {
        let (files, others) = instance.descriptors();
        // What is published may be kept open for the next reader, once. Whoever checks content has another one for a moment.
        let mut seen = BTreeSet::new();
        let is_leaked = |it: &&String| {
            it.contains("(deleted)") || it.contains("/staging/") || !seen.insert((*it).clone())
        };
        let leaked: Vec<String> = files.iter().filter(is_leaked).cloned().collect();
        if leaked.is_empty() || Instant::now() > deadline {
            break (files.len(), others, leaked);
        }
        sleep(Duration::from_millis(100)).await;
    };
    let peak = instance.peak_memory();
    println!(
        "{files} files and {others} other descriptors, at most {} MiB",
        peak >> 20
    );
    ensure(run, leaked.is_empty(), || format!("open: {leaked:?}"));
    ensure(run, others <= OTHERS_MAX, || {
        format!("{others} sockets and the like are open")
    });
    ensure(run, peak <= MEMORY_MAX, || {
        format!("{peak} bytes of memory")
    });
}

/// What was counted as received is what fills, ways around the cache and small answers brought to the clients that caused
/// them, each of which took the whole, and what was fetched beside fills. It is what was sent, but for the words of errors, and for what was on its way when
/// there was found to be no room for it.
async fn upstream_bytes(run: &Run, instance: &Instance, sent: usize) {
    let metrics = metrics(instance).await.unwrap_or_default();
    let received = sum(&metrics, "layerhold_upstream_bytes_total", &[]);
    let answered = |outcome: &str| {
        let labels = [("outcome", outcome)];
        sum(&metrics, "layerhold_response_bytes_total", &labels)
    };
    let (brought, around) = (answered("miss"), answered("bypass"));
    let beside = sum(&metrics, "layerhold_window_bytes_total", &[]);
    let sent = number(u64::try_from(sent).unwrap());
    println!("{received} bytes received of {sent}: {brought} kept, {around} not");
    ensure(run, received == brought + around + beside, || {
        format!("{received} bytes received, {brought}, {around} and {beside} brought")
    });
    ensure(run, received <= sent && received > 0.75 * sent, || {
        format!("{received} bytes received, {sent} sent")
    });
}

/// Every published file is what its name says, and nothing else is there.
fn disk(run: &Run, dir: &Path) {
    let mut files = 0;
    for algorithm in entries(&dir.join("blobs")) {
        let algorithm_name = name(&algorithm);
        for shard in entries(&algorithm) {
            for file in entries(&shard) {
                let hex = name(&file);
                let digest = sha256(&fs::read(&file).unwrap());
                let right = digest == format!("{algorithm_name}:{hex}");
                let placed = hex.starts_with(&name(&shard));
                ensure(run, right && placed, || {
                    format!("{} is {digest}", file.display())
                });
                files += 1;
            }
        }
    }
    println!("{files} files are published");
    ensure(run, files > 0, || "nothing is published".to_owned());
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap();
    entries.map(|it| it.unwrap().path()).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn ensure(run: &Run, right: bool, wrong: impl FnOnce() -> String) {
    if !right {
        run.journal.violation(run, OPERATOR, &wrong());
    }
}

/// All outcomes that there are, in the README's words.
const OUTCOMES: [&str; 9] = [
    "hit",
    "revalidated",
    "join",
    "miss",
    "stale",
    "bypass",
    "refused",
    "failed",
    "none",
];
/// Until everything that was under way is over.
const PATIENCE: Duration = Duration::from_secs(20);
/// Listeners, the runtime's own, and idle connections to three places.
const OTHERS_MAX: usize = 20 + 3 * 64;
const MEMORY_MAX: u64 = 400 << 20;
