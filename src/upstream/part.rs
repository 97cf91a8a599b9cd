//! Parts of a blob that come ahead of the one that is being read, each over a connection of its own.
//!
//! For registries that give each connection only so much at once. What comes ahead waits in memory, so that whoever reads
//! has it in order; a part is bounded, and so is their number.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::error::{Error, Fault};
use super::site::{BlobAnswer, Site};

/// Parts in their order, each of which begins where the one before it ends. Dropped, they are given up.
#[derive(Debug, Default)]
pub(super) struct Ahead(VecDeque<Part>);

/// One part on its way to us.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) range: Range<u64>,
    /// Which of the spots it comes from.
    pub(super) turn: usize,
    received: mpsc::Receiver<Result<Bytes, Error>>,
    _coming: AbortOnDropHandle<()>,
}

/// A part of a blob of this size.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) site: Arc<Site>,
    pub(super) range: Range<u64>,
    pub(super) size: u64,
}

impl Ahead {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Where the first of them begins.
    pub(super) fn begins_at(&self) -> Option<u64> {
        self.0.front().map(|it| it.range.start)
    }

    /// Where the last of them ends.
    pub(super) fn ends_at(&self) -> Option<u64> {
        self.0.back().map(|it| it.range.end)
    }

    pub(super) fn push(&mut self, part: Part) {
        self.0.push_back(part);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The part that begins here. What lies before it is of no use any more.
    pub(super) fn take(&mut self, position: u64) -> Option<Part> {
        while self.begins_at().is_some_and(|it| it < position) {
            self.0.pop_front();
        }
        self.0.pop_front_if(|it| it.range.start == position)
    }
}

impl Part {
    /// Waits for the answer to what was asked in this turn, and takes what comes out of its connection at once.
    pub(super) fn begin(
        turn: usize,
        asked: Asked,
        answer: impl Future<Output = Result<BlobAnswer, Error>> + Send + 'static,
    ) -> Self {
        let (sender, received) = mpsc::channel(PIECES_MAX);
        let range = asked.range.clone();
        let coming = tokio::spawn(async move {
            if let Err(error) = bring(&asked, answer, &sender).await {
                // Nobody who does not listen any more wants to know.
                let _ = sender.send(Err(error)).await;
            }
        });
        Self {
            range,
            turn,
            received,
            _coming: AbortOnDropHandle::new(coming),
        }
    }

    /// The next bytes; `None` is the end of the part. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When it broke off, or is another part than was asked for.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.received.recv().await.transpose()
    }
}

async fn bring(
    asked: &Asked,
    answer: impl Future<Output = Result<BlobAnswer, Error>>,
    sender: &mpsc::Sender<Result<Bytes, Error>>,
) -> Result<(), Error> {
    let answer = answer.await?;
    let is_the_part = answer.range.as_ref() == Some(&asked.range);
    if !is_the_part || answer.size.is_some_and(|it| it != asked.size) {
        return Err(asked.site.invalid(Fault::Range));
    }
    let mut body = answer.body;
    let mut left = asked.range.end - asked.range.start;
    while left > 0 {
        let bytes = body.next().await?.ok_or_else(|| asked.site.short())?;
        left = left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| asked.site.invalid(Fault::Range))?;
        if sender.send(Ok(bytes)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// How long a part is: long enough that asking for it costs little, short enough that some of them may wait in memory.
pub(super) const PART_BYTES: u64 = 8 << 20;
/// In how many pieces a part waits, at most: those of a connection that is read as it comes are 8 KiB and more.
const PIECES_MAX: usize = 1 << 10;
