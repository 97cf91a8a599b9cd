//! One test binary for the whole application.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

#[test]
fn x() {
    Some(1).unwrap();
}
