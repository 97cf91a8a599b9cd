//! A body that tells, exactly once, how it ended.
//!
//! A response ends when its last byte leaves the connection, not when the HTTP library has taken its last frame: of a
//! large frame that may be long after. So the end travels with the last frame. The HTTP library says of each frame how much of
//! it went out. That is summed for all bodies of a connection, which follow each other: what went out beyond those before a
//! body is the body's own, without its head, and without what still waits of the response before.

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

/// How much of the bodies of one connection, which follow each other, went out. Clones count the same connection. One task at a
/// time counts, that which serves the connection.
#[derive(Clone, Debug, Default)]
pub struct Sent(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Bytes that the HTTP library was given.
    handed_over: AtomicU64,
    /// Bytes of them that left.
    sent: AtomicU64,
}

/// A body that reports how it ended and how many of its bytes went out: at once when it is empty, since nobody will ever
/// poll it; on an error; when its last frame is let go; or when it is dropped. One that learns only from its end that a frame
/// was the last reports when that is handed over.
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
    /// What was handed over before, of other bodies.
    before: u64,
    /// Body bytes handed over so far.
    handed_over: u64,
    /// Whether that is all there is.
    is_whole: bool,
}

/// A frame's bytes. The last ones have the report on their back, and make it when they are let go.
#[derive(Debug)]
pub struct Carried<D, F: FnOnce(End, u64)> {
    data: D,
    back: Back<F>,
}

/// What a frame carries: where what goes out of it is counted.
#[derive(Debug)]
enum Back<F: FnOnce(End, u64)> {
    /// Nowhere: the end is told already.
    Nothing,
    /// With the connection; the end comes with a later frame.
    Count(Sent),
    /// With the connection, and then this is the end.
    Report(Report<F>),
}

impl Sent {
    fn hand_over(&self, bytes: u64) {
        add(&self.0.handed_over, bytes);
    }

    fn handed_over(&self) -> u64 {
        self.0.handed_over.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        add(&self.0.sent, bytes as u64);
    }

    fn total(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }
}

/// Nobody else counts meanwhile, so that it need not be one step.
fn add(count: &AtomicU64, bytes: u64) {
    count.store(count.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

impl<B: Body, F: FnOnce(End, u64)> Metered<B, F> {
    /// Wraps the next body of the connection that `sent` counts. Those before it were handed over to their ends.
    pub fn new(body: B, sent: Sent, on_end: F) -> Self {
        let report = Report {
            on_end: Some(on_end),
            before: sent.handed_over(),
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
            let bytes = data.remaining() as u64;
            report.handed_over += bytes;
            report.sent.hand_over(bytes);
        }
        let is_last = frame.is_data() && this.body.is_end_stream();
        let back = match this.report.take_if(|_| is_last) {
            Some(mut report) => {
                report.is_whole = true;
                Back::Report(report)
            }
            None => match &this.report {
                Some(report) => Back::Count(report.sent.clone()),
                None => Back::Nothing,
            },
        };
        let frame = frame.map_data(|data| Carried { data, back });
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

    /// Bytes of the body that went out.
    fn sent_of_body(&self) -> u64 {
        let sent = self.sent.total().saturating_sub(self.before);
        sent.min(self.handed_over)
    }
}

impl<F: FnOnce(End, u64)> Drop for Report<F> {
    fn drop(&mut self) {
        let bytes = self.sent_of_body();
        let all = self.is_whole && bytes == self.handed_over;
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
        match &self.back {
            Back::Nothing => {}
            Back::Count(sent) => sent.add(bytes),
            Back::Report(report) => report.sent.add(bytes),
        }
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

    async fn next<B: Body + Unpin>(body: &mut B) -> B::Data {
        let frame = body.frame().await.unwrap();
        frame.ok().unwrap().into_data().ok().unwrap()
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
        let body = Full::new(Bytes::from_static(b"layer"));
        let mut body = Metered::new(body, Sent::default(), on_end);
        let mut frame = next(&mut body).await;
        drop(body);
        frame.advance(5);
        assert!(told.lock().is_empty(), "the frame is still under way");
        drop(frame);
        assert_eq!(*told.lock(), [(End::Complete, 5)]);
    }

    #[tokio::test]
    async fn a_last_frame_of_which_a_byte_is_left_is_abandoned() {
        for sent in [0, 1, 4] {
            let (told, on_end) = told();
            let body = Full::new(Bytes::from_static(b"layer"));
            let mut body = Metered::new(body, Sent::default(), on_end);
            let mut frame = next(&mut body).await;
            frame.advance(sent);
            drop((body, frame));
            assert_eq!(*told.lock(), [(End::Abandoned, sent as u64)]);
        }
    }

    #[tokio::test]
    async fn what_waits_of_the_response_before_is_not_of_this_one() {
        let (first_told, on_first_end) = told();
        let (told, on_end) = told();
        let sent = Sent::default();
        let body = |bytes| Full::new(Bytes::from_static(bytes));
        // The next one is asked for, too, and answered as soon as the first is handed over.
        let mut first = Metered::new(body(b"manifest"), sent.clone(), on_first_end);
        let mut first = next(&mut first).await;
        let mut last = Metered::new(body(b"layer"), sent, on_end);
        let mut last = next(&mut last).await;
        first.advance(8);
        drop(first);
        last.advance(2);
        drop(last);
        assert_eq!(*first_told.lock(), [(End::Complete, 8)]);
        assert_eq!(*told.lock(), [(End::Abandoned, 2)]);
    }

    #[tokio::test]
    async fn each_frame_counts_and_what_is_never_sent_does_not() {
        let (told, on_end) = told();
        let frames =
            ["lay", "er", "s"].map(|it| Ok::<_, std::io::Error>(Frame::data(Bytes::from(it))));
        let frames = StreamBody::new(futures_util::stream::iter(frames));
        let mut body = Metered::new(frames, Sent::default(), on_end);
        let mut first = next(&mut body).await;
        let mut second = next(&mut body).await;
        first.advance(3);
        second.advance(1);
        drop((first, second));
        assert!(told.lock().is_empty());
        drop(body);
        assert_eq!(*told.lock(), [(End::Abandoned, 4)]);
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
