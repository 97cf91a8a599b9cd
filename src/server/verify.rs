//! A check of the whole store at the admin port: a line of JSON each second says how far it is, and the last one what was
//! found. Whoever closes the connection stops it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::asked::{self, NoOrder};
use crate::cache::{Cache, Verify, VerifyProgress, VerifyReport};
use crate::net::from_json_object;

/// One line of the answer to `POST /verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerifyLine {
    /// How far it has come.
    Progress(VerifyProgress),
    /// What was found; the last line.
    Report(Box<VerifyReport>),
}

/// Checks that are asked for, one at a time.
#[derive(Clone, Debug)]
pub(super) struct Verifications {
    cache: Cache,
    place: Arc<Semaphore>,
}

/// The body of a request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    rate: Option<u64>,
    repair: bool,
    /// The identity of the directory that is meant; whatever it is when nothing is said.
    directory: Option<String>,
}

/// Why nothing is checked.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    NoOrder(#[from] NoOrder),
    #[error(r#"the body is not {{"rate": 67108864, "repair": false}}, or a part of it"#)]
    Body,
    #[error("it keeps another directory")]
    Elsewhere,
    #[error("another check is under way")]
    Busy,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NoOrder(no_order) => no_order.status(),
            Self::Body => StatusCode::BAD_REQUEST,
            Self::Elsewhere | Self::Busy => StatusCode::CONFLICT,
        }
    }
}

impl Verifications {
    pub(super) fn new(cache: Cache) -> Self {
        Self {
            cache,
            place: Arc::new(Semaphore::new(1)),
        }
    }

    /// Answers one request.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
        match self.begin(request).await {
            Ok(lines) => {
                let frames = stream::unfold(lines, |mut lines| async {
                    let line = lines.recv().await?;
                    Some((Ok(Frame::data(line)), lines))
                });
                let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
                // One JSON text a line.
                let kind = HeaderValue::from_static("application/x-ndjson");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Err(refusal) => {
                let message = refusal.to_string();
                asked::refusal(refusal.status(), &message).map(BodyExt::boxed_unsync)
            }
        }
    }

    async fn begin(&self, request: Request<Incoming>) -> Result<mpsc::Receiver<Bytes>, Refusal> {
        let body = asked::order(request).await?;
        let asked: Asked = from_json_object(&body).ok_or(Refusal::Body)?;
        if asked.directory.is_some() && asked.directory != self.cache.identity().await {
            return Err(Refusal::Elsewhere);
        }
        let place = Arc::clone(&self.place).try_acquire_owned();
        let place = place.map_err(|_| Refusal::Busy)?;
        let (lines, read) = mpsc::channel(LINES_MAX);
        let asked = Verify {
            rate: asked.rate.unwrap_or(RATE),
            repair: asked.repair,
        };
        tokio::spawn(verify(self.cache.clone(), asked, lines, place));
        Ok(read)
    }
}

async fn verify(
    cache: Cache,
    asked: Verify,
    lines: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
) {
    let (progress, seen) = watch::channel(VerifyProgress::default());
    let stop = CancellationToken::new();
    let mut verifying = std::pin::pin!(cache.verify(asked, &stop, &progress));
    let report = loop {
        // Told again in a second; what is dropped when nobody listens any more is the check itself.
        tokio::select! {
            report = verifying.as_mut() => break report,
            () = lines.closed() => return info!("a check was given up"),
            () = sleep(PROGRESS_INTERVAL) => {
                let now = *seen.borrow();
                // A reader that is behind is told later.
                let _ = lines.try_send(line(&VerifyLine::Progress(now)));
            }
        }
    };
    let VerifyReport {
        blobs,
        bytes,
        wrong,
        repaired,
        ..
    } = report;
    info!(blobs, bytes, wrong, repaired, "the store was checked");
    let report = VerifyLine::Report(Box::new(report));
    let _ = lines.send(line(&report)).await;
}

fn line(line: &VerifyLine) -> Bytes {
    // Numbers and strings can always be written.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Reads the body of any request without panicking; what is accepted is an object. Whether it is.
pub fn fuzz_verify_order(input: &[u8]) -> bool {
    let asked: Option<Asked> = from_json_object(input);
    let is_object = input.trim_ascii().starts_with(b"{");
    assert!(asked.is_none() || is_object, "an order is an object");
    asked.is_some()
}

/// Bytes in a second when nobody says how many: no burden for a disk that others read from.
const RATE: u64 = 64 << 20;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
const LINES_MAX: usize = 16;
