//! How a gateway is asked: one route for each row of the API, on HTTP/1.1 and HTTP/2 in the clear.
//!
//! A request passes `entry` (request id, key, metrics, the one place where a refusal becomes bytes), then its
//! route, which reads what was sent, calls one method of [`Gateway`] and writes down what came back. Routes decide
//! nothing. There is no other middleware, except where browsers are let in (`cors`): `/execute` is the hot path, and each
//! layer is paid for on every call.
//!
//! The bodies that go out are types of their own (`wire`) and not the domain's, so that a field of the API does
//! not change because a struct did. The OpenAPI document is made from the same annotations that the routes are
//! registered with, so that what is served and what is documented cannot differ.
//!
//! **Architecture Invariant:** nothing here knows the queue or the store; a handler that needs either is missing a
//! method of [`Gateway`].

use std::{sync::Arc, time::Duration};

use axum::Router;
use flux_pki::Certs;
use flux_protocol::limits;
use flux_runtime::{Settings, Shutdown, Tasks, settings::TlsSettings};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::core::Gateway;

mod access;
mod api_key;
mod caller;
mod connection;
mod cors;
mod document;
mod entry;
mod json;
mod listener;
mod measures;
mod path;
mod patient;
mod query;
mod refused;
mod request_body;
mod request_id;
mod routes;
mod ticket;
mod tls;
mod wire;

pub use api_key::{ApiKey, MissingApiKey};
pub use cors::CorsError;
pub use listener::listen;
pub use tls::{Tls, TlsError};

/// What serving HTTP needs to be told. The limits are [`limits`]'s unless a test wants to meet one sooner.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    pub api_key: ApiKey,
    pub max_connections: usize,
    pub head_read_timeout: Duration,
    pub body_stall_timeout: Duration,
    pub write_stall_timeout: Duration,
    /// HTTPS instead of HTTP.
    pub tls: Option<Tls>,
    /// Origins whose pages may ask from a browser; `*` is any.
    pub cors: Vec<String>,
}

/// HTTP cannot be served as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error(transparent)]
    ApiKey(#[from] MissingApiKey),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Cors(#[from] CorsError),
}

impl HttpOptions {
    pub fn new(api_key: ApiKey) -> Self {
        Self {
            api_key,
            max_connections: limits::HTTP_CONNECTIONS,
            head_read_timeout: limits::HTTP_HEAD_READ,
            body_stall_timeout: limits::HTTP_BODY_STALL,
            write_stall_timeout: limits::HTTP_WRITE_STALL,
            tls: None,
            cors: Vec::new(),
        }
    }

    /// # Errors
    /// No key is configured (a gateway does not serve without one), the certificate cannot be used, or an origin is none.
    pub fn from_settings(settings: &Settings) -> Result<Self, OptionsError> {
        let gateway = &settings.gateway;
        let mut options = Self::new(ApiKey::parse(gateway.api_key.as_deref().unwrap_or_default())?);
        options.tls = match &gateway.tls {
            None => None,
            Some(TlsSettings::Files(files)) => Some(Tls::load(&files.cert, &files.key)?),
            Some(TlsSettings::Own(_)) if settings.disable_mtls => return Err(TlsError::no_identities().into()),
            Some(TlsSettings::Own(_)) => {
                let [certificate, key] = Certs::at(settings.certs_dir()).gateway_files();
                Some(Tls::load(&certificate, &key)?)
            }
        };
        cors::check(&gateway.cors)?;
        options.cors.clone_from(&gateway.cors);
        Ok(options)
    }
}

/// What every route can reach.
struct Http {
    gateway: Gateway,
    options: HttpOptions,
    shutdown: Arc<Shutdown>,
    tasks: Tasks,
    /// Permits of 64 KiB for request bodies held in memory.
    bodies: Arc<Semaphore>,
    openapi: bytes::Bytes,
}

type Api = Arc<Http>;

/// Serves until shutdown, and returns when the last connection has ended: on drain at the end of the requests in
/// flight, on kill at once.
///
/// # Errors
/// The listener has no address, which means that it is closed.
pub async fn serve(
    gateway: Gateway,
    listener: TcpListener,
    options: HttpOptions,
    shutdown: Arc<Shutdown>,
    tasks: Tasks,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let router = build(gateway, options.clone(), Arc::clone(&shutdown), tasks.clone());
    tracing::info!(%address, tls = options.tls.is_some(), "listening");
    if let Some(tls) = options.tls.clone() {
        tasks.spawn("certificate", tls.follow(Arc::clone(&shutdown)));
    }
    tasks.spawn("metrics upkeep", measures::upkeep(Arc::clone(&shutdown)));
    listener::run(listener, router, options, shutdown, tasks).await;
    Ok(())
}

/// The routes alone, for tests.
pub fn router(gateway: Gateway, options: HttpOptions) -> Router {
    let shutdown = Shutdown::new();
    build(gateway, options, Arc::clone(&shutdown), Tasks::new(shutdown))
}

/// The OpenAPI document, as `/openapi.json` serves it.
pub fn openapi() -> serde_json::Value {
    serde_json::to_value(document::complete(routes::all().into_openapi())).unwrap_or_default()
}

fn build(gateway: Gateway, options: HttpOptions, shutdown: Arc<Shutdown>, tasks: Tasks) -> Router {
    let (router, document) = routes::all().split_for_parts();
    let measures = measures::Measures::of(&document);
    let cors = cors::layer(&options.cors);
    let document = document::complete(document);
    let http = Arc::new(Http {
        gateway,
        options,
        shutdown,
        tasks,
        bodies: Arc::new(Semaphore::new(limits::HTTP_BODIES / limits::HTTP_BODY_FREE)),
        openapi: serde_json::to_vec(&document).unwrap_or_default().into(),
    });
    router
        .fallback(routes::fallback::route_not_found)
        .method_not_allowed_fallback(routes::fallback::method_not_allowed)
        .layer(entry::EntryLayer::new(Arc::clone(&http), measures))
        .layer(tower::util::option_layer(cors))
        .with_state(http)
}
