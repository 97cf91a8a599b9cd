//! The body of a response on its way out, which tells how it ended: alone on its connection, or as one of several.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::body::{BodyError, ResponseBody};
use super::connection::ConnectionHandle;
use super::stream::{Progress, StreamBody};
use crate::net::{End, Metered};

/// A body that tells, exactly once, how it ended.
pub(super) enum Outgoing {
    /// Nothing else is on its connection.
    Alone(Metered<ResponseBody, OnEnd>),
    /// It is one of several.
    Stream(StreamBody<ResponseBody, OnEnd>),
}

/// Who is told how it ended, and how many bytes went out.
pub(super) type OnEnd = Box<dyn FnOnce(End, u64) + Send>;

impl Outgoing {
    /// Wraps a body that goes out on this connection. To be called by the task that serves the request.
    pub(super) fn new(body: ResponseBody, connection: &ConnectionHandle, on_end: OnEnd) -> Self {
        if body.is_large() {
            connection.expect_much();
        }
        if connection.is_stream() {
            return Self::Stream(StreamBody::new(body, Progress::of_task(), on_end));
        }
        Self::Alone(Metered::new(body, connection.sent.clone(), on_end))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Alone(body) => Pin::new(body).poll_frame(cx),
            Self::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Alone(body) => body.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Alone(body) => body.size_hint(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}
