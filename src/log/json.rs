//! A line for machines: one object, with the fields of the event in their order.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_log::NormalizeEvent;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::Context;

use super::lines::{Lines, Urgency};

/// Makes the lines.
#[derive(Debug)]
pub(super) struct JsonLines {
    lines: Lines,
}

/// What is used again for the next line of a thread.
#[derive(Default)]
struct Scratch {
    line: Vec<u8>,
    /// The second of a line before, and what its time began with.
    second: (u64, String),
    /// A value that is not text yet.
    value: String,
}

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

impl JsonLines {
    pub(super) fn new(lines: Lines) -> Self {
        Self { lines }
    }
}

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // A value that logs while it is shown finds none, as what is dropped with its thread does, and gets its own.
        let found = SCRATCH.try_with(Cell::take).ok().flatten();
        let mut scratch = found.unwrap_or_default();
        scratch.render(event);
        let urgency = Urgency::of(*event.metadata().level());
        self.lines.write(&scratch.line, urgency);
        let _ = SCRATCH.try_with(|it| it.set(Some(scratch)));
    }
}

impl Scratch {
    fn render(&mut self, event: &Event<'_>) {
        self.line.clear();
        self.line.extend_from_slice(b"{\"timestamp\":\"");
        self.time();
        self.line.extend_from_slice(b"\",\"level\":\"");
        // An event of a library that knows another way to log says in fields of its own where it is from.
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        self.line
            .extend_from_slice(metadata.level().as_str().as_bytes());
        self.line.push(b'"');
        event.record(self);
        self.text("target", metadata.target());
        self.line.extend_from_slice(b"}\n");
    }

    /// To the microsecond (RFC 3339). All lines of a second begin with the same, which the library wrote for the first of them.
    fn time(&mut self) {
        let now = since_epoch();
        let (second, begin) = &self.second;
        if *second == now.as_secs() && !begin.is_empty() {
            self.line.extend_from_slice(begin.as_bytes());
            let _ = write!(self.line, "{:06}Z", now.subsec_micros());
            return;
        }
        self.value.clear();
        // Writing to memory does not fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut self.value));
        self.line.extend_from_slice(self.value.as_bytes());
        // Known to be of this second only if that was not over meanwhile.
        if let Some((begin, _)) = self.value.split_once('.')
            && since_epoch().as_secs() == now.as_secs()
        {
            self.second = (now.as_secs(), format!("{begin}."));
        }
    }

    fn name(&mut self, name: &str) {
        self.line.extend_from_slice(b",\"");
        // The name of a variable, with dots perhaps.
        self.line.extend_from_slice(name.as_bytes());
        self.line.extend_from_slice(b"\":");
    }

    fn entry(&mut self, name: &str, value: impl Serialize) {
        self.name(name);
        // Text, numbers and words can always be written.
        let _ = serde_json::to_writer(&mut self.line, &value);
    }

    fn text(&mut self, name: &str, value: &str) {
        // Nearly all is as it is written (RFC 8259 §7).
        let is_plain = |byte: u8| (byte >= b' ') & (byte != b'"') & (byte != b'\\');
        // Looked at to the end, sixteen at once.
        if !value.bytes().fold(true, |all, it| all & is_plain(it)) {
            return self.entry(name, value);
        }
        self.name(name);
        self.line.push(b'"');
        self.line.extend_from_slice(value.as_bytes());
        self.line.push(b'"');
    }
}

impl Visit for Scratch {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.entry(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.entry(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.entry(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.entry(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = std::mem::take(&mut self.value);
        text.clear();
        // As above.
        let _ = write!(text, "{value:?}");
        self.text(field.name(), &text);
        self.value = text;
    }
}

/// How long ago the epoch began.
#[expect(
    clippy::disallowed_methods,
    reason = "when a line was written is said in it, and decides nothing"
)]
fn since_epoch() -> Duration {
    let now = std::time::SystemTime::now();
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What was written, by either of two ways.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        /// The lines, without the time that each was written at.
        fn lines(&self) -> Vec<String> {
            let text = String::from_utf8(self.0.lock().clone()).unwrap();
            let timeless = |line: &str| {
                let (time, rest) =
                    line.split_at("{'timestamp':'2026-11-23T12:34:56.123456Z'".len());
                assert!(
                    time.starts_with("{\"timestamp\":\"2") && time.ends_with("Z\""),
                    "{line}"
                );
                rest.to_owned()
            };
            text.lines().map(timeless).collect()
        }
    }

    fn log_something() {
        let (nothing, something) = (None::<&str>, Some(0.25));
        let quick = Duration::from_micros(1500);
        tracing::info!(client = %"192.0.2.1", tls = true, nothing, something, ?quick, "request");
        tracing::warn!(
            n = -3_i64,
            big = u64::MAX,
            huge = u128::MAX,
            tiny = 1e-7,
            "numbers"
        );
        tracing::error!(error = %"a \"b\"\\\n\u{1b}[0m\u{7f}\u{fc}\u{2028}", r#type = "x", "");
        tracing::debug!(target: "some::where", not = f64::NAN, "{} and {}", 1, "two\t");
        tracing::info!(a.b = 1, none = true);
        let record = tracing_log::log::Record::builder()
            .level(tracing_log::log::Level::Warn)
            .target("a_library")
            .args(format_args!("told \"otherwise\""))
            .build();
        tracing_log::format_trace(&record).unwrap();
    }

    #[test]
    fn a_line_is_as_the_library_would_have_written_it() {
        let (ours, theirs) = (Written::default(), Written::default());
        let lines = JsonLines::new(Lines::new(ours.clone()));
        let made = theirs.clone();
        let library = tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .with_writer(move || made.clone());
        let both = tracing_subscriber::registry().with(lines).with(library);
        tracing::subscriber::with_default(both, log_something);
        let (ours, theirs) = (ours.lines(), theirs.lines());
        assert_eq!(theirs.len(), 6, "{theirs:#?}");
        assert_eq!(ours, theirs);
    }

    #[test]
    fn the_times_of_lines_are_those_that_the_library_writes_before_and_after() {
        let mut scratch = Scratch::default();
        let library = || {
            let mut text = String::new();
            SystemTime.format_time(&mut Writer::new(&mut text)).unwrap();
            text
        };
        let mut before = library();
        let first = before.clone();
        // So that a second ends under way.
        while before[..SECONDS_CHARS] == first[..SECONDS_CHARS] {
            for _ in 0..1000 {
                scratch.line.clear();
                scratch.time();
                let time = str::from_utf8(&scratch.line).unwrap();
                let after = library();
                assert!(
                    *before <= *time && *time <= *after,
                    "{before} {time} {after}"
                );
                before = after;
            }
        }
        // The first lines of the next second, too.
        scratch.line.clear();
        scratch.time();
        assert!(scratch.line.as_slice() >= before.as_bytes());
    }

    /// `2026-11-23T12:34:56`
    const SECONDS_CHARS: usize = 19;

    #[test]
    fn a_value_stays_within_its_quotation_marks() {
        let mut scratch = Scratch::default();
        scratch.text("path", "/a\"b\\c\n\r\u{1b}[0m\u{7f}\u{fc}");
        scratch.entry("bytes", 17_u64);
        scratch.entry("ms", 0.125);
        scratch.entry("nothing", f64::NAN);
        let line = String::from_utf8([b"{\"a\":1", &*scratch.line, b"}"].concat()).unwrap();
        assert!(line.bytes().all(|it| it >= b' '), "{line:?}");
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["path"], "/a\"b\\c\n\r\u{1b}[0m\u{7f}\u{fc}");
        assert_eq!(
            (&object["bytes"], &object["ms"]),
            (&17.into(), &0.125.into())
        );
        assert!(object["nothing"].is_null());
    }
}
