//! What was so, and from when until when.

use tokio::time::Instant;

/// The states of one thing, in their order. Where a change takes time, both sides of it hold meanwhile.
#[derive(Debug)]
pub(crate) struct Timeline<T> {
    states: Vec<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    value: T,
    from: Instant,
    until: Option<Instant>,
}

impl<T: PartialEq> Timeline<T> {
    pub(crate) fn new(value: T) -> Self {
        let from = Instant::now();
        let until = None;
        Self {
            states: vec![State { value, from, until }],
        }
    }

    /// What is so now.
    pub(crate) fn now(&self) -> Option<&T> {
        self.states.last().map(|it| &it.value)
    }

    /// Something else is so, first anywhere at `from`, everywhere only now.
    pub(crate) fn change(&mut self, value: T, from: Instant) {
        if let Some(last) = self.states.last_mut() {
            last.until = Some(Instant::now());
        }
        let until = None;
        self.states.push(State { value, from, until });
    }

    /// Whether it was so at some moment of this time.
    pub(crate) fn was(&self, is: impl Fn(&T) -> bool, from: Instant, until: Instant) -> bool {
        let during = |it: &&State<T>| it.from <= until && it.until.is_none_or(|end| from <= end);
        self.states.iter().filter(during).any(|it| is(&it.value))
    }
}
