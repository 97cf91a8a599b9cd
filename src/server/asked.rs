//! What the admin port takes orders from.
//!
//! A browser that an operator has open can reach this port, too, and any web page can make it send a form. So an order is
//! JSON by its `Content-Type`, which no page can send to another origin without asking first (Fetch, "CORS-safelisted
//! request-header"), and whatever carries an `Origin` is refused.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::access::NotTaken;

/// Why a request is no order.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoOrder {
    #[error("only POST")]
    Method,
    #[error("requests from web pages are refused")]
    Origin,
    #[error("the Content-Type must be application/json")]
    ContentType,
    #[error("the body is larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the body does not come")]
    Silent,
    #[error("the body ended early")]
    Cut,
}

impl NoOrder {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Origin => StatusCode::FORBIDDEN,
            Self::ContentType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Silent => StatusCode::REQUEST_TIMEOUT,
            Self::Cut => StatusCode::BAD_REQUEST,
        }
    }
}

/// The JSON of an order.
pub(super) async fn order(request: Request<Incoming>) -> Result<Bytes, NoOrder> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Err(NoOrder::Method);
    }
    if head.headers.contains_key(ORIGIN) {
        return Err(NoOrder::Origin);
    }
    if !is_json(&head.headers) {
        return Err(NoOrder::ContentType);
    }
    let body = timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match body {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(NoOrder::TooLarge),
        Ok(Err(_)) => Err(NoOrder::Cut),
        Err(_) => Err(NoOrder::Silent),
    }
}

/// An answer that is one line of JSON.
pub(super) fn json(status: StatusCode, body: serde_json::Result<Vec<u8>>) -> Response<Full<Bytes>> {
    // Numbers and strings can always be written.
    let mut body = body.unwrap_or_default();
    body.push(b'\n');
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// An answer that says why nothing is done.
pub(super) fn refusal(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    let message = serde_json::json!({ "message": message });
    let mut response = json(status, serde_json::to_vec(&message));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = HeaderValue::from_static("POST");
        response.headers_mut().insert(ALLOW, allowed);
    }
    response
}

/// An answer that says why an order is not taken from whoever gives it.
pub(super) fn not_taken(why: NotTaken) -> Response<Full<Bytes>> {
    let mut response = refusal(why.status(), &why.to_string());
    if why.status() == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static("Basic realm=\"layerhold\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

/// `application/json`, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let essence = media_type.and_then(|it| it.split(';').next());
    essence.is_some_and(|it| it.trim().eq_ignore_ascii_case("application/json"))
}

/// Some hundred references.
const BODY_BYTES_MAX: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_json_is_json() {
        let is = |text: &'static str| {
            let value = HeaderValue::from_static(text);
            is_json(&HeaderMap::from_iter([(CONTENT_TYPE, value)]))
        };
        assert!(is("application/json") && is("Application/JSON ; charset=utf-8"));
        assert!(
            !is("text/plain") && !is("application/jsonp") && !is("text/plain; application/json")
        );
        assert!(!is_json(&HeaderMap::new()));
    }
}
