//! The rows of the API, a file for each resource.

use utoipa_axum::{router::OpenApiRouter, routes};

use super::Api;

pub(super) use answer::EXECUTION_ID;

mod agents;
mod answer;
mod autoscaler;
mod collect;
mod dead_letters;
mod deploy;
mod docs;
mod event;
mod execute;
mod executions;
pub(super) mod fallback;
mod function_url;
mod functions;
mod health;
mod invocation;
mod keys;
mod machines;
mod metrics;
mod redrive;
mod secrets;
mod stream;
mod tickets;

/// Every route. What is registered here is in the document, and the other way round.
pub(super) fn all() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(super::document::opening())
        .routes(routes!(health::health))
        .routes(routes!(health::ready))
        .routes(routes!(agents::agents))
        .routes(routes!(agents::resources))
        .routes(routes!(machines::token))
        .routes(routes!(machines::join))
        .routes(routes!(machines::register))
        .routes(routes!(machines::cordon))
        .routes(routes!(machines::uncordon))
        .routes(routes!(machines::remove))
        .routes(routes!(autoscaler::autoscaler))
        .routes(routes!(autoscaler::initialize))
        .routes(routes!(autoscaler::remove))
        .routes(routes!(functions::list, functions::register))
        .routes(routes!(functions::show, functions::remove))
        .routes(routes!(deploy::deploy))
        .routes(routes!(deploy::rollback))
        .routes(routes!(execute::execute))
        .routes(routes!(execute::execute_async))
        .routes(routes!(executions::list))
        .routes(routes!(executions::show, executions::cancel))
        .routes(routes!(executions::why))
        .routes(routes!(stream::stream))
        .routes(routes!(function_url::root))
        .routes(routes!(function_url::slash))
        .routes(routes!(function_url::path))
        .routes(routes!(dead_letters::counts))
        .routes(routes!(dead_letters::list, dead_letters::purge))
        .routes(routes!(dead_letters::show, dead_letters::remove))
        .routes(routes!(redrive::redrive))
        .routes(routes!(redrive::redrive_one))
        .routes(routes!(tickets::make))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::rotate))
        .routes(routes!(keys::audit))
        .routes(routes!(secrets::list))
        .routes(routes!(secrets::show, secrets::set, secrets::remove))
        .routes(routes!(secrets::rotate))
        .routes(routes!(collect::collect))
        .routes(routes!(metrics::metrics))
        .routes(routes!(docs::openapi))
        .routes(routes!(docs::page))
}
