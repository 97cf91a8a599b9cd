//! What was to be reached, beside what was.

use super::block::aligned;
use super::summary::Summary;

/// Targets of the rows that ran, in their order.
#[derive(Default)]
pub(crate) struct Verdicts(Vec<Verdict>);

struct Verdict {
    row: &'static str,
    what: String,
    target: Target,
    /// `None` where a peer is not installed.
    measured: Option<Summary>,
}

/// Of a median.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Verdicts {
    pub(crate) fn add(
        &mut self,
        row: &'static str,
        what: impl Into<String>,
        target: Target,
        measured: Option<Summary>,
    ) {
        self.0.push(Verdict {
            row,
            what: what.into(),
            target,
            measured,
        });
    }

    pub(crate) fn print(&self) {
        let heading = ["row", "what", "measured", "to reach", ""].map(str::to_owned);
        let lines = [heading.to_vec()].into_iter();
        let lines: Vec<Vec<String>> = lines.chain(self.0.iter().map(Verdict::line)).collect();
        print!("{}", aligned(&lines));
    }
}

impl Verdict {
    fn line(&self) -> Vec<String> {
        let (target, met) = match (self.target, &self.measured) {
            (Target::AtLeast(least), measured) => (
                format!(">= {least:.2}"),
                measured.as_ref().map(|it| it.median() >= least),
            ),
            (Target::AtMost(most), measured) => (
                format!("<= {most:.2}"),
                measured.as_ref().map(|it| it.median() <= most),
            ),
        };
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "the peer is not installed",
        };
        let measured = self.measured.as_ref();
        vec![
            self.row.to_owned(),
            self.what.clone(),
            measured.map_or("-".to_owned(), |it| format!("{it:.2}")),
            target,
            verdict.to_owned(),
        ]
    }
}
