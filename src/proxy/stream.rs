//! A blob's bytes on their way to one client: from the cache as long as it can, and around it when it cannot.

use std::collections::VecDeque;
use std::iter;
use std::ops::Range;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::warn;

use super::bypass::{Bypass, Detour};
use super::error::{Error, StreamError};
use super::window::{Ahead, WINDOW_BYTES_MAX, Wanted};
use crate::cache::{self, FillError, Handover, READ_BYTES, ReadError};
use crate::oci::Digester;

/// A blob's bytes, or some parts of them. Nobody else's reading is slowed by a slow client of this.
#[derive(Debug)]
pub struct BlobStream {
    from: From,
    detour: Detour,
    /// Where there is a fill that can be passed by.
    ahead: Option<Ahead>,
    position: u64,
    /// The part that is read; `None` is the whole blob.
    part: Option<Range<u64>>,
    /// The parts that are wanted after this one, in their order.
    later: VecDeque<Range<u64>>,
    /// What was read before the head went out.
    first: Option<Bytes>,
}

#[derive(Debug)]
enum From {
    Cache(cache::Content),
    Bypass(Box<Bypass>),
    /// Around the cache, which has so many bytes; what is wanted next is still to be asked for.
    Around(Option<u64>),
}

impl BlobStream {
    pub(super) fn new(content: cache::Content, detour: Detour) -> Self {
        Self {
            from: From::Cache(content),
            detour,
            ahead: None,
            position: 0,
            part: None,
            later: VecDeque::new(),
            first: None,
        }
    }

    /// With this way to what the fill would bring too late.
    pub(super) fn ahead(mut self, ahead: Option<Ahead>) -> Self {
        self.ahead = ahead;
        self
    }

    /// Only this part of it, the end exclusive. To be asked for before anything is read.
    #[must_use]
    pub fn part(self, from: u64, until: u64) -> Self {
        self.parts(iter::once(from..until))
    }

    /// Only these parts of it, in this order: [`BlobStream::next`] ends with the first, and begins the next of them after
    /// [`BlobStream::turn`]. To be asked for before anything is read.
    #[must_use]
    pub fn parts(mut self, parts: impl IntoIterator<Item = Range<u64>>) -> Self {
        self.later = parts.into_iter().collect();
        self.turn();
        self
    }

    /// Goes on to the next part; `false` if this was the last one.
    pub fn turn(&mut self) -> bool {
        let Some(part) = self.later.pop_front() else {
            return false;
        };
        if let From::Bypass(bypass) = &self.from
            && !bypass.covers(&part)
        {
            self.from = From::Around(bypass.size());
        }
        (self.position, self.part) = (part.start, Some(part));
        true
    }

    /// Waits until the digest of the whole is found right, and gives the size; for whoever must not begin before.
    /// Cancel-safe.
    ///
    /// # Errors
    ///
    /// When it is not, or the bytes do not come, or nobody can say because they go around the cache.
    pub async fn verified(&mut self) -> Result<u64, StreamError> {
        match &mut self.from {
            From::Cache(cache::Content::Follower(follower, _)) => match follower.verified().await {
                Ok(size) => Ok(size),
                Err(error) => Err(StreamError::Content(error.into())),
            },
            From::Cache(cache::Content::Blob(blob)) => Ok(blob.size()),
            From::Cache(cache::Content::Unreadable(size)) => Ok(*size),
            From::Bypass(_) | From::Around(_) => Err(StreamError::Busy),
        }
    }

    /// Waits until the first bytes are at hand, or come from upstream: for whoever must not promise what cannot be had.
    ///
    /// # Errors
    ///
    /// When they do not come, or not by the deadline.
    pub async fn begin(&mut self, deadline: Instant) -> Result<(), Error> {
        let began = Instant::now();
        // As where the cache is not gone around, a pause that is over soon is waited for.
        let latest = began + deadline.saturating_duration_since(began) / 2;
        let beginning = async {
            loop {
                let Err(error) = self.read_first().await else {
                    return Ok(());
                };
                let error = Error::from(error);
                match error.ask_again_at() {
                    Some(over) if over <= latest => sleep_until(over).await,
                    Some(_) | None => return Err(error),
                }
            }
        };
        timeout_at(deadline, beginning).await.unwrap_or_else(|_| {
            let allowed = began.elapsed();
            Err(Error::Deadline { allowed })
        })
    }

    async fn read_first(&mut self) -> Result<(), StreamError> {
        let left = self.left();
        while let From::Cache(content) = &mut self.from {
            match content
                .read_at(self.position, left.min(READ_BYTES as u64))
                .await
            {
                Ok(bytes) => {
                    self.first = bytes;
                    return Ok(());
                }
                Err(error) => self.go_around(error).await?,
            }
        }
        Ok(())
    }

    /// Bytes that are wanted yet; very many where nobody said where to stop.
    fn left(&self) -> u64 {
        let part = self.part.as_ref();
        part.map_or(u64::MAX, |part| part.end.saturating_sub(self.position))
    }

    /// The next bytes of the part; `None` is its end, and when it is the end of the blob, a verified one. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the bytes do not come, or are not those of the digest; then the body must end short.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        let left = self.left();
        if left == 0 {
            return Ok(None);
        }
        if let Some(bytes) = self.first.take() {
            self.position += bytes.len() as u64;
            return Ok(Some(bytes));
        }
        let wanted = self.wanted();
        let bytes = loop {
            match &mut self.from {
                From::Cache(content) => {
                    let max = left.min(READ_BYTES as u64);
                    let read = match (&mut self.ahead, &wanted) {
                        (Some(ahead), Some(wanted)) => ahead.read_at(content, wanted, max).await,
                        (None, _) | (_, None) => content.read_at(self.position, max).await,
                    };
                    match read {
                        Ok(bytes) => break bytes,
                        Err(error) => self.go_around(error).await?,
                    }
                }
                From::Bypass(bypass) => {
                    let bytes = bypass.read_at(self.position, left).await;
                    if matches!(bytes, Err(StreamError::Mismatch { .. })) {
                        let excused = bypass.is_excused();
                        self.detour.found_wrong(excused);
                    }
                    break bytes?;
                }
                From::Around(size) => {
                    let size = *size;
                    self.bypass(self.anew(), size).await?;
                }
            }
        };
        self.position += bytes.as_ref().map_or(0, |it| it.len() as u64);
        Ok(bytes)
    }

    /// Whether it is `length` bytes in a row of content that is in a file, or arrives in one: what comes another way after
    /// all comes from [`BlobStream::next`].
    pub fn is_in_file(&self, length: u64) -> bool {
        let end = match (&self.part, &self.from) {
            (Some(part), _) => Some(part.end),
            (None, From::Cache(content)) => content.size(),
            (None, From::Bypass(_) | From::Around(_)) => None,
        };
        self.is_of_file()
            && self.later.is_empty()
            && end.and_then(|end| end.checked_sub(self.position)) == Some(length)
    }

    /// Whether it is of content that is in a file, or arrives in one.
    pub fn is_of_file(&self) -> bool {
        matches!(&self.from, From::Cache(content) if content.is_in_file())
    }

    /// As [`BlobStream::next`], but empty when the next bytes are in a file by the time that they are there. Cancel-safe.
    ///
    /// # Errors
    ///
    /// As [`BlobStream::next`].
    pub async fn next_unless_in_file(&mut self) -> Result<Option<Bytes>, StreamError> {
        // A window may bring them sooner than the fill.
        let is_passed_by = self.wanted().is_some_and(|it| it.is_small());
        if let From::Cache(content) = &mut self.from
            && self.first.is_none()
            && !is_passed_by
        {
            content.arrives(self.position).await;
            if self.file().is_some() {
                return Ok(Some(Bytes::new()));
            }
        }
        self.next().await
    }

    /// The file that the next bytes are in, as many of them as are wanted in a row; `None` when they come another way, or it
    /// takes [`BlobStream::next`] to find out.
    pub fn file(&self) -> Option<cache::FilePart> {
        match &self.from {
            From::Cache(content) if self.first.is_none() => {
                content.file_at(self.position, self.left())
            }
            From::Cache(_) | From::Bypass(_) | From::Around(_) => None,
        }
    }

    /// Passes over the next bytes, which went out from [`BlobStream::file`].
    pub fn skip(&mut self, bytes: u64) {
        self.position += bytes;
        if let Some(ahead) = &mut self.ahead {
            ahead.caught_up();
        }
    }

    /// What may come beside a fill.
    fn wanted(&self) -> Option<Wanted> {
        let (From::Cache(content), Some(_)) = (&self.from, &self.ahead) else {
            return None;
        };
        let end_max = self.position.saturating_add(WINDOW_BYTES_MAX);
        // The last byte is never among it.
        let end_max = end_max.min(content.size()?.saturating_sub(1));
        Some(Wanted {
            position: self.position,
            part: self.part.clone()?,
            run_end: self.run_end(WINDOW_GAP_MAX, end_max)?,
        })
    }

    /// The cache may fail, pulls may not: goes on from upstream, where that can help.
    async fn go_around(&mut self, error: ReadError) -> Result<(), StreamError> {
        let handover = match error {
            ReadError::Fill(FillError::NotKept(handover)) => handover,
            ReadError::Truncated | ReadError::Unreadable | ReadError::Io(_) => {
                warn!(digest = %self.detour.digest(), error = %error, "going around the cache");
                self.anew()
            }
            ReadError::Fill(
                FillError::Source(_) | FillError::Mismatch { .. } | FillError::Abandoned,
            ) => return Err(StreamError::Content(error)),
        };
        let size = match &self.from {
            From::Cache(content) => content.size(),
            From::Bypass(_) | From::Around(_) => None,
        };
        self.bypass(handover, size).await
    }

    async fn bypass(&mut self, handover: Handover, size: Option<u64>) -> Result<(), StreamError> {
        // What was on its way beside the fill is not waited for.
        self.ahead = None;
        let until = self.run_end(BYPASS_GAP_MAX, u64::MAX);
        let bypass = self.detour.take(handover, self.position, until, size);
        self.from = From::Bypass(Box::new(bypass.await?));
        Ok(())
    }

    /// Nothing is staged that could be used.
    fn anew(&self) -> Handover {
        Handover {
            staged: 0,
            digester: Box::new(Digester::new(self.detour.digest().algorithm())),
            is_resumed: false,
        }
    }

    /// Where the parts end that one transfer may bring, the one that is read first: each other begins at or behind the end of
    /// the one before, and not farther than this, and ends within this.
    fn run_end(&self, gap_max: u64, end_max: u64) -> Option<u64> {
        let mut end = self.part.as_ref()?.end;
        for part in &self.later {
            let gap = part.start.checked_sub(end);
            if gap.is_none_or(|gap| gap > gap_max) || part.end > end_max {
                break;
            }
            end = part.end;
        }
        Some(end)
    }
}

/// Bytes between two parts that are rather fetched than asked around: the first around the cache, the second beside a fill.
const BYPASS_GAP_MAX: u64 = 1 << 20;
const WINDOW_GAP_MAX: u64 = 64 << 10;
