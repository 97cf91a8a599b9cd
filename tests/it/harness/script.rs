//! The vocabulary of what goes wrong upstream, and which request it happens to.

/// Which requests are meant.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    method: Option<&'static str>,
    part: String,
}

/// What the fake does instead of what it should. Positions count the bytes of the body at hand, not of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answers this status, with an error body.
    Status(u16),
    /// Answers 429 and asks for this many seconds of patience.
    RateLimit(u32),
    /// Closes the connection without an answer.
    Refuse,
    /// Closes the connection after this many bytes of the body.
    CutAfter(usize),
    /// The same, without having declared a length.
    CutUnmeasured(usize),
    /// The same, under another `ETag`.
    CutAs(usize, &'static str),
    /// Says nothing more after this many bytes of the body; zero: after the head.
    StallAfter(usize),
    /// Says nothing at all, not even a head.
    Silence,
    /// Turns the byte at this place over.
    Corrupt(usize),
    /// Declares half the length and ends there, cleanly.
    ShortLength,
    /// Declares more than comes, then closes.
    LongLength,
    /// Declares no length: chunked.
    NoLength,
    /// Answers a range with the whole.
    NoRange,
    /// Answers a range with another one, honestly labelled.
    WrongRange,
    /// Answers a range with one that begins behind it, honestly labelled.
    LateRange,
    /// Answers 206 with so many of the first bytes, though nobody asked for a part.
    PartUnasked(usize),
    /// The same, and does not say of how many.
    PartOfUnknown(usize),
    /// Names the digest of other bytes.
    WrongDigestHeader,
    /// Names the digest of other bytes by another algorithm.
    OtherAlgorithmHeader,
    /// Names something that is no digest.
    BadDigestHeader,
    /// Names no digest.
    NoDigestHeader,
    /// Answers a web page, with 200.
    Html200,
    /// Sends the right content inside gzip, though nobody asked for it.
    Gzip,
    /// Sends the right content under another type.
    Type(&'static str),
    /// Points elsewhere: a path on this fake that nobody should follow.
    Redirect,
}

/// Which of the requests at a target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    skip: usize,
    take: usize,
}

/// One fault, waiting for its requests.
#[derive(Debug)]
pub(crate) struct Rule {
    target: Target,
    turns: Turns,
    fault: Fault,
}

/// Where some requests are sent instead of being answered.
#[derive(Debug)]
pub(super) struct Redirect {
    target: Target,
    pub(super) status: u16,
    location: String,
    count: usize,
}

/// The faults of one fake.
#[derive(Debug, Default)]
pub(crate) struct Script {
    rules: Vec<Rule>,
}

impl Target {
    /// Whether this request is meant.
    pub(crate) fn matches(&self, method: &str, path: &str) -> bool {
        self.method.is_none_or(|it| it == method) && path.contains(&self.part)
    }
}

impl Turns {
    /// All of them.
    pub(crate) const EVERY: Self = Self {
        skip: 0,
        take: usize::MAX,
    };

    /// The next one only.
    pub(crate) const NEXT: Self = Self { skip: 0, take: 1 };

    /// The `n`th from now, counted from one.
    pub(crate) fn nth(n: usize) -> Self {
        Self {
            skip: n - 1,
            take: 1,
        }
    }

    /// The next `n`.
    pub(crate) fn first(n: usize) -> Self {
        Self { skip: 0, take: n }
    }

    /// Whether it is this request's turn; counts it.
    fn come(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        let due = self.take > 0;
        self.take = self.take.saturating_sub(1);
        due
    }
}

impl Redirect {
    pub(super) fn new(target: Target, status: u16, location: String) -> Self {
        Self {
            target,
            status,
            location,
            count: 0,
        }
    }

    /// Whether this request is sent elsewhere.
    pub(super) fn is_for(&self, method: &str, path: &str) -> bool {
        self.target.matches(method, path)
    }

    /// Where it is sent; counts it.
    pub(super) fn next(&mut self) -> String {
        let location = self.location.replace("{n}", &self.count.to_string());
        self.count += 1;
        location
    }
}

impl Script {
    pub(crate) fn add(&mut self, target: Target, turns: Turns, fault: Fault) {
        self.rules.push(Rule {
            target,
            turns,
            fault,
        });
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// The fault for this request: of those whose turn it is, the one added last.
    pub(crate) fn take(&mut self, method: &str, path: &str) -> Option<Fault> {
        let mut due = None;
        for rule in &mut self.rules {
            if rule.target.matches(method, path) && rule.turns.come() {
                due = Some(rule.fault);
            }
        }
        due
    }
}

/// GET requests whose path contains `part`.
pub(crate) fn get(part: impl Into<String>) -> Target {
    Target {
        method: Some("GET"),
        part: part.into(),
    }
}

/// HEAD requests whose path contains `part`.
pub(crate) fn head(part: impl Into<String>) -> Target {
    Target {
        method: Some("HEAD"),
        part: part.into(),
    }
}

/// All requests whose path contains `part`.
pub(crate) fn any(part: impl Into<String>) -> Target {
    Target {
        method: None,
        part: part.into(),
    }
}
