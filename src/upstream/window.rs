//! A part of a blob, asked for by itself while a transfer brings the whole.

use std::ops::Range;

use bytes::Bytes;

use super::body::Body;
use super::error::{Error, Fault};
use super::transfer::{Source, Spot, spots};
use crate::oci::Digest;

/// A part of a blob on its way to us: from one place, in one go. Nothing of it is verified, and nothing is tried again but
/// at the next place, as long as none has answered. Dropped, it is given up.
#[derive(Debug)]
pub struct Window {
    body: Body,
    /// Where it comes from.
    spot: Spot,
    left: u64,
}

impl Window {
    /// Asks a source, wherever it can be had and if a place among the requests is free, for exactly this part of a blob of
    /// this size.
    ///
    /// # Errors
    ///
    /// The last one of those who were asked; when nobody was, such as since all places are taken, one that says so
    /// ([`Error::is_unasked`]).
    pub async fn open(
        source: &Source,
        digest: &Digest,
        part: Range<u64>,
        size: u64,
    ) -> Result<Self, Error> {
        let host = source.upstream.host().to_owned();
        let mut failed = Error::Busy { host };
        for spot in spots(source)? {
            match ask(&spot, digest, &part, size).await {
                Ok(body) => {
                    let left = part.end - part.start;
                    return Ok(Self { body, spot, left });
                }
                // Where somebody was asked, that has its price.
                Err(error) if failed.is_unasked() || !error.is_unasked() => failed = error,
                Err(_) => {}
            }
        }
        Err(failed)
    }

    /// The next bytes; `None` is the end of the part. Cancel-safe.
    ///
    /// # Errors
    ///
    /// When it broke off, or more comes than was asked for.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        let bytes = self.body.next().await?;
        let bytes = bytes.ok_or_else(|| self.spot.site.short())?;
        match self.left.checked_sub(bytes.len() as u64) {
            Some(left) => self.left = left,
            None => return Err(self.spot.site.invalid(Fault::Range)),
        }
        Ok(Some(bytes))
    }
}

/// A body that is this part and nothing else: a registry that gives the whole instead, or another part, gives nothing.
async fn ask(spot: &Spot, digest: &Digest, part: &Range<u64>, size: u64) -> Result<Body, Error> {
    let answer = spot.ask_now(digest, part).await?;
    let is_the_part = answer.range.as_ref() == Some(part);
    if !is_the_part || answer.size.is_some_and(|it| it != size) {
        return Err(spot.site.invalid(Fault::Range));
    }
    Ok(answer.body)
}
