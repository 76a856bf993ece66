//! What every request passes first, in one layer: its id, its key, its measures, and on the way out the body of a
//! refusal. A panic of a handler ends here as `internal`, so that a defect costs one request and not a connection's
//! other ones.

use std::{
    any::Any,
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderValue, Version, header::CONNECTION},
    response::{IntoResponse as _, Response},
};
use flux_protocol::ErrorCode;
use futures::{FutureExt as _, future::BoxFuture};
use tower::{Layer, Service};

use super::{
    ApiKey, Http,
    api_key::KeyHeader,
    measures::Measures,
    refused,
    request_body::discard_for_a_moment,
    request_id::{RequestId, X_REQUEST_ID},
};
use crate::refusal::Refusal;

/// Rows of the API that need no key.
const PUBLIC: &[&str] = &["/health", "/ready", "/agents", "/agents/join", "/openapi.json", "/docs"];

#[derive(Clone)]
pub(super) struct EntryLayer {
    http: Arc<Http>,
    measures: Arc<Measures>,
}

impl EntryLayer {
    pub(super) fn new(http: Arc<Http>, measures: Measures) -> Self {
        Self { http, measures: Arc::new(measures) }
    }
}

impl<S> Layer<S> for EntryLayer {
    type Service = Entry<S>;

    fn layer(&self, inner: S) -> Entry<S> {
        Entry { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct Entry<S> {
    inner: S,
    layer: EntryLayer,
}

/// In a request's extensions: where its key was, so that a function is never handed it.
#[derive(Clone, Copy)]
pub(super) struct Authenticated(pub(super) KeyHeader);

impl<S> Service<Request> for Entry<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request) -> Self::Future {
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let EntryLayer { http, measures } = self.layer.clone();
        Box::pin(async move {
            let started = Instant::now();
            let request_id = RequestId::of(request.headers());
            let route = request.extensions().get::<MatchedPath>().cloned();
            let closes = request.version() < Version::HTTP_2;
            let shown = http.options.api_key.shown_in(request.headers());
            let mut response = if shown.is_none() && !PUBLIC.contains(&request.uri().path()) {
                let refusal = unauthorized(ApiKey::any_in(request.headers()));
                discard_for_a_moment(request.into_body()).await;
                refusal.into_response()
            } else {
                if let Some(header) = shown {
                    request.extensions_mut().insert(Authenticated(header));
                }
                match AssertUnwindSafe(inner.call(request)).catch_unwind().await {
                    Ok(Ok(response)) => response,
                    Ok(Err(never)) => match never {},
                    Err(panic) => defect(&*panic).into_response(),
                }
            };
            refused::write(&mut response, &request_id);
            response.headers_mut().insert(X_REQUEST_ID, request_id.header());
            if closes && http.shutdown.is_draining() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            measures.count(route.as_ref().map(MatchedPath::as_str), response.status(), started.elapsed());
            Ok(response)
        })
    }
}

fn defect(panic: &(dyn Any + Send)) -> Refusal {
    let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref().cloned());
    Refusal::new(ErrorCode::Internal, "a defect of Flux; the log has more under this request id")
        .caused_by(said.unwrap_or_else(|| "a panic".to_owned()))
}

fn unauthorized(shows_a_key: bool) -> Refusal {
    let message = if shows_a_key {
        "this is not the key that the gateway was started with (`--api-key`, or the file `api-key` in the data directory of `flux up`)"
    } else {
        "this needs a key: send `X-API-Key: <key>` or `Authorization: Bearer <key>` with the key that the gateway was started with"
    };
    Refusal::new(ErrorCode::Unauthorized, message)
}
