//! Kernels and file systems that have not what makes it fast: all is right, and the log says it once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
use serde_json::Value;

use crate::harness::binary::field;
use crate::harness::{Binary, ProxyBuilder};
use crate::process::turn;
use crate::scene::{Counted, Scene, Way};
use crate::{CLIENTS, seed};

/// Starts the binary where these system calls are refused.
fn start_without(builder: &ProxyBuilder, calls: &[i64], error: Errno) -> Binary {
    let rules = calls.iter().map(|it| (*it, Vec::new()));
    let number = u32::try_from(error.raw_os_error()).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from_iter(rules),
        SeccompAction::Allow,
        SeccompAction::Errno(number),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    let builder = builder.clone();
    // What is refused to a thread is refused to what it starts.
    let starting = std::thread::spawn(move || {
        apply_filter(&program).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(Binary::start(&builder))
    });
    starting.join().unwrap()
}

/// The warnings of a log, each with how often it is there.
fn warnings(binary: &Binary) -> BTreeMap<String, usize> {
    let lines = binary.log();
    let warnings = lines.iter().filter(|it| it["level"] == "WARN");
    let message = |it: &Value| {
        field(it, "message")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    crate::process::counted(warnings.filter_map(message))
}

/// Everything is pulled where these calls are refused, and the log says it once for each of them.
async fn all_is_right_without(way: Way, calls: &[i64], error: Errno, said: &[&str]) {
    let start = async |builder: &ProxyBuilder| start_without(builder, calls, error);
    let scene = Scene::start_by(seed(), (way, LENS), |it| it, start).await;
    let scene = Arc::new(scene);
    scene.warm().await;
    let before = Counted::by(&scene.binary).await;
    scene.tally.reset();
    scene.crowd(CLIENTS, Duration::from_millis(500)).await;
    let counted = Counted::by(&scene.binary).await;
    counted.agrees(before, &scene.tally);
    assert_eq!(counted.by_kernel, 0.0);
    let warned = warnings(&scene.binary);
    let expected = said.iter().map(|it| ((*it).to_owned(), 1)).collect();
    assert_eq!(warned, expected, "{way:?}, {error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_where_reading_without_waiting_is_refused() {
    let _turn = turn().await;
    let calls = [libc::SYS_preadv2];
    for (way, error) in [
        (Way::Plain, Errno::OPNOTSUPP),
        (Way::Plain, Errno::NOSYS),
        (Way::Tls, Errno::PERM),
    ] {
        all_is_right_without(way, &calls, error, &[NO_NOWAIT]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_right_where_sendfile_is_refused() {
    let _turn = turn().await;
    for error in [Errno::INVAL, Errno::NOSYS] {
        all_is_right_without(Way::Plain, &[libc::SYS_sendfile], error, &[NO_SENDFILE]).await;
    }
    // What cannot be seen to be in memory is not sent from there.
    let calls = [libc::SYS_sendfile, libc::SYS_preadv2];
    all_is_right_without(Way::Plain, &calls, Errno::PERM, &[NO_NOWAIT]).await;
}

const NO_NOWAIT: &str = "a file cannot be read without waiting, reading it on other threads";
const NO_SENDFILE: &str = "sendfile is refused, reading instead";
/// At the border between small and large, and beyond it.
const LENS: &[u64] = &[
    1,
    4 << 10,
    (1 << 20) - 1,
    1 << 20,
    6_000_001,
    (20 << 20) + 77,
];
