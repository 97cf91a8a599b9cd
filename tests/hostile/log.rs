//! What the binary wrote about all this.

use std::collections::HashMap;

use serde_json::Value;

use crate::harness::binary::field;
use crate::harness::proxy::Front;
use crate::harness::{Binary, poll};

/// The lines of the log so far.
pub(crate) struct Log(Vec<String>);

impl Log {
    /// What was written until nobody is connected any more: a request's line comes with its end.
    pub(crate) async fn of(binary: &Binary) -> Self {
        Self::through(binary, binary).await
    }

    /// The same of a binary whose registry port is reached otherwise.
    pub(crate) async fn through(front: &Front, binary: &Binary) -> Self {
        front
            .wait_for_metric("layerhold_connections", &[], |it| it == 0.0)
            .await;
        // What is written last tells that everything before it was read.
        let whole = front.get("/v2/").whole().await;
        let id = whole.head.header("x-request-id").unwrap();
        let lines = poll("the last line of the log", async || {
            let lines = binary.log_lines();
            lines.iter().any(|it| it.contains(id)).then_some(lines)
        });
        Self(lines.await)
    }

    /// Fails the test where a line is not one object in visible characters, where one is a client's or a registry's own, and where
    /// an answered request has no line or two.
    pub(crate) fn is_sane(&self, answered: &[String]) {
        let mut lines_of: HashMap<String, usize> = HashMap::new();
        for line in &self.0 {
            assert!(line.chars().all(is_visible), "{line:?}");
            assert!(line.len() <= LINE_BYTES_MAX, "{line:?}");
            let object: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"));
            assert!(object.is_object(), "{line:?}");
            let text = |name| field(&object, name).and_then(Value::as_str);
            let ours = text("target").is_some_and(|it| it.starts_with("layerhold"));
            assert!(ours && !is_forged(text("message")), "{line:?}");
            if text("message") == Some("request") {
                let id = text("request").unwrap().to_owned();
                *lines_of.entry(id).or_default() += 1;
            }
        }
        for (id, lines) in &lines_of {
            assert_eq!(*lines, 1, "lines of request {id}");
        }
        for id in answered {
            assert!(lines_of.contains_key(id), "no line of request {id}");
        }
        println!(
            "{} lines of the log, {} requests",
            self.0.len(),
            lines_of.len()
        );
    }
}

impl Log {
    /// Fails the test where one of these is in it.
    pub(crate) fn has_none_of(&self, secrets: &[&str]) {
        let is_told = |line: &&String| secrets.iter().any(|it| line.contains(it));
        assert_eq!(self.0.iter().find(is_told), None);
    }
}

/// What shows as itself wherever a log is read; of foreign letters there are too many to name those that do not.
fn is_visible(character: char) -> bool {
    let is_letter = character.is_alphanumeric() || character == char::REPLACEMENT_CHARACTER;
    character.is_ascii_graphic() || character == ' ' || (!character.is_ascii() && is_letter)
}

fn is_forged(message: Option<&str>) -> bool {
    message.is_none_or(|it| it.contains(FORGED))
}

/// What attackers would have the log say.
pub(crate) const FORGED: &str = "forged";
/// More than any line needs.
const LINE_BYTES_MAX: usize = 8 << 10;
