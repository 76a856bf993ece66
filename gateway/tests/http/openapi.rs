use std::collections::BTreeSet;

use flux_protocol::ErrorCode;
use reqwest::Method;
use serde_json::Value;

use crate::flux::{Flux, KEY};

fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    paths
        .iter()
        .flat_map(|(path, item)| {
            let item = item.as_object().expect("a path item");
            item.iter().map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
        })
        .collect()
}

/// A changed list is a decision.
#[test]
fn these_are_the_operations() {
    let document = flux_gateway::http::openapi();
    let mut listed: Vec<String> = operations(&document)
        .into_iter()
        .filter(|(_, path, _)| !path.starts_with("/fn/"))
        .map(|(method, path, _)| format!("{method} {path}"))
        .collect();
    listed.sort();
    let expected = [
        "DELETE /agents/{id}",
        "DELETE /dlq/{function}",
        "DELETE /dlq/{function}/{seq}",
        "DELETE /executions/{id}",
        "DELETE /functions/{name}",
        "DELETE /keys/{id}",
        "DELETE /nodes",
        "DELETE /secrets/{name}",
        "GET /agents",
        "GET /audit",
        "GET /autoscaler",
        "GET /dlq",
        "GET /dlq/{function}",
        "GET /dlq/{function}/{seq}",
        "GET /docs",
        "GET /executions",
        "GET /executions/{id}",
        "GET /executions/{id}/stream",
        "GET /executions/{id}/why",
        "GET /functions",
        "GET /functions/{name}",
        "GET /health",
        "GET /keys",
        "GET /metrics",
        "GET /openapi.json",
        "GET /ready",
        "GET /resources",
        "GET /secrets",
        "GET /secrets/{name}",
        "POST /admin/gc",
        "POST /agents/join",
        "POST /agents/register",
        "POST /agents/tokens",
        "POST /agents/{id}/cordon",
        "POST /agents/{id}/uncordon",
        "POST /dlq/{function}/redrive",
        "POST /dlq/{function}/{seq}/redrive",
        "POST /execute/{name}",
        "POST /execute/{name}/async",
        "POST /functions/{name}/rollback",
        "POST /initialize",
        "POST /keys",
        "POST /keys/{id}/rotate",
        "POST /secrets-key/rotate",
        "POST /tickets",
        "PUT /deploy/{name}",
        "PUT /functions",
        "PUT /secrets/{name}",
    ];
    assert_eq!(listed, expected);
    let any = operations(&document).into_iter().filter(|(_, path, _)| path == "/fn/{name}/{path}").count();
    assert_eq!(any, 8, "a function's URL takes any method");
}

#[test]
fn the_document_holds_together() {
    let document = flux_gateway::http::openapi();
    assert!(document["openapi"].as_str().expect("text").starts_with("3.1"), "{}", document["openapi"]);
    let codes: Vec<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(document["components"]["schemas"]["ErrorCode"]["enum"], serde_json::json!(codes));

    let mut references = BTreeSet::new();
    collect_references(&document, &mut references);
    for reference in &references {
        let pointer = reference.strip_prefix('#').expect("a reference within the document");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let schemas = document["components"]["schemas"].as_object().expect("schemas");
    for name in schemas.keys() {
        assert!(references.contains(&format!("#/components/schemas/{name}")), "nothing uses {name}");
    }

    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let at = format!("{method} {path}");
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{at} has no id"));
        assert!(ids.insert(id.to_owned()), "{id} twice");
        assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{at} says nothing");
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let named: BTreeSet<_> =
            parameters.iter().filter(|p| p["in"] == "path").map(|p| p["name"].as_str().expect("text")).collect();
        let held: BTreeSet<_> = path.split(['{', '}']).skip(1).step_by(2).collect();
        assert_eq!(named, held, "{at}: its path's parameters");
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let bodiless = response["content"].as_object().is_none_or(serde_json::Map::is_empty);
            assert!(!bodiless || path.starts_with("/fn/"), "{at} {status} has no body");
            if status.starts_with('4')
                && response["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/ErrorBody"
            {
                let example = &response["content"]["application/json"]["example"]["error"]["code"];
                let code = ErrorCode::ALL
                    .iter()
                    .find(|code| code.as_str() == example.as_str().expect("text"))
                    .expect("a code");
                assert_eq!(code.http_status().to_string(), *status, "{at}: the example of {status}");
            }
        }
    }
}

fn collect_references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                into.insert(reference.clone());
            }
            fields.values().for_each(|value| collect_references(value, into));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_references(value, into)),
        _ => {}
    }
}

#[tokio::test]
async fn what_is_documented_is_served() {
    let flux = Flux::start().await;
    let document = flux.api.get("/openapi.json").await.expect(200).json;
    assert_eq!(document, flux_gateway::http::openapi());
    for (method, path, operation) in operations(&document) {
        let filled = path.replace("{seq}", "1").replace("{id}", "exc-01890000-0000-7000-8000-000000000000");
        let filled = filled.replace("{path}", "a/b").replace("{name}", "nobody").replace("{function}", "nobody");
        let method: Method = method.parse().expect("a method");
        let reply = flux_testkit::Api::try_send(flux.api.request(method.clone(), &filled)).await.expect("an answer");
        let code = reply.json["error"]["code"].as_str().unwrap_or_default();
        assert!(
            !["route_not_found", "method_not_allowed", "internal"].contains(&code),
            "{method} {path}: {}",
            reply.text()
        );
        if method != Method::HEAD {
            assert!(
                operation["responses"].get(reply.status.to_string()).is_some(),
                "{method} {path} does not say {}",
                reply.status
            );
        }
        let open = operation["security"] == serde_json::json!([{}]);
        let stranger = flux_testkit::Api::try_send(flux.api.with_key("").request(method.clone(), &filled))
            .await
            .expect("an answer");
        assert_eq!(stranger.status == 401, !open, "{method} {path}: whether it needs a key");
    }
}

/// The fields of `flux.yaml` are described by hand: as the protocol reads and writes them.
#[test]
fn a_functions_fields_are_those_that_the_protocol_knows() {
    let document = flux_gateway::http::openapi();
    let described = |name: &str| -> BTreeSet<String> {
        document["components"]["schemas"][name]["properties"].as_object().expect("fields").keys().cloned().collect()
    };
    let yaml = "name: x\nhandler: run.x\nruntime: python\nkeep_warm: 5\nfresh: true\ntimeout: 1\nmax_concurrency: 2\nstop_grace: 1s\npool: p\nenv: {A: b}\nsecrets: [S]\nredact: false\n";
    let written = |yaml: &str| {
        let spec = flux_protocol::function::parse_yaml(yaml).expect("valid");
        serde_json::to_value(spec).expect("JSON")
    };
    let (written, container) = (written(yaml), written("name: x\nisolation: container\nimage: tool\ncommand: [tool]"));
    let fields = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    let all: BTreeSet<String> = fields(&written).union(&fields(&container)).cloned().collect();
    assert_eq!(described("FunctionConfig"), all);
    assert_eq!(described("ResourcesConfig"), fields(&written["resources"]));
    assert_eq!(described("RetryConfig"), fields(&written["retry"]));
}

#[tokio::test]
async fn the_page_is_whole_and_runs_under_its_own_policy() {
    let flux = Flux::start().await;
    let page = flux.api.with_key("").get("/docs").await.expect(200);
    let (html, policy) = (page.text(), page.header("content-security-policy").to_owned());
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'sha256-"), "{policy}");
    assert_eq!((html.matches("<script").count(), html.matches("<style").count()), (1, 1));
    for elsewhere in ["src=\"http", "href=\"http", "@import", "url(http", " style=\"", " onclick=\""] {
        assert!(!html.contains(elsewhere), "{elsewhere}");
    }
    assert!(!html.contains(KEY));
}

#[tokio::test]
async fn requests_are_measured_by_route() {
    let flux = Flux::start().await;
    flux.api.get("/functions/nobody").await.expect(404);
    let metrics = flux.api.get("/metrics").await.expect(200);
    assert!(metrics.header("content-type").starts_with("text/plain; version=0.0.4"));
    let text = metrics.text();
    assert!(text.contains("flux_http_requests_total{route=\"/functions/{name}\",status=\"4xx\"}"), "{text}");
    assert!(text.contains("flux_http_request_seconds_bucket"), "{text}");
    assert!(text.contains("flux_http_connections"), "{text}");
}
