//! What every request passes first, in one layer: its id, who asks and whether they may, its measures, and on the way out
//! the body of a refusal and the audit log of what was changed. A panic of a handler ends here as `internal`, so that a defect costs one request and not a connection's
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
    RequestPartsExt as _,
    extract::{MatchedPath, RawPathParams, Request},
    http::{HeaderValue, Method, Version, header::CONNECTION},
    response::{IntoResponse as _, Response},
};
use flux_protocol::{ErrorCode, FunctionName, time::now};
use flux_runtime::Tasks;
use flux_store::AuditEntry;
use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::oneshot;
use tower::{Layer, Service};

use super::{
    Http,
    access::{Need, Rule, Rules},
    caller::{self, Caller, Shown},
    connection::Peer,
    measures::Measures,
    refused,
    request_body::discard_for_a_moment,
    request_id::{RequestId, X_REQUEST_ID},
};
use crate::refusal::Refusal;

#[derive(Clone)]
pub(super) struct EntryLayer {
    http: Arc<Http>,
    measures: Arc<Measures>,
    rules: Arc<Rules>,
}

impl EntryLayer {
    pub(super) fn new(http: Arc<Http>, measures: Measures) -> Self {
        Self { http, measures: Arc::new(measures), rules: Arc::new(Rules::new()) }
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

/// In a response's extensions: what a change came to, for the audit log.
#[derive(Clone)]
pub(super) struct Changed(pub(super) String);

/// The same of who made it, where that took no key.
#[derive(Clone)]
pub(super) struct ChangedBy(pub(super) String);

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
        let EntryLayer { http, measures, rules } = self.layer.clone();
        Box::pin(async move {
            let started = Instant::now();
            let request_id = RequestId::of(request.headers());
            let route = request.extensions().get::<MatchedPath>().cloned();
            let closes = request.version() < Version::HTTP_2;
            let rule = rules.of(request.method(), route.as_ref().map(MatchedPath::as_str));
            let mut response = match admit(&http, &mut request, rule).await {
                Ok(caller) if rule.audited => {
                    let audit = Audit::of(&request, caller.as_ref());
                    let (gateway, id) = (http.gateway.clone(), request_id.clone());
                    let change = async move {
                        let response = answered(inner.call(request)).await;
                        if let Some(entry) = audit.entry(&response, &id) {
                            gateway.audit(entry).await;
                        }
                        response
                    };
                    to_its_end(&http.tasks, change).await.unwrap_or_else(|| defect(&()).into_response())
                }
                Ok(_) => answered(inner.call(request)).await,
                Err(Turned { refusal, caller }) => {
                    let response = refusal.into_response();
                    let audit = caller.filter(|_| rule.audited).map(|caller| Audit::of(&request, Some(&caller)));
                    if let Some(entry) = audit.and_then(|audit| audit.entry(&response, &request_id)) {
                        let gateway = http.gateway.clone();
                        to_its_end(&http.tasks, async move { gateway.audit(entry).await }).await;
                    }
                    discard_for_a_moment(request.into_body()).await;
                    response
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

/// What a handler answered, or that it panicked.
async fn answered(handler: impl Future<Output = Result<Response, Infallible>>) -> Response {
    match AssertUnwindSafe(handler).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(panic) => defect(&*panic).into_response(),
    }
}

/// Does work that goes on when the one who asked for it goes away: a connection that is closed ends what waits on it, and a
/// change would be made of which the audit log does not tell.
async fn to_its_end<T: Send + 'static>(tasks: &Tasks, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let (done, ended) = oneshot::channel();
    tasks.spawn("change", async move {
        // Who asked may be gone.
        let _ = done.send(work.await);
    });
    ended.await.ok()
}

fn defect(panic: &(dyn Any + Send)) -> Refusal {
    let said = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref().cloned());
    Refusal::new(ErrorCode::Internal, "a defect of Flux; the log has more under this request id")
        .caused_by(said.unwrap_or_else(|| "a panic".to_owned()))
}

/// A request that is not let in; where it is known whose, the audit log tells of it too.
struct Turned {
    refusal: Refusal,
    caller: Option<Caller>,
}

/// Who asks, if that is known; it is in the request's extensions then.
async fn admit(http: &Http, request: &mut Request, rule: Rule) -> Result<Option<Caller>, Turned> {
    let ticket = (rule.need == Need::See && request.method() == Method::GET).then(|| ticket_in(request)).flatten();
    let caller = match caller::find(http, request.headers(), ticket.as_deref()).await {
        Shown::Is(caller) => caller,
        Shown::Nothing | Shown::Wrong(_) if rule.need == Need::Nothing => return Ok(None),
        Shown::Nothing => return Err(Turned { refusal: unauthorized(None), caller: None }),
        Shown::Wrong(why) => return Err(Turned { refusal: unauthorized(Some(&why)), caller: None }),
    };
    let turned = |refusal| Turned { refusal, caller: Some(caller.clone()) };
    caller.take().map_err(turned)?;
    let is_route = request.extensions().get::<MatchedPath>().is_some();
    if is_route {
        let function = if rule.need == Need::Invoke { function_of(request).await } else { None };
        caller.require(rule.need, function.as_ref()).map_err(turned)?;
    }
    request.extensions_mut().insert(caller.clone());
    Ok(Some(caller))
}

/// The function that the path names: as the router read it, so that what is judged is what is run.
async fn function_of(request: &mut Request) -> Option<FunctionName> {
    let taken = std::mem::take(request);
    let (mut parts, body) = taken.into_parts();
    let params = parts.extract::<RawPathParams>().await;
    *request = Request::from_parts(parts, body);
    let params = params.ok()?;
    let (_, name) = params.iter().find(|(name, _)| matches!(*name, "name" | "function"))?;
    FunctionName::parse(name).ok()
}

fn ticket_in(request: &Request) -> Option<String> {
    let query = request.uri().query()?;
    form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "ticket").map(|(_, ticket)| ticket.into_owned())
}

/// What the audit log says of a request, taken before it is carried out. Nobody is in `who` where the request has no key:
/// then it is an entry if its handler says who that was.
struct Audit(AuditEntry);

impl Audit {
    fn of(request: &Request, caller: Option<&Caller>) -> Self {
        let from = request.extensions().get::<Peer>().map_or_else(|| "unknown".to_owned(), |peer| peer.0.to_string());
        Self(AuditEntry {
            at: now(),
            who: caller.map(Caller::name).unwrap_or_default(),
            from,
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            status: 0,
            request_id: String::new(),
            what: None,
        })
    }

    fn entry(self, response: &Response, request_id: &RequestId) -> Option<AuditEntry> {
        let said = response.extensions().get::<Changed>().map(|changed| changed.0.clone());
        let by = || response.extensions().get::<ChangedBy>().map(|by| by.0.clone());
        let who = Some(self.0.who).filter(|who| !who.is_empty()).or_else(by)?;
        Some(AuditEntry {
            who,
            status: response.status().as_u16(),
            request_id: request_id.as_str().to_owned(),
            what: said.or_else(|| refused::code(response).map(|code| code.as_str().to_owned())),
            ..self.0
        })
    }
}

fn unauthorized(wrong: Option<&str>) -> Refusal {
    let message = match wrong {
        Some(why) => format!(
            "{why}. The key that the gateway was started with is in `gateway.api_key`, or in the file `api-key` in the data \
             directory of `flux up`"
        ),
        None => "this needs a key: send `X-API-Key: <key>` or `Authorization: Bearer <key or token>`".to_owned(),
    };
    Refusal::new(ErrorCode::Unauthorized, message)
}
