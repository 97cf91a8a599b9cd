//! The body of a response.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};

use super::sendfile::{BodyError, FileBody, FileQueue};
use crate::proxy::BlobStream;

/// The body of a response. It knows exactly when it is at its end, where its length is known.
pub(super) enum ResponseBody {
    /// Up to one frame.
    Memory(Option<Bytes>),
    /// A blob or a part of one, of which nobody has asked for anything yet.
    Blob(Box<BlobStream>, Option<u64>),
    /// Frames as they come, and how many bytes are left, when that is known.
    Stream(Frames, Option<u64>),
}

type Frames = Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>;

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self::Memory(None)
    }

    pub(super) fn memory(bytes: Bytes) -> Self {
        Self::Memory(Some(bytes).filter(|it| !it.is_empty()))
    }

    /// A stream of a known or an unknown length.
    pub(super) fn stream(stream: BlobStream, length: Option<u64>) -> Self {
        Self::Blob(Box::new(stream), length)
    }

    /// The same as something that goes from its file to the socket by itself, behind these files; back as it is where it
    /// cannot, or a copy costs less.
    pub(super) fn in_file(self, files: &FileQueue) -> Result<FileBody, Self> {
        match self {
            Self::Blob(stream, Some(length))
                if length >= LARGE_BYTES && stream.is_in_file(length) =>
            {
                Ok(FileBody::new(stream, length, files.clone()))
            }
            other @ (Self::Memory(_) | Self::Blob(..) | Self::Stream(..)) => Err(other),
        }
    }

    fn read(stream: Box<BlobStream>, length: Option<u64>) -> Self {
        let frames = unfold(Some(stream), |stream| async {
            let mut stream = stream?;
            match stream.next().await {
                Ok(bytes) => bytes.map(|it| (Ok(it), Some(stream))),
                Err(error) => Some((Err(BodyError::from(error)), None)),
            }
        });
        Self::frames(frames, length)
    }

    /// Frames of a known or an unknown length in all.
    pub(super) fn frames(
        frames: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
        length: Option<u64>,
    ) -> Self {
        let frames = frames.then(|frame| async {
            if frame.is_err() {
                // The connection writes what it has when there is nothing to do: without this pause it would break off before
                // the head is out.
                tokio::task::yield_now().await;
            }
            frame
        });
        Self::Stream(Box::pin(frames), length)
    }

    /// Whether it is large, or may be.
    pub(super) fn is_large(&self) -> bool {
        let length = self.size_hint().exact();
        length.is_none_or(|it| it >= LARGE_BYTES)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Self::Blob(..) = this
            && let Self::Blob(stream, length) = std::mem::replace(this, Self::empty())
        {
            *this = Self::read(stream, length);
        }
        match this {
            Self::Blob(..) => Poll::Ready(None),
            Self::Memory(bytes) => Poll::Ready(bytes.take().map(|it| Ok(Frame::data(it)))),
            Self::Stream(_, Some(0)) => Poll::Ready(None),
            Self::Stream(frames, left) => {
                let next = std::task::ready!(frames.as_mut().poll_next(cx));
                Poll::Ready(match (next, left) {
                    (Some(Ok(bytes)), left) => {
                        if let Some(left) = left {
                            *left = left.saturating_sub(bytes.len() as u64);
                        }
                        Some(Ok(Frame::data(bytes)))
                    }
                    (Some(Err(error)), _) => Some(Err(error)),
                    (None, Some(left)) => Some(Err(BodyError::Short { left: *left })),
                    (None, None) => None,
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(
            self,
            Self::Memory(None) | Self::Blob(_, Some(0)) | Self::Stream(_, Some(0))
        )
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Memory(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Blob(_, Some(left)) | Self::Stream(_, Some(left)) => SizeHint::with_exact(*left),
            Self::Blob(_, None) | Self::Stream(_, None) => SizeHint::default(),
        }
    }
}

/// From this length on a body is large, and goes from its file to the socket if it can: below it, a copy costs less.
const LARGE_BYTES: u64 = 1 << 20;
