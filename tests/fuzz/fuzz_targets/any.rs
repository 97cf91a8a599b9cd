//! The target that the binary is named after.
#![no_main]
#![expect(clippy::unwrap_used, reason = "a target that cannot set up has failed")]

#[path = "../targets/mod.rs"]
#[allow(dead_code, reason = "what libFuzzer makes itself is for the loop only")]
mod targets;

use libfuzzer_sys::fuzz_target;

use targets::TARGETS;

fuzz_target!(|input: &[u8]| {
    let name = env!("CARGO_BIN_NAME");
    let target = TARGETS.iter().find(|it| it.name == name).unwrap();
    (target.run)(input);
});
