//! The same work done by several, who take turns, so that a noisy minute is everybody's.

use std::fmt::Write;

use super::summary::Summary;

/// What is told of each contender.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    decimals: usize,
    /// Whether it is told in multiples of the reference too.
    is_compared: bool,
}

impl Column {
    pub(crate) const fn plain(name: &'static str, decimals: usize) -> Self {
        Self {
            name,
            decimals,
            is_compared: false,
        }
    }

    /// One that is told in multiples of the reference too.
    pub(crate) const fn compared(name: &'static str, decimals: usize) -> Self {
        Self {
            name,
            decimals,
            is_compared: true,
        }
    }
}

/// Contenders for the same work, with `N` numbers for each turn of each.
pub(crate) struct Block<'a, const N: usize> {
    title: String,
    columns: [Column; N],
    /// The contender that the others are told in multiples of.
    reference: &'static str,
    contenders: Vec<Contender<'a, N>>,
}

struct Contender<'a, const N: usize> {
    name: String,
    turn: Box<dyn FnMut() -> [f64; N] + 'a>,
    rounds: Vec<[f64; N]>,
}

impl<'a, const N: usize> Block<'a, N> {
    pub(crate) fn new(title: String, columns: [Column; N], reference: &'static str) -> Self {
        Self {
            title,
            columns,
            reference,
            contenders: Vec::new(),
        }
    }

    /// Adds a contender and what it does in its turn, which gives a number for each column; NaN is none.
    pub(crate) fn enter(&mut self, name: impl Into<String>, turn: impl FnMut() -> [f64; N] + 'a) {
        self.contenders.push(Contender {
            name: name.into(),
            turn: Box::new(turn),
            rounds: Vec::new(),
        });
    }

    /// Has each contender take its turn in each round, and prints what came of it.
    pub(crate) fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            for contender in &mut self.contenders {
                let numbers = (contender.turn)();
                contender.rounds.push(numbers);
            }
        }
        println!("{}, {rounds} rounds: median [min-max]", self.title);
        let lines = [self.heading()].into_iter();
        let lines: Vec<Vec<String>> = lines
            .chain(self.contenders.iter().map(|it| self.line(it)))
            .collect();
        print!("{}", aligned(&lines));
        println!();
    }

    /// A number of a contender, round by round; if it took part.
    pub(crate) fn numbers(&self, name: &str, column: usize) -> Option<Vec<f64>> {
        let contender = self.contenders.iter().find(|it| it.name == name)?;
        Some(contender.rounds.iter().map(|it| it[column]).collect())
    }

    pub(crate) fn summary(&self, name: &str, column: usize) -> Option<Summary> {
        self.numbers(name, column).map(Summary::of)
    }

    /// How many times that of the other it is, round by round; if both took part.
    pub(crate) fn ratio(&self, name: &str, other: &str, column: usize) -> Option<Summary> {
        let pairs = self.pairs(name, other, column)?;
        Some(Summary::of(pairs.map(|(one, other)| one / other)))
    }

    /// How much more than that of the other it is, round by round; if both took part.
    pub(crate) fn difference(&self, name: &str, other: &str, column: usize) -> Option<Summary> {
        let pairs = self.pairs(name, other, column)?;
        Some(Summary::of(pairs.map(|(one, other)| one - other)))
    }

    fn pairs(
        &self,
        name: &str,
        other: &str,
        column: usize,
    ) -> Option<impl Iterator<Item = (f64, f64)> + use<'a, N>> {
        let (one, other) = (self.numbers(name, column)?, self.numbers(other, column)?);
        Some(one.into_iter().zip(other))
    }

    fn heading(&self) -> Vec<String> {
        let mut cells = vec![String::new()];
        for column in &self.columns {
            cells.push(column.name.to_owned());
            if column.is_compared {
                cells.push(format!("x {}", self.reference));
            }
        }
        cells
    }

    fn line(&self, contender: &Contender<'a, N>) -> Vec<String> {
        let mut cells = vec![contender.name.clone()];
        for (at, column) in self.columns.iter().enumerate() {
            let numbers = Summary::of(contender.rounds.iter().map(|it| it[at]));
            cells.push(format!("{numbers:.*}", column.decimals));
            if column.is_compared {
                let ratio = self.ratio(&contender.name, self.reference, at);
                let ratio = ratio.map(|it| it.median()).filter(|it| !it.is_nan());
                cells.push(ratio.map_or("-".to_owned(), |it| format!("{it:.2}")));
            }
        }
        cells
    }
}

/// Lines of cells, each column as wide as its widest cell.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |at: usize| {
        lines
            .iter()
            .filter_map(|it| it.get(at))
            .map(String::len)
            .max()
    };
    let mut text = String::new();
    for line in lines {
        let mut padded = String::new();
        for (at, cell) in line.iter().enumerate() {
            write!(padded, "{cell:<0$}  ", width(at).unwrap_or(0)).unwrap();
        }
        text += padded.trim_end();
        text.push('\n');
    }
    text
}
