//! The bytes of one blob, in order, whatever happens on the way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::body::Body;
use super::client::{Mirror, Upstream};
use super::error::{Error, Fault};
use super::part::{Ahead, Asked, PART_BYTES, Part};
use super::site::{BlobAnswer, Site};
use crate::oci::{Digest, RepositoryName};

/// A place that has the blob.
#[derive(Clone, Debug)]
pub struct Source {
    /// The registry.
    pub upstream: Arc<Upstream>,
    /// The repository there.
    pub name: RepositoryName,
}

/// Sources of one blob, in the order in which they are asked. More may come while a transfer is under way: whoever else is
/// proven to have it. Clones are the same list.
#[derive(Clone, Debug)]
pub struct Sources(Arc<Mutex<Vec<Source>>>);

/// One place of a source.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) site: Arc<Site>,
    name: RepositoryName,
    /// Set where it is no more than a mirror.
    mirror: Option<Arc<Mirror>>,
    /// Whether bytes came from here.
    gave: bool,
    /// The validator of the last answer. It is this place's own: others may call the same bytes by another one.
    validator: Option<HeaderValue>,
    /// Whether parts cannot be had here, so that the whole is asked for and passed over.
    is_whole_only: bool,
    /// Whether it gives several parts at once.
    is_parted: bool,
    /// Until when it wants to be left alone.
    rests_until: Instant,
}

/// A blob, or a part of it, on its way to us. A cut or a stall is continued by `Range` at the next source; what was
/// received is never received again unless a registry ignores the range, and then it is passed over. The caller verifies
/// the whole.
#[derive(Debug)]
pub struct Transfer {
    sources: Sources,
    /// How many of the sources are among the spots.
    known: usize,
    spots: Vec<Spot>,
    /// Which of them is asked.
    turn: usize,
    digest: Digest,
    /// The offset of the next byte that the caller gets.
    position: u64,
    /// Where the caller wants to stop, exclusive.
    until: Option<u64>,
    size: Option<u64>,
    /// Who said the size.
    sized_by: Option<usize>,
    /// Whether the size that callers were told cannot be right.
    doomed: bool,
    body: Option<Coming>,
    /// Where the present body ends, when that is not the end of the blob.
    part_end: Option<u64>,
    /// What comes after it already.
    ahead: Ahead,
    /// Bytes of the present body that the caller has already.
    skip: u64,
    /// Failures since the last progress, and in all.
    failures: usize,
    resumptions: u64,
    /// Bytes that the caller got.
    given: u64,
}

/// What is read at the moment.
#[derive(Debug)]
enum Coming {
    Body(Body),
    Part(Part),
}

impl Coming {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Body(body) => body.next().await,
            Self::Part(part) => part.next().await,
        }
    }
}

impl Sources {
    /// A list that begins with this source.
    pub fn new(first: Source) -> Self {
        Self(Arc::new(Mutex::new(vec![first])))
    }

    /// Whether this is the same list.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Adds a source that is proven to have the blob, unless it is there already or there are many.
    pub fn add(&self, source: Source) {
        let mut sources = self.0.lock();
        let is_known = sources
            .iter()
            .any(|it| Arc::ptr_eq(&it.upstream, &source.upstream) && it.name == source.name);
        if !is_known && sources.len() < SOURCES_MAX {
            sources.push(source);
        }
    }
}

impl Transfer {
    /// Asks the first source, wherever it can be had, for the blob from an offset on, up to an exclusive end if one is given.
    /// There must be at least one source. Others go on with what the first has begun to deliver, and begin nothing: that it
    /// did is the proof that it has the blob.
    ///
    /// # Errors
    ///
    /// The first error that is news about the content, else the last one.
    pub async fn open(
        sources: Sources,
        digest: Digest,
        from: u64,
        until: Option<u64>,
    ) -> Result<Self, Error> {
        let mut transfer = Self {
            sources,
            known: 0,
            spots: Vec::new(),
            turn: 0,
            digest,
            position: from,
            until,
            size: None,
            sized_by: None,
            doomed: false,
            body: None,
            part_end: None,
            ahead: Ahead::default(),
            skip: 0,
            failures: 0,
            resumptions: 0,
            given: 0,
        };
        transfer.look_for_sources(1)?;
        loop {
            match transfer.connect().await {
                Ok(()) => return Ok(transfer),
                Err(error) => {
                    if transfer.turn + 1 >= transfer.spots.len() || transfer.is_final(&error) {
                        return Err(error);
                    }
                    transfer.turn += 1;
                }
            }
        }
    }

    /// Begins again with the first byte. A size that was said must be said again.
    pub fn rewind(&mut self) {
        (self.body, self.part_end, self.skip) = (None, None, 0);
        self.ahead.clear();
        self.position = 0;
    }

    /// The size of the whole blob, when a source has said it.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next bytes; `None` is the end. Waits through interruptions. Cancel-safe: what was not given out is asked for
    /// again.
    ///
    /// # Errors
    ///
    /// When no source goes on.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let end = self.until.or(self.size);
            if end.is_some_and(|end| self.position >= end) {
                return Ok(None);
            }
            let received = match &mut self.body {
                Some(body) => body.next().await,
                None => match self.connect().await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
            };
            match received {
                Ok(Some(bytes)) => {
                    if let Some(bytes) = self.take(bytes, end) {
                        return Ok(Some(bytes));
                    }
                }
                Ok(None) if self.part_end == Some(self.position) => self.body = None,
                Ok(None) if end.is_none() => return Ok(None),
                // Less than was announced, though the connection vouches for its end.
                Ok(None) => {
                    let Some(spot) = self.spots.get(self.turn) else {
                        return Ok(None);
                    };
                    let error = spot.site.short();
                    self.recover(error).await?;
                }
                // What a part ahead was refused is no word on the blob.
                Err(error) if self.is_ahead() && !error.is_transient() => {
                    self.go_on_in_one(&error);
                }
                Err(error) => self.recover(error).await?,
            }
        }
    }

    /// The bytes were not those of the digest: mirrors that gave some of them are not asked for a while. Whether there
    /// were any.
    pub fn blame_mirrors(&self) -> bool {
        let sizer = self.sized_by.and_then(|it| self.spots.get(it));
        let givers = self.spots.iter().filter(|it| it.gave).chain(sizer);
        let liars: Vec<_> = givers.filter_map(|it| it.mirror.as_ref()).collect();
        liars.iter().for_each(|it| it.lied());
        !liars.is_empty()
    }

    /// Whether an error of the place that is asked is the answer: what a mirror says never is.
    fn is_final(&self, error: &Error) -> bool {
        let is_mirror = self
            .spots
            .get(self.turn)
            .is_some_and(|it| it.mirror.is_some());
        !is_mirror && !error.is_transient()
    }

    /// What of these bytes the caller has not had and wants.
    fn take(&mut self, mut bytes: Bytes, end: Option<u64>) -> Option<Bytes> {
        let skipped = bytes
            .len()
            .min(usize::try_from(self.skip).unwrap_or(usize::MAX));
        bytes.advance(skipped);
        self.skip -= skipped as u64;
        if let Some(end) = end {
            bytes.truncate(usize::try_from(end - self.position).unwrap_or(usize::MAX));
        }
        if bytes.is_empty() {
            return None;
        }
        self.failures = 0;
        if let Some(spot) = self.spots.get_mut(self.turn) {
            spot.gave = true;
        }
        self.position += bytes.len() as u64;
        self.given += bytes.len() as u64;
        Some(bytes)
    }

    /// Whether what is read was asked for ahead of its turn.
    fn is_ahead(&self) -> bool {
        matches!(self.body, Some(Coming::Part(_)))
    }

    /// Asks for everything that is left where no part of it is to be had, once and for all.
    fn go_on_in_one(&mut self, error: &Error) {
        (self.body, self.part_end) = (None, None);
        self.ahead.clear();
        if let Some(spot) = self.spots.get_mut(self.turn) {
            spot.is_parted = false;
            spot.site.retried(error);
            debug!(host = spot.site.host(), digest = %self.digest, position = self.position, error = %error, "parts are given up");
        }
    }

    /// Notes a failure, and waits before the next attempt; or gives the error back when it is one too many.
    async fn recover(&mut self, error: Error) -> Result<(), Error> {
        (self.body, self.part_end) = (None, None);
        self.failures += 1;
        self.resumptions += 1;
        self.look_for_sources(SOURCES_MAX)?;
        let resumptions_max = RESUMPTIONS_MAX + self.given / RESUMPTION_BYTES;
        // Each place has its turn.
        let failures_max = FAILURES_MAX.max(self.spots.len());
        if self.doomed || self.failures > failures_max || self.resumptions > resumptions_max {
            return Err(error);
        }
        let Some(spot) = self.spots.get(self.turn) else {
            return Err(error);
        };
        // A broken connection says nothing about the place; anything else does, and another one must take over.
        if !error.is_transient() && self.spots.len() == 1 {
            return Err(error);
        }
        spot.site.retried(&error);
        debug!(host = spot.site.host(), digest = %self.digest, position = self.position, error = %error, "transfer interrupted");
        let told = self.pass_on(&error);
        let pause = PAUSE.saturating_mul(1 << self.failures.min(4));
        let pause = pause.mul_f64(rand::random_range(0.5..1.0));
        sleep(pause.max(told)).await;
        Ok(())
    }

    /// Makes it the turn of the next place that need not be left alone, or of the one that must be for the shortest time; how
    /// long that is yet. What asks for a pause at one repository of a site asks for it at all of them.
    fn pass_on(&mut self, error: &Error) -> Duration {
        let now = Instant::now();
        let asked = self.spots.get(self.turn).map(|it| Arc::clone(&it.site));
        let told = error.retry_after().unwrap_or_default().min(TOLD_PAUSE_MAX);
        let same = self.spots.iter_mut();
        for spot in same.filter(|it| asked.as_ref().is_some_and(|at| Arc::ptr_eq(at, &it.site))) {
            spot.rests_until = now + told;
        }
        let (former, later) = self.spots.split_at((self.turn + 1).min(self.spots.len()));
        let others = later.iter().chain(former).enumerate();
        let rests = others.map(|(n, it)| (it.rests_until.saturating_duration_since(now), n));
        // The first of those that rest for the same time.
        let (rest, n) = rests.min().unwrap_or_default();
        self.turn = (self.turn + 1 + n) % self.spots.len().max(1);
        rest
    }

    /// Takes in the sources that have come since, up to so many in all.
    fn look_for_sources(&mut self, most: usize) -> Result<(), Error> {
        let sources = self.sources.0.lock().clone();
        for source in sources.into_iter().take(most).skip(self.known) {
            self.known += 1;
            match spots(&source) {
                Ok(spots) => self.spots.extend(spots),
                // Who is not to be asked is no loss where there is somebody else.
                Err(error) if self.spots.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Two places say different sizes. A mirror of them is not believed; where it was believed already, whoever reads was
    /// told wrong, and this is the end.
    fn contradicted(&mut self) -> Error {
        let former = self.sized_by.and_then(|it| self.spots.get(it));
        let present = self.spots.get(self.turn);
        let liar = [former, present].into_iter().flatten();
        let liar = liar.filter(|it| it.mirror.is_some()).collect::<Vec<_>>();
        for mirror in liar.iter().filter_map(|it| it.mirror.as_ref()) {
            mirror.lied();
        }
        self.doomed = former.is_some_and(|it| it.mirror.is_some());
        let blamed = liar.first().copied().or(present);
        let blamed = blamed.or(former).map(|it| it.site.invalid(Fault::Range));
        blamed.unwrap_or_else(|| Error::Short {
            host: String::new(),
        })
    }

    async fn connect(&mut self) -> Result<(), Error> {
        if let Some(part) = self.ahead.take(self.position) {
            self.turn = part.turn;
            (self.part_end, self.skip) = (Some(part.range.end), 0);
            self.body = Some(Coming::Part(part));
            self.look_ahead();
            return Ok(());
        }
        let until = self.part_until();
        let Some(spot) = self.spots.get_mut(self.turn) else {
            return Ok(());
        };
        let answer = match until {
            Some(until) => {
                let part = self.position..until;
                spot.answer_with_part(&self.digest, part).await
            }
            None => {
                let whole = self.position == 0 && self.until.is_none();
                let part = (!whole).then_some((self.position, self.until));
                spot.answer(&self.digest, part).await
            }
        };
        let answer = match answer {
            // There is nothing where by the size there is more.
            Err(Error::Status { status, .. })
                if status == StatusCode::RANGE_NOT_SATISFIABLE
                    && self.size.is_some_and(|size| self.position < size) =>
            {
                return Err(self.contradicted());
            }
            answer => answer?,
        };
        if let (Some(size), Some(former)) = (answer.size, self.size)
            && size != former
        {
            return Err(self.contradicted());
        }
        if answer.size.is_some() && self.size.is_none() {
            self.sized_by = Some(self.turn);
        }
        self.size = self.size.or(answer.size);
        self.skip = self.position - answer.begins_at;
        self.part_end = answer.range.map(|it| it.end).filter(|_| until.is_some());
        self.body = Some(Coming::Body(answer.body));
        self.look_ahead();
        Ok(())
    }

    /// Where the next part ends, at a place of which several are asked for at once. A blob that is no longer than one is
    /// asked for as anywhere.
    fn part_until(&self) -> Option<u64> {
        let spot = self.spots.get(self.turn)?;
        let ends_at = self.position + PART_BYTES;
        let is_last = self.size.is_some_and(|size| size <= ends_at) && self.ahead.len() == 0;
        if self.until.is_some() || !spot.is_parted || is_last {
            return None;
        }
        Some(self.ahead.begins_at().map_or(ends_at, |it| it.min(ends_at)))
    }

    /// Has further parts come, as many as the place gives at once and as there are places among the requests in flight that
    /// nobody else wants.
    fn look_ahead(&mut self) {
        let (Some(spot), Some(part_end), Some(size)) =
            (self.spots.get(self.turn), self.part_end, self.size)
        else {
            return;
        };
        let mut from = self.ahead.ends_at().unwrap_or(part_end);
        while spot.is_parted && self.ahead.len() + 1 < spot.site.parallel_ranges() && from < size {
            let Some(place) = spot.site.place_now() else {
                return;
            };
            let range = from..(from + PART_BYTES).min(size);
            from = range.end;
            let asked = Asked {
                site: Arc::clone(&spot.site),
                range: range.clone(),
                size,
            };
            let (spot, digest) = (spot.clone(), self.digest);
            let answer = async move { spot.ask_part(place, &digest, &range).await };
            self.ahead.push(Part::begin(self.turn, asked, answer));
        }
    }
}

impl Spot {
    /// Asks in the way that costs least, and in another one where the answer to that is of no use. What is joined together
    /// is verified as a whole, so that no answer is refused for its validator alone.
    async fn answer(
        &mut self,
        digest: &Digest,
        part: Option<(u64, Option<u64>)>,
    ) -> Result<BlobAnswer, Error> {
        let (from, until) = part.unwrap_or((0, None));
        let part = part.filter(|_| !self.is_whole_only);
        // It is named once: whatever comes of it, the next question is one without.
        let if_range = self.validator.take().filter(|_| part.is_some() && from > 0);
        let mut answer = self.ask(digest, part, if_range.clone()).await;
        let is_other = |answer: &BlobAnswer| {
            if_range.is_some() && answer.begins_at == 0 && answer.validator != if_range
        };
        if answer.as_ref().is_ok_and(is_other) {
            // Its place among the requests in flight is wanted for the next one.
            drop(answer);
            answer = self.ask(digest, part, None).await;
        }
        // Whoever encodes everything has no parts of the blob itself.
        let is_useless = |error: &Error| match error.fault() {
            Some(Fault::Encoding) => part.is_some(),
            Some(Fault::Range) => part.is_some() && from > 0 && until.is_none(),
            Some(_) | None => false,
        };
        if answer.as_ref().is_err_and(is_useless) {
            self.is_whole_only = true;
            answer = self.ask(digest, None, None).await;
        }
        let answer = answer?;
        self.validator.clone_from(&answer.validator);
        Ok(answer)
    }

    /// Asks for one of several parts; or, where the answer to that is of no use, for everything that is left, and from then
    /// on never for less.
    async fn answer_with_part(
        &mut self,
        digest: &Digest,
        part: Range<u64>,
    ) -> Result<BlobAnswer, Error> {
        let answer = self.ask(digest, Some((part.start, Some(part.end))), None);
        let answer = answer.await;
        let is_useful = match &answer {
            // What is no part has everything.
            Ok(answer) if answer.range.is_none() => {
                self.is_parted = false;
                true
            }
            Ok(answer) => answer.size.is_some() && answer.begins_at == part.start,
            Err(error) => {
                let is_of_range = matches!(error.fault(), Some(Fault::Encoding | Fault::Range));
                !is_of_range && !error.is_beyond_the_end()
            }
        };
        if is_useful {
            return answer;
        }
        self.is_parted = false;
        // Its place among the requests in flight is wanted for the next one.
        drop(answer);
        let rest = (part.start > 0).then_some((part.start, None));
        self.answer(digest, rest).await
    }

    async fn ask(
        &self,
        digest: &Digest,
        part: Option<(u64, Option<u64>)>,
        if_range: Option<HeaderValue>,
    ) -> Result<BlobAnswer, Error> {
        let asking = self.site.blob(&self.name, digest, part, if_range);
        self.noted(asking).await
    }

    /// Asks for a part if there is a place for that at once.
    pub(super) async fn ask_now(
        &self,
        digest: &Digest,
        part: &Range<u64>,
    ) -> Result<BlobAnswer, Error> {
        let place = self.site.place_now().ok_or_else(|| self.site.busy())?;
        self.ask_part(place, digest, part).await
    }

    /// Asks for a part in a place that is held already.
    pub(super) async fn ask_part(
        &self,
        place: OwnedSemaphorePermit,
        digest: &Digest,
        part: &Range<u64>,
    ) -> Result<BlobAnswer, Error> {
        let asking = self.site.blob_part(place, &self.name, digest, part);
        self.noted(asking).await
    }

    /// A mirror is judged by each of its answers.
    async fn noted(
        &self,
        asking: impl Future<Output = Result<BlobAnswer, Error>>,
    ) -> Result<BlobAnswer, Error> {
        match &self.mirror {
            None => asking.await,
            Some(mirror) => mirror.asked(asking).await,
        }
    }
}

/// Where a source can be had, in the order in which the places are asked.
pub(super) fn spots(source: &Source) -> Result<Vec<Spot>, Error> {
    let (mirrors, own) = source.upstream.places()?;
    let spot = |site: &Arc<Site>, mirror| Spot {
        site: Arc::clone(site),
        name: source.name.clone(),
        mirror,
        gave: false,
        validator: None,
        is_whole_only: false,
        is_parted: site.parallel_ranges() > 1,
        rests_until: Instant::now(),
    };
    let mirrors = mirrors
        .iter()
        .map(|mirror| spot(&mirror.site, Some(Arc::clone(mirror))));
    Ok(mirrors.chain([spot(&own, None)]).collect())
}

/// Failures in a row without a byte of progress: enough for a registry that is started again, which takes some seconds.
const FAILURES_MAX: usize = 6;
/// Interruptions of one transfer in all, and the bytes for which it may have one more: what is large may come in many pieces
/// where a line is bad or somebody on the way gives only so much at once.
const RESUMPTIONS_MAX: u64 = 32;
const RESUMPTION_BYTES: u64 = 1 << 20;
/// Sources of one blob; more are no safer.
const SOURCES_MAX: usize = 8;
/// The pause after the first failure, doubling; half of it is left to chance, so that many do not come back at once.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause that somebody gets in the middle of a transfer, which asks again after it all the same.
const TOLD_PAUSE_MAX: Duration = Duration::from_secs(20);
