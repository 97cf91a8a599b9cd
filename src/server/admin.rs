//! The admin port: metrics, health, purging and checking, never the registry.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use prometheus::{Encoder, Registry, TextEncoder};
use tracing::{debug, error, info};

use super::access::{Access, NotTaken, Visit, is_forwarded};
use super::asked;
use super::health::Health;
use super::peer::Peer;
use super::peers::Peers;
use super::purge;
use super::verify::Verifications;
use crate::cache::Cache;
use crate::net::{requested_host, shown_path};
use crate::proxy::Proxy;

/// What the admin port tells about.
#[derive(Clone, Debug)]
pub(super) struct Admin {
    pub(super) registry: Registry,
    pub(super) health: Health,
    pub(super) cache: Cache,
    pub(super) proxy: Arc<Proxy>,
    pub(super) verifications: Verifications,
    pub(super) peers: Arc<Peers>,
    pub(super) access: Arc<Access>,
}

impl Admin {
    /// Answers one request.
    pub(super) async fn handle(
        self,
        peer: Peer,
        request: Request<Incoming>,
    ) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
        debug!(
            peer = %peer.address,
            tls = peer.is_tls,
            certificate = peer.certificate.as_deref(),
            method = shown_path(request.method().as_str(), PATH_SHOWN_MAX),
            path = shown_path(request.uri().path(), PATH_SHOWN_MAX),
            "admin request"
        );
        if matches!(request.uri().path(), "/purge" | "/verify")
            && let Err(not_taken) = self.take(&peer, &request).await
        {
            return Ok(asked::not_taken(not_taken).map(BodyExt::boxed_unsync));
        }
        let response = match request.uri().path() {
            "/verify" => return Ok(self.verifications.answer(request).await),
            "/purge" => purge::answer(&self.proxy, request).await,
            _ => self.tell(&request),
        };
        Ok(response.map(BodyExt::boxed_unsync))
    }

    /// Whether an order is taken.
    async fn take(&self, peer: &Peer, request: &Request<Incoming>) -> Result<(), NotTaken> {
        let headers = request.headers();
        let host = requested_host(request.version(), request.uri(), headers);
        let visit = Visit {
            headers,
            peer,
            client: self.peers.client(peer.address.ip(), headers),
            is_https: peer.is_tls,
            host: host.map_err(|_| NotTaken::Host)?,
            namespace: None,
        };
        let is_proxied = is_forwarded(headers) && !self.peers.is_trusted(peer.address.ip());
        let identity = self.access.take_order(visit, is_proxied).await?;
        let path = request.uri().path();
        info!(client = %visit.client, identity = identity.name(), path, "order taken");
        Ok(())
    }

    fn tell(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/metrics" => self.metrics(),
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => self.ready(),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /metrics, /livez, /readyz, /purge and /verify\n",
            ),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut encoded = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut encoded) {
            error!(error = %error, "metrics could not be rendered");
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "metrics could not be rendered\n",
            );
        }
        let mut response = Response::new(Full::new(encoded.into()));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    }

    /// A broken disk is told and is no reason: pulls go around it.
    fn ready(&self) -> Response<Full<Bytes>> {
        match (self.health.is_ready(), self.cache.is_degraded()) {
            (false, _) => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            (true, true) => text(
                StatusCode::OK,
                "degraded: the cache directory refuses writes\n",
            ),
            (true, false) => text(StatusCode::OK, "ok\n"),
        }
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// More than any path here has.
const PATH_SHOWN_MAX: usize = 100;
