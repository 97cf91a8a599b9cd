//! The body of a response on its way out, which tells how it ended: alone on its connection, or as one of several.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::body::ResponseBody;
use super::connection::ConnectionHandle;
use super::sendfile::{BodyError, FileBody, QueuedFile};
use super::stream::{Progress, StreamBody};
use crate::net::{Carried, End, Metered};

/// A body that tells, exactly once, how it ended.
pub(super) enum Outgoing {
    /// Nothing else is on its connection.
    Alone(Metered<ResponseBody, OnEnd>),
    /// Neither here, and it is in a file.
    File(Metered<FileBody, OnEnd>),
    /// It is one of several.
    Stream(StreamBody<ResponseBody, OnEnd>),
}

/// The bytes of a frame.
pub(super) enum Piece {
    Alone(Carried<Bytes, OnEnd>),
    /// They stay in their file.
    File(Carried<QueuedFile, OnEnd>),
    Stream(Bytes),
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
        let sent = connection.sent.clone();
        let body = match connection.files() {
            Some(files) => body.in_file(files),
            None => Err(body),
        };
        match body {
            Ok(file) => {
                let judge = file.judge();
                let on_end: OnEnd = Box::new(move |_, _| {
                    let (end, bytes) = judge();
                    on_end(end, bytes);
                });
                Self::File(Metered::new(file, sent, on_end))
            }
            Err(body) => Self::Alone(Metered::new(body, sent, on_end)),
        }
    }
}

impl Body for Outgoing {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        match self.get_mut() {
            Self::Alone(body) => poll(body, cx, Piece::Alone),
            Self::File(body) => poll(body, cx, Piece::File),
            Self::Stream(body) => poll(body, cx, Piece::Stream),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Alone(body) => body.is_end_stream(),
            Self::File(body) => body.is_end_stream(),
            Self::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Alone(body) => body.size_hint(),
            Self::File(body) => body.size_hint(),
            Self::Stream(body) => body.size_hint(),
        }
    }
}

fn poll<B: Body + Unpin>(
    body: &mut B,
    cx: &mut Context<'_>,
    piece: fn(B::Data) -> Piece,
) -> Poll<Option<Result<Frame<Piece>, B::Error>>> {
    let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
    Poll::Ready(frame.map(|it| it.map(|frame| frame.map_data(piece))))
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match self {
            Self::Alone(bytes) => bytes.remaining(),
            Self::File(file) => file.remaining(),
            Self::Stream(bytes) => bytes.remaining(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Alone(bytes) => bytes.chunk(),
            Self::File(file) => file.chunk(),
            Self::Stream(bytes) => bytes.chunk(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::Alone(bytes) => bytes.chunks_vectored(slices),
            Self::File(file) => file.chunks_vectored(slices),
            Self::Stream(bytes) => bytes.chunks_vectored(slices),
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Alone(bytes) => bytes.advance(count),
            Self::File(file) => file.advance(count),
            Self::Stream(bytes) => bytes.advance(count),
        }
    }
}
