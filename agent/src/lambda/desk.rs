//! What a worker may say to its Runtime API, and when; requests come in here, invocations and their answers go through.

use std::time::Instant;

use bytes::Bytes;
use flux_protocol::limits;
use flux_worker::Fault;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming, header::HeaderName};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    event::{self, Event},
    fault,
};

const ROOT: &str = "/2018-06-01/runtime/";
const ERROR_TYPE: HeaderName = HeaderName::from_static("lambda-runtime-function-error-type");
const ERROR_BODY: HeaderName = HeaderName::from_static("lambda-runtime-function-error-body");

/// What an invocation, or the worker's start, came to.
#[derive(Debug)]
pub(super) enum Said {
    Answer {
        /// Of the first invocation.
        loaded_at: Option<Instant>,
        answer: Result<Bytes, Fault>,
    },
    NotInitialised(Fault),
}

#[derive(Debug, Default)]
struct State {
    /// A request for an invocation that waits. Its other end is gone where the connection is.
    asked: Option<oneshot::Sender<Response<Full<Bytes>>>>,
    /// The invocation that is under way.
    serving: Option<String>,
    is_loaded: bool,
    loaded_at: Option<Instant>,
    said: Option<Said>,
}

/// See the module's text. One invocation at a time.
#[derive(Debug, Default)]
pub(super) struct Desk(Mutex<State>);

/// A request that cannot be served: its status, type and what is wrong.
struct Refused(StatusCode, &'static str, String);

impl Desk {
    pub(super) fn is_asked(&self) -> bool {
        self.0.lock().asked.as_ref().is_some_and(|asked| !asked.is_closed())
    }

    pub(super) fn loaded(&self) {
        let mut state = self.0.lock();
        state.is_loaded = true;
        state.loaded_at = Some(Instant::now());
    }

    /// Gives the invocation to who asked. `false` where that one is gone.
    pub(super) fn hand_over(&self, event: &Event) -> bool {
        let mut state = self.0.lock();
        let handed = state.asked.take().is_some_and(|asked| asked.send(event.response()).is_ok());
        if handed {
            state.serving = Some(event.id.clone());
        }
        handed
    }

    pub(super) fn take_said(&self) -> Option<Said> {
        self.0.lock().said.take()
    }

    /// Serves one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let rest: Vec<&str> = path.strip_prefix(ROOT).unwrap_or_default().split('/').collect();
        let answered = match (request.method(), rest.as_slice()) {
            (&Method::GET, ["invocation", "next"]) => self.next().await,
            (&Method::POST, ["invocation", id, "response"]) => self.response(id, request).await,
            (&Method::POST, ["invocation", id, "error"]) => self.error(id, request).await,
            (&Method::POST, ["init", "error"]) => self.init_error(request).await,
            _ => Err(Refused(StatusCode::NOT_FOUND, "InvalidPath", format!("`{path}` is not served here"))),
        };
        answered.unwrap_or_else(|Refused(status, kind, message)| {
            tracing::debug!(%status, kind, message, "a request of a worker was refused");
            document(status, &json!({"errorType": kind, "errorMessage": message}))
        })
    }

    async fn next(&self) -> Result<Response<Full<Bytes>>, Refused> {
        let waits = {
            let mut state = self.0.lock();
            let busy = state.serving.is_some() || state.asked.as_ref().is_some_and(|asked| !asked.is_closed());
            if busy {
                let message = "an invocation is under way or asked for already; one is served at a time";
                return Err(Refused(StatusCode::FORBIDDEN, "InvalidStateTransition", message.to_owned()));
            }
            let (sender, waits) = oneshot::channel();
            state.asked = Some(sender);
            waits
        };
        let gone =
            |_| Refused(StatusCode::GONE, "InvalidStateTransition", "the worker is not used any more".to_owned());
        waits.await.map_err(gone)
    }

    async fn response(&self, id: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refused> {
        self.check(id)?;
        let (parts, body) = request.into_parts();
        let collected = match Limited::new(body, limits::RESULT).collect().await {
            Ok(collected) => collected,
            Err(error) if error.is::<LengthLimitError>() => {
                let message = format!("its response has more than {} bytes", limits::RESULT);
                self.say(id, Err(fault("Function.ResponseSizeTooLarge", message.clone())));
                return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message));
            }
            Err(error) => return Err(broken_off(&*error)),
        };
        let text = |headers: &HeaderMap, name: HeaderName| Some(headers.get(name)?.to_str().ok()?.to_owned());
        // A streaming response says at its end that it failed.
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let failed = text(&trailers, ERROR_TYPE).map(|kind| (kind, text(&trailers, ERROR_BODY).unwrap_or_default()));
        let body = collected.to_bytes();
        let failed = failed.or_else(|| {
            let announced = parts.headers.contains_key(hyper::header::TRAILER);
            let (kind, error) = announced.then(|| event::failure_at_the_end(&body)).flatten()?;
            Some((kind.to_owned(), error.to_owned()))
        });
        let answer = match failed {
            Some((kind, error)) => {
                Err(event::fault_of(Some(&kind), &event::from_base64(&error).unwrap_or_else(|| error.into())))
            }
            None => Ok(event::result(body, text(&parts.headers, hyper::header::CONTENT_TYPE).as_deref())),
        };
        self.say(id, answer);
        Ok(accepted())
    }

    async fn error(&self, id: &str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refused> {
        self.check(id)?;
        let fault = posted_fault(request).await?;
        self.say(id, Err(fault));
        Ok(accepted())
    }

    async fn init_error(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Refused> {
        if self.0.lock().is_loaded {
            let message = "it was initialised before: it has asked for an invocation";
            return Err(Refused(StatusCode::FORBIDDEN, "InvalidStateTransition", message.to_owned()));
        }
        let fault = posted_fault(request).await?;
        self.0.lock().said = Some(Said::NotInitialised(fault));
        Ok(accepted())
    }

    fn check(&self, id: &str) -> Result<(), Refused> {
        if self.0.lock().serving.as_deref() == Some(id) {
            return Ok(());
        }
        let message = format!("`{id}` is not the invocation that is under way");
        Err(Refused(StatusCode::BAD_REQUEST, "InvalidRequestID", message))
    }

    /// The first answer counts.
    fn say(&self, id: &str, answer: Result<Bytes, Fault>) {
        let mut state = self.0.lock();
        if state.serving.as_deref() == Some(id) {
            state.serving = None;
            let loaded_at = state.loaded_at.take();
            state.said = Some(Said::Answer { loaded_at, answer });
        }
    }
}

/// `{errorType, errorMessage, stackTrace}`; or anything else, and its type in a header.
async fn posted_fault(request: Request<Incoming>) -> Result<Fault, Refused> {
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(ERROR_TYPE).and_then(|value| value.to_str().ok());
    match Limited::new(body, limits::RESULT).collect().await {
        Ok(body) => Ok(event::fault_of(kind, &body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("what it says of its error has more than {} bytes", limits::RESULT);
            Ok(fault(kind.unwrap_or("Runtime.Unknown"), message))
        }
        Err(error) => Err(broken_off(&*error)),
    }
}

fn broken_off(error: &(dyn std::error::Error + 'static)) -> Refused {
    Refused(StatusCode::BAD_REQUEST, "InvalidRequest", format!("the body cannot be read: {error}"))
}

fn accepted() -> Response<Full<Bytes>> {
    document(StatusCode::ACCEPTED, &json!({"status": "OK"}))
}

fn document(status: StatusCode, content: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(content.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, event::JSON);
    response
}
