//! Prometheus: one recorder for the process, and handles made ahead for each route, so that counting a request is
//! two atomic additions and not a look-up by labels.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::http::StatusCode;
use flux_runtime::Shutdown;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// From a tenth of a millisecond, near the fastest call, to the longest that a sync call waits.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0, 900.0,
];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// The recorder of this process. The first call installs it; where another one was installed before (a test that
/// records for itself), ours stays aside and renders what little reaches it.
pub(super) fn handle() -> &'static PrometheusHandle {
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new();
        let builder = builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("a metrics recorder was installed before; /metrics will be empty");
        }
        describe();
        handle
    })
}

fn describe() {
    metrics::describe_counter!("flux_http_requests_total", "Requests by route and class of status");
    metrics::describe_histogram!(
        "flux_http_request_seconds",
        metrics::Unit::Seconds,
        "From head read to response made"
    );
    metrics::describe_gauge!("flux_http_connections", "Open connections");
    metrics::describe_counter!(
        "flux_http_stalled_connections_total",
        "Connections given up on because their peer stopped reading"
    );
}

/// Keeps histograms from growing between scrapes.
pub(super) async fn upkeep(shutdown: Arc<Shutdown>) {
    let mut tick = tokio::time::interval(UPKEEP_EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => handle().run_upkeep(),
            () = shutdown.draining() => return,
        }
    }
}

/// Counts open connections for as long as it lives.
pub(super) struct OpenConnection(Gauge);

impl OpenConnection {
    pub(super) fn new() -> Self {
        handle();
        let gauge = gauge!("flux_http_connections");
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Handles for every route of the API.
pub(super) struct Measures {
    routes: HashMap<String, RouteMeasures>,
    other: RouteMeasures,
}

struct RouteMeasures {
    requests: [Counter; 5],
    seconds: Histogram,
}

impl RouteMeasures {
    fn new(route: &str) -> Self {
        let route = route.to_owned();
        Self {
            requests: CLASSES
                .map(|class| counter!("flux_http_requests_total", "route" => route.clone(), "status" => class)),
            seconds: histogram!("flux_http_request_seconds", "route" => route),
        }
    }
}

impl Measures {
    pub(super) fn of(document: &utoipa::openapi::OpenApi) -> Self {
        handle();
        let routes = document.paths.paths.keys().map(|path| (path.clone(), RouteMeasures::new(path))).collect();
        Self { routes, other: RouteMeasures::new("other") }
    }

    /// `route` is the pattern that matched, if any did.
    pub(super) fn count(&self, route: Option<&str>, status: StatusCode, took: Duration) {
        let measures = route.and_then(|route| self.routes.get(route)).unwrap_or(&self.other);
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        measures.requests[class].increment(1);
        measures.seconds.record(took.as_secs_f64());
    }
}
