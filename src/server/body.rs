//! The body of a response.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::unfold;
use futures_util::{Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};

use super::sendfile::{BodyError, Content, FileBody, FileQueue};

/// The body of a response. It knows exactly when it is at its end, where its length is known.
pub(super) enum ResponseBody {
    /// Up to one frame.
    Memory(Option<Bytes>),
    /// A blob, or parts of one, of which nobody has asked for anything yet.
    Content(Box<dyn Content>, Option<u64>),
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

    /// Content of a known or an unknown length.
    pub(super) fn content(content: impl Content + 'static, length: Option<u64>) -> Self {
        Self::Content(Box::new(content), length)
    }

    /// The same as something that goes from its file to the socket by itself, behind these files; back as it is where it
    /// cannot, or a copy costs less.
    pub(super) fn in_file(self, files: &FileQueue) -> Result<FileBody, Self> {
        match self {
            Self::Content(content, Some(length))
                if length >= LARGE_BYTES && content.is_in_file(length) =>
            {
                Ok(FileBody::new(content, length, files.clone()))
            }
            other @ (Self::Memory(_) | Self::Content(..) | Self::Stream(..)) => Err(other),
        }
    }

    fn read(content: Box<dyn Content>, length: Option<u64>) -> Self {
        let frames = unfold(Some(content), |content| async {
            match content?.read().await {
                (content, Ok(bytes)) => bytes.map(|it| (Ok(it), Some(content))),
                (_, Err(error)) => Some((Err(error), None)),
            }
        });
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
        if let Self::Content(..) = this
            && let Self::Content(content, length) = std::mem::replace(this, Self::empty())
        {
            *this = Self::read(content, length);
        }
        match this {
            Self::Content(..) => Poll::Ready(None),
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
            Self::Memory(None) | Self::Content(_, Some(0)) | Self::Stream(_, Some(0))
        )
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Memory(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Content(_, Some(left)) | Self::Stream(_, Some(left)) => {
                SizeHint::with_exact(*left)
            }
            Self::Content(_, None) | Self::Stream(_, None) => SizeHint::default(),
        }
    }
}

/// From this length on a body is large, and goes from its file to the socket if it can: below it, a copy costs less.
pub(super) const LARGE_BYTES: u64 = 1 << 20;
