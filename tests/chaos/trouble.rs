//! What went wrong upstream, when, and what that excuses.

use std::time::Duration;

use tokio::time::Instant;

use crate::harness::Fault;

/// Who is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The registry of this number.
    Registry(usize),
    /// The mirror of the first registry.
    Mirror,
}

/// What it happens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Everything,
    Blobs,
    Manifests,
    /// One blob or manifest.
    Digest(String),
}

/// What kind of object an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject<'a> {
    Blob(&'a str),
    Manifest(&'a str),
    /// A tag, or a list of them.
    Name,
}

/// Something that goes wrong for a while.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) place: Place,
    /// None: it is switched off.
    pub(crate) fault: Option<Fault>,
    pub(crate) target: Target,
    pub(crate) from: Instant,
    pub(crate) until: Option<Instant>,
}

/// All trouble so far.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Vec<Trouble>);

impl Troubles {
    pub(crate) fn begin(&mut self, place: Place, fault: Option<Fault>, target: Target) -> usize {
        let from = Instant::now();
        self.0.push(Trouble {
            place,
            fault,
            target,
            from,
            until: None,
        });
        self.0.len() - 1
    }

    pub(crate) fn end(&mut self, n: usize) {
        if let Some(trouble) = self.0.get_mut(n) {
            trouble.until = Some(Instant::now());
        }
    }

    /// The machine was too busy for all of them, since this moment.
    pub(crate) fn stalled(&mut self, from: Instant) {
        for place in [Place::Registry(0), Place::Registry(1), Place::Mirror] {
            let n = self.begin(place, Some(Fault::Silence), Target::Everything);
            self.0[n].from = from;
            self.end(n);
        }
    }

    /// Whether a failure at this registry is excused, for a request in this time.
    pub(crate) fn excuse(&self, of: usize, subject: Subject<'_>, time: (Instant, Instant)) -> bool {
        self.0.iter().any(|it| {
            let failing = match it.place {
                Place::Registry(n) => n == of && !it.is_harmless(),
                // Anything but a lie is made good by the registry itself.
                Place::Mirror => of == 0 && it.is_lie(),
            };
            failing && it.concerns(subject) && it.overlaps(time, it.aftermath())
        })
    }

    /// Whether a tag's check may have failed in this time or since, when it last went right at `right`.
    pub(crate) fn excuse_tag(
        &self,
        of: usize,
        time: (Instant, Instant),
        right: Option<Instant>,
    ) -> bool {
        self.0.iter().any(|it| {
            let failing = it.place == Place::Registry(of) && !it.is_harmless();
            let relevant = failing && it.concerns(Subject::Name);
            let still = |until: Instant| right.is_none_or(|right| right <= until + AFTERMATH);
            relevant
                && (it.overlaps(time, it.aftermath())
                    // The pause after failed checks doubles up to a minute, and ends with the first that goes right.
                    || it.overlaps(time, PAUSE_MAX) && it.until.is_none_or(still))
        })
    }

    /// Whether the registry itself may have said 404.
    pub(crate) fn gone(&self, of: usize, subject: Subject<'_>, time: (Instant, Instant)) -> bool {
        self.0.iter().any(|it| {
            let said = it.place == Place::Registry(of) && it.fault == Some(Fault::Status(404));
            said && it.concerns(subject) && it.overlaps(time, it.aftermath())
        })
    }

    /// Whether somebody may have sent wrong bytes for it.
    pub(crate) fn lied(&self, subject: Subject<'_>, time: (Instant, Instant)) -> bool {
        self.0
            .iter()
            .any(|it| it.is_lie() && it.concerns(subject) && it.overlaps(time, LIE))
    }

    /// Whether somebody may have kept the length of it to themselves.
    pub(crate) fn unmeasured(&self, subject: Subject<'_>, time: (Instant, Instant)) -> bool {
        self.0.iter().any(|it| {
            let hidden = matches!(
                it.fault,
                Some(Fault::NoLength | Fault::Gzip | Fault::CutUnmeasured(_))
            );
            hidden && it.concerns(subject) && it.overlaps(time, LIE)
        })
    }

    /// All that overlaps this time, for whoever wants to understand.
    pub(crate) fn during(&self, from: Instant, until: Instant) -> impl Iterator<Item = &Trouble> {
        let time = (from, until);
        self.0
            .iter()
            .filter(move |it| it.overlaps(time, Duration::ZERO))
    }
}

impl Trouble {
    /// Whatever has to be understood all the same.
    fn is_harmless(&self) -> bool {
        matches!(
            self.fault,
            Some(
                Fault::NoLength
                    | Fault::NoRange
                    | Fault::Gzip
                    | Fault::NoDigestHeader
                    | Fault::OtherAlgorithmHeader
            )
        )
    }

    /// Whether it takes the whole to see that something is wrong.
    fn is_lie(&self) -> bool {
        matches!(
            self.fault,
            Some(Fault::Corrupt(_) | Fault::ShortLength | Fault::LongLength)
        )
    }

    fn concerns(&self, subject: Subject<'_>) -> bool {
        match (&self.target, subject) {
            (Target::Everything, _) => true,
            // Whoever asks for a pause gets it, whatever is asked for.
            _ if matches!(self.fault, Some(Fault::RateLimit(_))) => true,
            (Target::Blobs, Subject::Blob(_)) => true,
            (Target::Manifests, Subject::Manifest(_) | Subject::Name) => true,
            // A tag may mean any manifest.
            (Target::Digest(_), Subject::Name) => true,
            (Target::Digest(digest), Subject::Blob(it) | Subject::Manifest(it)) => digest == it,
            (Target::Blobs | Target::Manifests, _) => false,
        }
    }

    /// How long it shows after it is over.
    fn aftermath(&self) -> Duration {
        if self.is_lie() {
            return LIE + AFTERMATH;
        }
        AFTERMATH
    }

    fn overlaps(&self, (from, until): (Instant, Instant), aftermath: Duration) -> bool {
        self.from <= until && self.until.is_none_or(|end| from <= end + aftermath)
    }
}

/// What was under way when trouble ended is given up only then: silence, and a few attempts.
const AFTERMATH: Duration = Duration::from_secs(5);
/// A source that sent wrong bytes under a digest is not asked for it this long.
const LIE: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(60);
