//! Every parser of foreign text is fed what its authors did not think of.
//!
//! ```text
//! cargo test --test fuzz                         # about a second for each target, from a new seed, which is printed
//! FUZZ_SECONDS=60 FUZZ_SEED=7 cargo test --test fuzz challenge
//! cargo +nightly fuzz run --fuzz-dir tests/fuzz challenge
//! ```
//!
//! A target feeds one parser and asserts what holds whatever comes: not only that nothing panics, but that what is accepted
//! renders back, that limits hold, and that the parser accepts exactly what an independent reading of the rules accepts.
//! The targets are in `targets`, for both ways to run them. Here they run in a loop: inputs are made by changing real ones
//! (`mutate`), and what a parser accepts is changed further. cargo-fuzz finds its way by what an input reaches in the code;
//! it is for hours by hand, and needs a nightly compiler.
//!
//! A failing input is made smaller and printed as a byte string, for a test next to the parser.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot set up has failed"
)]
#![expect(clippy::print_stdout, reason = "seeds and inputs are printed")]

mod port;
mod mutate;
mod targets;

#[path = "../it/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "it is made for other tests, which need all of it"
)]
mod harness;

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::Duration;

use tokio::time::Instant;

use crate::mutate::Mutator;
use crate::targets::{TARGETS, Target};

/// One test for each of the targets.
macro_rules! tests {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name));
            }
        )*

        const TESTS: &[&str] = &[$(stringify!($name)),*];
    };
}

tests! {
    digest name tag namespace pattern full_reference endpoint media_type manifest
    range content_range conditional retry_after host forwarded proxy_header network size duration rate
    authorization token_request challenge token credential_helper realm redirect link no_proxy tunnel_answer gzip
    listing purge_order verify_order purge_report verify_line
    grants tag_record layout
    config options client_config
    access_file password_file certificates store_version
}

/// Runs a target until its time is up.
fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|it| it.name == name).unwrap();
    let (seed, length) = (seed(), length());
    println!("FUZZ_SEED={seed}, {length:?} of {name}");
    let mut inputs = Mutator::new(target, seed);
    let (began, mut runs, mut accepted) = (Instant::now(), 0_u64, 0_u64);
    for seed in target.seeds {
        accepted += u64::from(run(target, seed));
    }
    while began.elapsed() < length {
        for _ in 0..16 {
            let input = inputs.next();
            runs += 1;
            if run(target, &input) {
                accepted += 1;
                inputs.keep(input);
            }
        }
    }
    println!("{runs} inputs, of which {accepted} were accepted");
    assert!(accepted > 0, "not even a seed is accepted");
}

/// Whether the parser accepts the input. Where a property does not hold, the test fails with a small input that shows it.
fn run(target: &Target, input: &[u8]) -> bool {
    if let Ok(accepted) = panic::catch_unwind(|| (target.run)(input)) {
        return accepted;
    }
    let input = smaller(target, input.to_vec());
    panic!("{} fails with b\"{}\"", target.name, input.escape_ascii());
}

/// What is left of a failing input when every part is left out that can be.
fn smaller(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let fails = |input: &[u8]| {
        silently(|| panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err())
    };
    let mut part = input.len();
    while part > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut without = input.clone();
            without.drain(at..(at + part).min(input.len()));
            if fails(&without) {
                input = without;
            } else {
                at += part;
            }
        }
        part /= 2;
    }
    input
}

/// Does something that may panic often and need not be told each time.
fn silently<T>(what: impl FnOnce() -> T) -> T {
    thread_local! {
        static IS_SILENT: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_SILENT.get() {
                tell(panic);
            }
        }));
    });
    IS_SILENT.set(true);
    let done = what();
    IS_SILENT.set(false);
    done
}

/// What the inputs follow from.
fn seed() -> u64 {
    number("FUZZ_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32))
}

/// How long each target runs.
fn length() -> Duration {
    Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(1))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn every_target_runs_here_and_by_cargo_fuzz() {
    let targets: Vec<&str> = TARGETS.iter().map(|it| it.name).collect();
    assert_eq!(targets, TESTS);
    let manifest: toml::Table = include_str!("Cargo.toml").parse().unwrap();
    let binaries = manifest["bin"].as_array().unwrap();
    let names: Vec<&str> = binaries
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, TESTS);
}

#[test]
fn a_failing_input_is_made_small() {
    let target = Target {
        name: "b",
        run: |input| {
            assert!(!input.contains(&b'b'));
            false
        },
        seeds: &[],
        words: &[],
    };
    assert_eq!(smaller(&target, b"aaaabaaa".to_vec()), b"b");
}
