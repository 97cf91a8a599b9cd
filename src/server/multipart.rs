//! Several parts of one content in one body: `multipart/byteranges` (RFC 9110 §14.6).
//!
//! ```text
//! --BOUNDARY                                       \
//! Content-Type: application/octet-stream           | the head of a part
//! Content-Range: bytes 0-99/5000                   |
//!                                                  /
//! (its bytes, as they come)
//! --BOUNDARY
//! …
//! --BOUNDARY--
//! ```
//!
//! All but the bytes is known before the first of them, and so is the length.

use std::ops::Range;

use bytes::Bytes;

use super::body::{LARGE_BYTES, ResponseBody};
use super::sendfile::{BodyError, Content, Read, Reading};
use crate::net::ContentRange;
use crate::proxy::{BlobStream, FilePart};

/// Parts of one content, in the order in which they go out.
#[derive(Debug)]
pub(super) struct Multipart {
    /// Chosen anew for each body, so that whoever made the content could not put it there.
    boundary: String,
    media_type: String,
    parts: Vec<Range<u64>>,
    size: u64,
}

/// The body of a [`Multipart`], read piece by piece; but what is large of it is sent from its file, if it can.
#[derive(Debug)]
struct Reader {
    multipart: Multipart,
    source: Source,
    place: Place,
}

/// Where the bytes of the parts come from.
#[derive(Debug)]
enum Source {
    Memory(Bytes),
    /// Has nothing but the parts, in their order.
    Stream(Box<BlobStream>),
}

/// What goes out next.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// The head of this part, or the end after the last one.
    Head(usize),
    /// So many bytes of this part.
    Part(usize, u64),
    Over,
}

impl Multipart {
    /// These parts of something of this size and type.
    pub(super) fn new(parts: Vec<Range<u64>>, size: u64, media_type: &str) -> Self {
        Self {
            boundary: format!("{:032x}", rand::random::<u128>()),
            media_type: media_type.to_owned(),
            parts,
            size,
        }
    }

    /// The type of the whole body.
    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// The parts, in their order.
    pub(super) fn parts(&self) -> impl Iterator<Item = Range<u64>> {
        self.parts.iter().cloned()
    }

    /// The length of the whole body.
    pub(super) fn length(&self) -> u64 {
        let parts = self.parts.iter().enumerate();
        let parts =
            parts.map(|(n, part)| self.head(n, part).len() as u64 + (part.end - part.start));
        parts.sum::<u64>() + self.end().len() as u64
    }

    /// The body, of all of the content.
    pub(super) fn of_memory(self, bytes: Bytes) -> ResponseBody {
        self.body(Source::Memory(bytes))
    }

    /// The body, of all of the content as it comes. No part is ever in memory.
    pub(super) fn of_stream(self, stream: BlobStream) -> ResponseBody {
        let stream = stream.parts(self.parts());
        self.body(Source::Stream(Box::new(stream)))
    }

    fn body(self, source: Source) -> ResponseBody {
        let length = self.length();
        let reader = Reader {
            multipart: self,
            source,
            place: Place::Head(0),
        };
        ResponseBody::content(reader, Some(length))
    }

    fn head(&self, n: usize, part: &Range<u64>) -> String {
        let Self {
            boundary,
            media_type,
            size,
            ..
        } = self;
        let content_range = ContentRange {
            range: part.clone(),
            size: Some(*size),
        };
        // The line end before a boundary belongs to it, and not to the part before.
        let before = if n == 0 { "" } else { "\r\n" };
        format!(
            "{before}--{boundary}\r\nContent-Type: {media_type}\r\nContent-Range: {content_range}\r\n\r\n"
        )
    }

    fn end(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }
}

impl Reader {
    /// The next piece; `None` is the end.
    async fn next(&mut self) -> Read {
        loop {
            match self.place {
                Place::Head(n) => {
                    let Some(part) = self.multipart.parts.get(n) else {
                        self.place = Place::Over;
                        return Ok(Some(self.multipart.end().into()));
                    };
                    self.place = Place::Part(n, part.end - part.start);
                    return Ok(Some(self.multipart.head(n, part).into()));
                }
                Place::Part(n, 0) => {
                    self.place = Place::Head(n + 1);
                    if let Source::Stream(stream) = &mut self.source {
                        stream.turn();
                    }
                }
                Place::Part(n, left) => {
                    let bytes = self.bytes(n).await?.ok_or(BodyError::Short { left })?;
                    let left = left.saturating_sub(bytes.len() as u64);
                    self.place = Place::Part(n, left);
                    return Ok(Some(bytes));
                }
                Place::Over => return Ok(None),
            }
        }
    }

    /// The stream in the middle of a large part, and what is left of that.
    fn in_large(&mut self) -> Option<(&mut BlobStream, &mut u64)> {
        match (&mut self.source, &mut self.place) {
            (Source::Stream(stream), Place::Part(n, left @ 1..)) => {
                let is_large = self.multipart.parts.get(*n).is_some_and(is_large);
                is_large.then_some((&mut **stream, left))
            }
            _ => None,
        }
    }

    async fn next_unless_in_file(&mut self) -> Read {
        let Some((stream, left)) = self.in_large() else {
            return self.next().await;
        };
        let bytes = stream.next_unless_in_file().await?;
        let bytes = bytes.ok_or(BodyError::Short { left: *left })?;
        *left = left.saturating_sub(bytes.len() as u64);
        Ok(Some(bytes))
    }

    /// The next bytes of a part.
    async fn bytes(&mut self, n: usize) -> Read {
        match &mut self.source {
            Source::Stream(stream) => Ok(stream.next().await?.map(light)),
            Source::Memory(bytes) => {
                Ok(self.multipart.parts.get(n).map(|part| part_of(bytes, part)))
            }
        }
    }
}

impl Content for Reader {
    fn is_in_file(&self, _length: u64) -> bool {
        let Source::Stream(stream) = &self.source else {
            return false;
        };
        stream.is_of_file() && self.multipart.parts.iter().any(is_large)
    }

    fn file(&self) -> Option<FilePart> {
        match (&self.source, self.place) {
            (Source::Stream(stream), Place::Part(n, 1..)) => {
                let part = self.multipart.parts.get(n);
                part.filter(|it| is_large(it)).and_then(|_| stream.file())
            }
            _ => None,
        }
    }

    fn skip(&mut self, bytes: u64) {
        if let Some((stream, left)) = self.in_large() {
            stream.skip(bytes);
            *left = left.saturating_sub(bytes);
        }
    }

    fn read(mut self: Box<Self>) -> Reading {
        Box::pin(async {
            let read = self.next().await;
            (self as Box<dyn Content>, read)
        })
    }

    fn read_unless_in_file(mut self: Box<Self>) -> Reading {
        Box::pin(async {
            let read = self.next_unless_in_file().await;
            (self as Box<dyn Content>, read)
        })
    }
}

/// Whether a copy of a part costs more than to have it sent from its file.
fn is_large(part: &Range<u64>) -> bool {
    part.end - part.start >= LARGE_BYTES
}

/// Few bytes may keep a large buffer alive, and many of them wait in a connection.
fn light(bytes: Bytes) -> Bytes {
    if bytes.len() < LIGHT_BYTES_MAX {
        return Bytes::copy_from_slice(&bytes);
    }
    bytes
}

/// A part of what is in memory, as far as it is there.
pub(super) fn part_of(bytes: &Bytes, part: &Range<u64>) -> Bytes {
    let index = |offset: u64| {
        usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len())
    };
    bytes.slice(index(part.start)..index(part.end))
}

/// Ranges that one request may ask for. podman asks for at most so many chunks of a `zstd:chunked` layer at once
/// (`maxNumberMissingChunks` of containers/storage), which are 25 KiB of head where a layer has 10 GB; where that is refused
/// with 400 it asks again for half as many.
pub(super) const RANGES_MAX: usize = 1024;

const LIGHT_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn the_length_is_known_before_the_body_and_no_boundary_is_the_same() {
        let content = Bytes::from_static(b"0123456789");
        let mut boundaries = Vec::new();
        for parts in [vec![0..2, 5..6], vec![9..10, 0..1], vec![0..5, 5..10]] {
            let multipart = Multipart::new(parts.clone(), 10, "text/plain");
            let boundary = multipart.boundary.clone();
            let mut expected = String::new();
            for (n, Range { start, end }) in parts.into_iter().enumerate() {
                let before = if n == 0 { "" } else { "\r\n" };
                let text = part_of(&content, &(start..end));
                let text = str::from_utf8(&text).unwrap();
                expected += &format!(
                    "{before}--{boundary}\r\nContent-Type: text/plain\r\n\
                     Content-Range: bytes {start}-{}/10\r\n\r\n{text}",
                    end - 1
                );
            }
            expected += &format!("\r\n--{boundary}--\r\n");
            let length = multipart.length();
            let body = multipart.of_memory(content.clone());
            let body = body.collect().await.unwrap().to_bytes();
            assert_eq!(str::from_utf8(&body).unwrap(), expected);
            assert_eq!(body.len() as u64, length);
            assert!(!boundaries.contains(&boundary));
            boundaries.push(boundary);
        }
    }
}
