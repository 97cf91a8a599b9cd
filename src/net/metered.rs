//! A body that tells, exactly once, how it ended.
//!
//! A response ends when its last byte leaves the connection, not when the HTTP library has taken its last frame: of a
//! large frame that may be long after. So the end travels with the last frame, and whether that frame went out or was
//! thrown away is told by the bytes that the connection sent.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last byte was handed over.
    Complete,
    /// The body failed on our side of it.
    Failed,
    /// The body was dropped before its end: the peer went away.
    Abandoned,
}

/// Bytes that left one connection, in all. Clones count the same connection.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<AtomicU64>);

/// A body that reports how it ended and how many of its bytes went out: at once when it is empty, since nobody will ever
/// poll it; on an error; when its last frame is let go; or when it is dropped.
#[derive(Debug)]
pub struct Metered<B, F: FnOnce(End, u64)> {
    body: B,
    /// `None` once the report is made, or travels with the last frame.
    report: Option<Report<F>>,
}

/// The duty to report; dropped, it says what the connection says.
#[derive(Debug)]
struct Report<F: FnOnce(End, u64)> {
    on_end: Option<F>,
    sent: Sent,
    /// What the connection had sent when the response began.
    sent_before: u64,
    /// Body bytes handed over so far.
    handed_over: u64,
    /// Whether that is all there is.
    is_whole: bool,
}

/// A frame's bytes. The last ones have the report on their back, and make it when they are let go.
#[derive(Debug)]
pub struct Carried<D, F: FnOnce(End, u64)> {
    data: D,
    _report: Option<Report<F>>,
}

impl Sent {
    /// Counts bytes that went out.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<B: Body, F: FnOnce(End, u64)> Metered<B, F> {
    /// Wraps a body that goes out on the connection that `sent` counts.
    pub fn new(body: B, sent: Sent, on_end: F) -> Self {
        let report = Report {
            on_end: Some(on_end),
            sent_before: sent.total(),
            sent,
            handed_over: 0,
            is_whole: false,
        };
        let mut report = Some(report);
        if body.is_end_stream()
            && let Some(report) = report.take()
        {
            report.say(End::Complete, 0);
        }
        Self { body, report }
    }
}

impl<B, F> Body for Metered<B, F>
where
    B: Body + Unpin,
    F: FnOnce(End, u64) + Unpin,
{
    type Data = Carried<B::Data, F>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => {
                if let Some(report) = this.report.take() {
                    let bytes = report.sent_of_body();
                    report.say(End::Failed, bytes);
                }
                return Poll::Ready(Some(Err(error)));
            }
            Poll::Ready(None) => {
                if let Some(report) = this.report.take() {
                    let bytes = report.handed_over;
                    report.say(End::Complete, bytes);
                }
                return Poll::Ready(None);
            }
        };
        if let (Some(report), Some(data)) = (&mut this.report, frame.data_ref()) {
            report.handed_over += data.remaining() as u64;
        }
        let (is_data, is_last) = (frame.is_data(), this.body.is_end_stream());
        let mut report = this.report.take_if(|_| is_data && is_last);
        if let Some(report) = &mut report {
            report.is_whole = true;
        }
        let frame = frame.map_data(|data| Carried {
            data,
            _report: report,
        });
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<F: FnOnce(End, u64)> Report<F> {
    fn say(mut self, end: End, bytes: u64) {
        if let Some(on_end) = self.on_end.take() {
            on_end(end, bytes);
        }
    }

    /// Bytes of the body that went out. The head went before them, so this may be too many by its few hundred bytes, but
    /// never more than were handed over.
    fn sent_of_body(&self) -> u64 {
        (self.sent.total() - self.sent_before).min(self.handed_over)
    }
}

impl<F: FnOnce(End, u64)> Drop for Report<F> {
    fn drop(&mut self) {
        let bytes = self.sent_of_body();
        // A head went out before the body, so that the connection sent more than the body when it sent all of it.
        let all = self.is_whole && self.sent.total() - self.sent_before > self.handed_over;
        if let Some(on_end) = self.on_end.take() {
            on_end(if all { End::Complete } else { End::Abandoned }, bytes);
        }
    }
}

impl<D: Buf, F: FnOnce(End, u64)> Buf for Carried<D, F> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, bytes: usize) {
        self.data.advance(bytes);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt, Empty, Full, StreamBody};
    use parking_lot::Mutex;

    use super::*;

    type Told = Arc<Mutex<Vec<(End, u64)>>>;

    fn told() -> (Told, impl FnOnce(End, u64) + Send + Unpin + 'static) {
        let told = Told::default();
        let ear = Arc::clone(&told);
        (told, move |end, bytes| ear.lock().push((end, bytes)))
    }

    #[test]
    fn an_empty_body_ends_at_once() {
        let (told, on_end) = told();
        let _body = Metered::new(Empty::<Bytes>::new(), Sent::default(), on_end);
        assert_eq!(*told.lock(), [(End::Complete, 0)]);
    }

    #[tokio::test]
    async fn the_last_frame_carries_the_end() {
        let (told, on_end) = told();
        let sent = Sent::default();
        let mut body = Metered::new(
            Full::new(Bytes::from_static(b"layer")),
            sent.clone(),
            on_end,
        );
        let frame = body.frame().await.unwrap().unwrap();
        drop(body);
        assert!(told.lock().is_empty(), "the frame is still under way");
        sent.add(100 + 5);
        drop(frame);
        assert_eq!(*told.lock(), [(End::Complete, 5)]);
    }

    #[tokio::test]
    async fn a_last_frame_that_never_went_out_is_abandoned() {
        let (told, on_end) = told();
        let sent = Sent::default();
        let mut body = Metered::new(Full::new(Bytes::from(vec![0; 1000])), sent.clone(), on_end);
        let frame = body.frame().await.unwrap().unwrap();
        sent.add(100);
        drop((body, frame));
        assert_eq!(*told.lock(), [(End::Abandoned, 100)]);
    }

    #[tokio::test]
    async fn a_failure_is_told_and_a_drop_after_it_is_not() {
        let (told, on_end) = told();
        let failing = futures_util::stream::iter([
            Ok(Frame::data(Bytes::from_static(b"la"))),
            Err(std::io::Error::other("cut")),
        ]);
        let mut body = Metered::new(StreamBody::new(failing), Sent::default(), on_end);
        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.unwrap().is_err());
        drop(body);
        assert_eq!(*told.lock(), [(End::Failed, 0)]);
    }
}
