//! What is not there.

use axum::http::{Method, Uri};
use flux_protocol::ErrorCode;

use crate::refusal::Refusal;

pub(in crate::http) async fn route_not_found(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal::new(ErrorCode::RouteNotFound, format!("there is no route {path}; GET /docs lists those that there are"))
}

pub(in crate::http) async fn method_not_allowed(method: Method, uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("{path} does not take {method}; the `Allow` header names the methods that it takes");
    Refusal::new(ErrorCode::MethodNotAllowed, message)
}
