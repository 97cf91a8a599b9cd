//! The log, on its way to stderr.
//!
//! Every request writes a line, so a line is made once, in memory that is used again, and many go out in one write. One that
//! somebody may have to act upon goes at once; the others within milliseconds, and all of them before the process ends.
//!
//! Whoever reads slowly slows us down, so that no line is lost. Whoever stops reading does not stop us: then lines are lost
//! and counted, and the log says how many once it is read again. A process that is killed takes those of its last milliseconds
//! with it, warnings and errors excepted.
//!
//! **What is absent:** nothing here knows what is logged.

mod json;
mod lines;
mod metrics;

use std::io::{self, IsTerminal, Write};

use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{Log, LogFormat};
use json::JsonLines;
use lines::{Lines, Urgency};

pub use metrics::register;

/// The log of this process; dropped, it writes what it has.
#[derive(Debug)]
pub struct Logging {
    lines: Lines,
}

impl Logging {
    /// Starts the log of this process. Until [`Self::hurry`] each line is written at once, by whoever logs it.
    pub fn start(log: Log) -> Self {
        let terminal = io::stderr().is_terminal();
        let text = match log.format {
            Some(LogFormat::Text) => true,
            Some(LogFormat::Json) => false,
            None => terminal,
        };
        let level = LevelFilter::from_level(log.level);
        let targets = Targets::new()
            .with_default(level.min(LevelFilter::WARN))
            .with_target("layerhold", level);
        let lines = Lines::new(io::stderr());
        let written = if text {
            // Colours on a terminal, unless NO_COLOR is set.
            let text = fmt::layer().with_writer(lines.clone());
            if terminal {
                text.boxed()
            } else {
                text.with_ansi(false).boxed()
            }
        } else {
            JsonLines::new(lines.clone()).boxed()
        };
        tracing_subscriber::registry()
            .with(written)
            .with(targets)
            .init();
        Self { lines }
    }

    /// From now on a thread of its own writes, so that nobody who logs waits for the reader.
    ///
    /// # Errors
    ///
    /// When there can be no such thread; then all stays as it was.
    pub fn hurry(&self) -> io::Result<()> {
        self.lines.write_apart()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.lines.finish();
    }
}

/// A line that the library makes: it gives it whole.
#[derive(Debug)]
struct Line<'a> {
    lines: &'a Lines,
    urgency: Urgency,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        let urgency = Urgency::Soon;
        Line {
            lines: self,
            urgency,
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line<'a> {
        Line {
            lines: self,
            urgency: Urgency::of(*metadata.level()),
        }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.write(line, self.urgency);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
