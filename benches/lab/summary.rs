//! Rounds in one line.

use std::fmt;

/// The median of some rounds, and how far they were apart.
pub(crate) struct Summary {
    sorted: Vec<f64>,
}

impl Summary {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    pub(crate) fn median(&self) -> f64 {
        self.sorted[self.sorted.len() / 2]
    }

    pub(crate) fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }
}

/// `median [min-max]`, or `-` where there is none, with as many decimals as asked for (`{:.2}`), padded as one word.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = f.precision().unwrap_or(2);
        let text = if self.median().is_nan() {
            "-".to_owned()
        } else {
            format!(
                "{:.decimals$} [{:.decimals$}-{:.decimals$}]",
                self.median(),
                self.sorted[0],
                self.max(),
            )
        };
        write!(f, "{text:<width$}", width = f.width().unwrap_or(0))
    }
}
