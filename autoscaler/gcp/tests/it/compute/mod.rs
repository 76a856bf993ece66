//! A stand-in for Compute Engine: what the autoscaler asks of `https://compute.googleapis.com/compute/v1`, over HTTP.
//!
//! Paths, parameters, field names and forms are those of the published reference
//! (<https://cloud.google.com/compute/docs/reference/rest/v1/instances>, `…/zoneOperations`, `…/machineTypes`), errors those of
//! <https://cloud.google.com/compute/docs/api/how-tos/api-requests-responses#handling_api_errors> and
//! <https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-resource-availability>. Where a test depends on it, it is
//! as awkward as Compute Engine can be: an insert is done only when its operation says so, lists are late, pages are short, names are
//! taken as long as an instance is there. A body with a field that is not in the reference is refused.
//!
//! Instances go through their states as they are looked at, not as time passes.

mod answers;
mod body;
mod world;

use std::{collections::HashMap, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use parking_lot::Mutex;
use serde_json::Value;

pub(crate) use answers::{Answer, refusal};
pub(crate) use world::{FINGERPRINT, Trouble, World};

pub(crate) const PROJECT: &str = "crew-1";
pub(crate) const ZONES: [&str; 2] = ["europe-west3-a", "europe-west3-b"];

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    pub(crate) body: Value,
    pub(crate) authorization: String,
}

type Shared = Arc<Mutex<World>>;

pub(crate) struct Compute {
    pub(crate) url: String,
    world: Shared,
    _serving: tokio::task::JoinSet<()>,
}

impl Compute {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let world = Shared::default();
        let zone = "/compute/v1/projects/{project}/zones/{zone}";
        let router = Router::new()
            .route("/compute/v1/projects/{project}/aggregated/instances", get(aggregated))
            .route(&format!("{zone}/instances"), post(insert))
            .route(&format!("{zone}/instances/{{name}}"), get(instance).delete(delete))
            .route(&format!("{zone}/instances/{{name}}/serialPort"), get(serial_port))
            .route(&format!("{zone}/instances/{{name}}/getGuestAttributes"), get(guest_attributes))
            .route(&format!("{zone}/operations/{{name}}"), get(operation))
            .route(&format!("{zone}/machineTypes/{{name}}"), get(machine_type))
            .fallback(any(async || refusal(404, "notFound", "Not Found").into_response()))
            .layer(axum::middleware::from_fn_with_state(world.clone(), keep))
            .with_state(world.clone());
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        Self { url, world, _serving: serving }
    }

    pub(crate) fn world<T>(&self, with: impl FnOnce(&mut World) -> T) -> T {
        with(&mut self.world.lock())
    }

    /// Bodies of inserts, with the ids they were asked with.
    pub(crate) fn inserts(&self) -> Vec<Seen> {
        let seen = self.world(|world| world.seen.clone());
        seen.into_iter().filter(|seen| seen.method == Method::POST && seen.path.ends_with("/instances")).collect()
    }
}

/// Writes down what was asked, and does to it what the test wants.
async fn keep(
    State(world): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let authorization =
        headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let seen = Seen {
        method: method.clone(),
        path: uri.path().to_owned(),
        query,
        body: serde_json::from_slice(&body).unwrap_or_default(),
        authorization: authorization.clone(),
    };
    if !authorization.starts_with("Bearer ") {
        return refusal(401, "required", "Login Required.").into_response();
    }
    let trouble = {
        let mut world = world.lock();
        world.seen.push(seen);
        world.trouble_for(&method, uri.path())
    };
    match trouble {
        Some(Trouble::Answer(answer)) => {
            let mut response = answer.into_response();
            if let Some(seconds) = world.lock().retry_after {
                response.headers_mut().insert("retry-after", seconds.into());
            }
            return response;
        }
        Some(Trouble::Silence) => std::future::pending::<()>().await,
        Some(Trouble::LoseAnswer) => {
            next.run(axum::extract::Request::from_parts(parts, body.into())).await;
            return (StatusCode::BAD_GATEWAY, "<html>502</html>").into_response();
        }
        None => {}
    }
    next.run(axum::extract::Request::from_parts(parts, body.into())).await
}

type Named = Path<(String, String, String)>;

async fn insert(
    State(world): State<Shared>,
    Path((project, zone)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Answer {
    let body = serde_json::from_slice(&body).expect("JSON");
    world.lock().insert(&project, &zone, query.get("requestId"), &body)
}

async fn instance(State(world): State<Shared>, Path((_, zone, name)): Named) -> Answer {
    world.lock().get(&zone, &name)
}

async fn delete(State(world): State<Shared>, Path((_, zone, name)): Named) -> Answer {
    world.lock().delete(&zone, &name)
}

async fn serial_port(
    State(world): State<Shared>,
    Path((_, zone, name)): Named,
    Query(query): Query<HashMap<String, String>>,
) -> Answer {
    world.lock().serial_port(&zone, &name, query.get("port").map_or("1", String::as_str))
}

async fn guest_attributes(
    State(world): State<Shared>,
    Path((_, zone, name)): Named,
    Query(query): Query<HashMap<String, String>>,
) -> Answer {
    world.lock().guest_attributes(&zone, &name, query.get("queryPath").map_or("", String::as_str))
}

async fn operation(State(world): State<Shared>, Path((_, zone, name)): Named) -> Answer {
    world.lock().operation(&zone, &name)
}

async fn machine_type(Path((_, zone, name)): Named) -> Answer {
    answers::machine_type(&zone, &name)
}

async fn aggregated(State(world): State<Shared>, Query(query): Query<HashMap<String, String>>) -> Answer {
    world.lock().aggregated(&query)
}
