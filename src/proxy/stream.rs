//! A blob's bytes on their way to one client: from the cache as long as it can, and around it when it cannot.

use bytes::Bytes;
use tracing::warn;

use super::bypass::{Bypass, Detour};
use super::error::StreamError;
use crate::cache::{self, FillError, Handover, READ_BYTES, ReadError};
use crate::oci::Digester;

/// A blob's bytes, from any offset on. Nobody else's reading is slowed by a slow client of this.
#[derive(Debug)]
pub struct BlobStream {
    from: From,
    detour: Detour,
    position: u64,
    /// Where the client wants to stop, exclusive; `None` is the end of the blob.
    until: Option<u64>,
}

#[derive(Debug)]
enum From {
    Cache(cache::Content),
    Bypass(Box<Bypass>),
}

impl BlobStream {
    pub(super) fn new(content: cache::Content, detour: Detour) -> Self {
        Self {
            from: From::Cache(content),
            detour,
            position: 0,
            until: None,
        }
    }

    /// Only this part of it, the end exclusive. To be asked for before anything is read.
    #[must_use]
    pub fn part(mut self, from: u64, until: u64) -> Self {
        self.position = from;
        self.until = Some(until);
        self
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
            From::Bypass(_) => Err(StreamError::Busy),
        }
    }

    /// The next bytes; `None` is the end, and when it is the end of the blob, a verified one. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When the bytes do not come, or are not those of the digest; then the body must end short.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        let left = self
            .until
            .map_or(u64::MAX, |until| until.saturating_sub(self.position));
        if left == 0 {
            return Ok(None);
        }
        loop {
            let read = match &mut self.from {
                From::Cache(content) => {
                    content
                        .read_at(self.position, left.min(READ_BYTES as u64))
                        .await
                }
                From::Bypass(bypass) => {
                    let bytes = bypass.next().await;
                    if matches!(bytes, Err(StreamError::Mismatch { .. })) {
                        let blamed = bypass.is_mirrors_fault();
                        self.detour.found_wrong(blamed);
                    }
                    let bytes = bytes?;
                    self.position += bytes.as_ref().map_or(0, |it| it.len() as u64);
                    return Ok(bytes);
                }
            };
            match read {
                Ok(bytes) => {
                    self.position += bytes.as_ref().map_or(0, |it| it.len() as u64);
                    return Ok(bytes);
                }
                Err(error) => self.go_around(error).await?,
            }
        }
    }

    /// The cache may fail, pulls may not: goes on from upstream, where that can help.
    async fn go_around(&mut self, error: ReadError) -> Result<(), StreamError> {
        let anew = |detour: &Detour| Handover {
            staged: 0,
            digester: Box::new(Digester::new(detour.digest().algorithm())),
        };
        let handover = match error {
            ReadError::Fill(FillError::NotKept(handover)) => handover,
            ReadError::Truncated | ReadError::Unreadable | ReadError::Io(_) => {
                warn!(digest = %self.detour.digest(), error = %error, "going around the cache");
                anew(&self.detour)
            }
            ReadError::Fill(
                FillError::Source(_) | FillError::Mismatch { .. } | FillError::Abandoned,
            ) => return Err(StreamError::Content(error)),
        };
        let size = match &self.from {
            From::Cache(content) => content.size(),
            From::Bypass(_) => None,
        };
        let bypass = self
            .detour
            .take(handover, self.position, self.until, size)
            .await?;
        self.from = From::Bypass(Box::new(bypass));
        Ok(())
    }
}
