//! The OpenAPI document: what the routes say of themselves, completed with what is true of all of them, so that no
//! route has to repeat it: the shape of errors, the key, the request id.

use std::collections::BTreeMap;

use flux_protocol::ErrorCode;
use serde_json::{Value, json};
use utoipa::{
    PartialSchema as _, ToSchema as _,
    openapi::{
        Components, Content, ContentBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, Ref,
        RefOr, ResponseBuilder,
        path::{Operation, PathItem},
        request_body::RequestBody,
        schema::{Schema, Type},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
        tag::TagBuilder,
    },
};

use super::{
    access::{Need, Rules},
    wire::error::{ErrorBody, ErrorDetail},
};

const TAGS: &[(&str, &str)] = &[
    ("functions", "Configuration, code and versions"),
    ("executions", "Run functions, and see what came of it"),
    ("function URLs", "Functions that answer HTTP by themselves"),
    ("dead letters", "Invocations given up on"),
    ("agents", "Who runs functions"),
    ("keys", "Who may do what, and who did"),
    ("secrets", "What functions are given, and nobody is shown"),
    ("operations", "Of the gateway itself"),
];

/// The head of the document, which routes are added to.
pub(super) fn opening() -> OpenApi {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("Flux")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Run functions by a queue. Send the key as `X-API-Key` or `Authorization: Bearer`. Each operation says which \
             scope it needs; `admin` has all. Every answer has an `X-Request-Id`, which is yours if you sent one. Every error has one shape, with a `code` from one list.",
        ))
        .license(Some(license))
        .build();
    let tags = TAGS.iter().map(|(name, what)| TagBuilder::new().name(*name).description(Some(*what)).build());
    OpenApiBuilder::new()
        .info(info)
        .tags(Some(tags.collect::<Vec<_>>()))
        .components(Some(components()))
        .security(Some([requirement("key", &[]), requirement("bearer", &[])]))
        .build()
}

fn requirement(name: &str, scopes: &[&str]) -> SecurityRequirement {
    SecurityRequirement::new(name, scopes.iter().map(|scope| (*scope).to_owned()))
}

fn components() -> Components {
    let codes = ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("Why a request was refused; each has a page under docs/errors/"))
        .enum_values(Some(ErrorCode::ALL.iter().map(|code| code.as_str())));
    let mut components = Components::new();
    components.schemas.insert(ErrorBody::name().into_owned(), ErrorBody::schema());
    components.schemas.insert(ErrorDetail::name().into_owned(), ErrorDetail::schema());
    components.schemas.insert("ErrorCode".to_owned(), RefOr::T(Schema::Object(codes.build())));
    components.add_security_scheme("key", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    components
}

/// The document with everything that is true of every route.
pub(super) fn complete(mut document: OpenApi) -> OpenApi {
    let rules = Rules::new();
    let paths = std::mem::take(&mut document.paths.paths);
    for (path, mut item) in paths {
        for (method, operation) in operations(&mut item) {
            let need = rules.documented(method, &path).map_or(Need::Admin, |rule| rule.need);
            complete_operation(&path, method, operation, need);
        }
        // The router's word for "and whatever follows" is not OpenAPI's.
        document.paths.paths.insert(path.replace("{*", "{"), item);
    }
    document
}

fn operations(item: &mut PathItem) -> Vec<(&'static str, &mut Operation)> {
    let all = [
        ("get", &mut item.get),
        ("put", &mut item.put),
        ("post", &mut item.post),
        ("delete", &mut item.delete),
        ("options", &mut item.options),
        ("head", &mut item.head),
        ("patch", &mut item.patch),
        ("trace", &mut item.trace),
    ];
    all.into_iter().filter_map(|(method, operation)| operation.as_mut().map(|operation| (method, operation))).collect()
}

fn complete_operation(path: &str, method: &str, operation: &mut Operation, need: Need) {
    // Each scope is enough by itself: an alternative of its own, for either way to show a key.
    let alternatives =
        need.scopes().iter().flat_map(|scope| ["key", "bearer"].map(|name| requirement(name, &[*scope])));
    operation.security =
        Some(if need == Need::Nothing { vec![SecurityRequirement::default()] } else { alternatives.collect() });
    if need != Need::Nothing {
        let said = format!("Needs {}.", need.said());
        let description = operation.description.take().filter(|text| !text.is_empty());
        operation.description = Some(description.map_or_else(|| said.clone(), |text| format!("{text}\n\n{said}")));
    }
    operation.operation_id = Some(operation_id(path, method));
    for content in operation.request_body.iter_mut().flat_map(bodies) {
        // Bytes have no schema in OpenAPI 3.1; the media type says it all.
        content.schema = None;
    }
    let public = need == Need::Nothing;
    let responses = &mut operation.responses.responses;
    let takes_input = operation.request_body.is_some() || operation.parameters.is_some();
    let mut add = |status: &str, codes: &str| {
        responses
            .entry(status.to_owned())
            .or_insert_with(|| RefOr::T(ResponseBuilder::new().description(codes).build()));
    };
    if takes_input {
        add("400", "invalid_request");
    }
    add("431", "head_too_large");
    if operation.request_body.is_some() || path.starts_with("/fn/") {
        add("408", "request_timeout");
    }
    if path.starts_with("/fn/") {
        add("404", "function_not_found");
        add("413", "payload_too_large");
        add("429", "no_resources, queue_full, too_many_requests");
        add("503", "at_concurrency, no_agents, queue_unavailable, shutting_down");
        add("504", "deadline_exceeded");
        add("500", "function_failed, internal");
    }
    if !public {
        add("401", "unauthorized");
        add("403", "forbidden");
        add("429", "too_many_requests");
    }
    add("500", "internal");
    for (status, response) in responses.iter_mut() {
        let RefOr::T(response) = response else { continue };
        if (status.starts_with('4') || status.starts_with('5')) && response.content.is_empty() {
            let example = error_example(&response.description);
            let content =
                ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).example(Some(example));
            response.content.insert("application/json".to_owned(), RefOr::T(content.build()));
        }
    }
}

/// Those of a request's bodies that are bytes.
fn bodies(body: &mut RefOr<RequestBody>) -> Vec<&mut Content> {
    let RefOr::T(body) = body else { return Vec::new() };
    let binary = |media: &str| matches!(media, "application/octet-stream" | "application/zip");
    let of_bytes = body.content.iter_mut().filter(|(media, _)| binary(media));
    of_bytes.filter_map(|(_, content)| if let RefOr::T(content) = content { Some(content) } else { None }).collect()
}

/// Such as `get_executions_id_why`: of its path and method, so that no two are the same.
fn operation_id(path: &str, method: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let slash = path.len() > 1 && path.ends_with('/');
    [method].into_iter().chain(words).chain(slash.then_some("slash")).collect::<Vec<_>>().join("_")
}

/// `codes` is a response's description: the codes that it may have, the first of which is shown.
fn error_example(codes: &str) -> Value {
    let known: BTreeMap<&str, ErrorCode> = ErrorCode::ALL.iter().map(|code| (code.as_str(), *code)).collect();
    let code = codes.split([',', ';']).find_map(|word| known.get(word.trim())).copied().unwrap_or(ErrorCode::Internal);
    json!({ "error": {
        "code": code.as_str(),
        "message": "What happened, and what to do about it.",
        "request_id": "req-4f6b1c0a9d2e8375",
        "details": {},
    } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_in_the_table_of_scopes() {
        let rules = Rules::new();
        let mut document = crate::http::routes::all().into_openapi();
        for (path, item) in &mut document.paths.paths {
            for (method, _) in operations(item) {
                assert!(rules.documented(method, path).is_some(), "{method} {path} is not in access.rs");
            }
        }
    }

    #[test]
    fn operation_ids_come_of_path_and_method() {
        assert_eq!(operation_id("/executions/{id}/why", "get"), "get_executions_id_why");
        assert_eq!(operation_id("/fn/{name}", "get"), "get_fn_name");
        assert_eq!(operation_id("/fn/{name}/", "get"), "get_fn_name_slash");
        assert_eq!(operation_id("/openapi.json", "get"), "get_openapi_json");
    }
}
