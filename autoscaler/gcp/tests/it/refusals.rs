//! What Google refuses, at once or in an operation, and a Google that does not answer.

use axum::http::Method;
use flux_provider::{Advice, ErrorKind, Provider as _, ProviderError};
use serde_json::{Value, json};

use crate::{
    Google,
    compute::{Answer, Trouble, refusal},
    request,
};

/// What an operation that failed has beyond another one.
pub(crate) fn operation_error(code: &str, message: &str) -> Value {
    let link = json!({ "description": "Troubleshooting documentation", "url": "https://cloud.google.com/compute/docs/resource-error" });
    let local = json!({ "locale": "en-US", "message": message });
    let (status, text) = if code == "QUOTA_EXCEEDED" { (403, "FORBIDDEN") } else { (503, "SERVICE UNAVAILABLE") };
    json!({
        "httpErrorStatusCode": status, "httpErrorMessage": text,
        "error": { "errors": [{
            "code": code, "message": message,
            "errorDetails": [{ "help": { "links": [link] } }, { "localizedMessage": local }],
        }] },
    })
}

async fn launch(google: &Google) -> ProviderError {
    google.provider("here").await.launch(&request("here-1")).await.expect_err("it is refused")
}

fn holds(error: &ProviderError, kind: ErrorKind, words: &str) {
    let why = std::error::Error::source(error).expect("Google's words").to_string();
    assert_eq!(error.kind(), kind, "{error:?}");
    assert!(why.contains(words), "{words}: {why}");
}

#[tokio::test]
async fn what_is_refused_at_once_is_told_apart() {
    let quota = "Quota 'CPUS' exceeded. Limit: 24.0 in region europe-west3.";
    let rate = "Quota exceeded for quota group 'default' and limit 'Queries per 100 seconds' of service 'compute.googleapis.com'";
    let permission =
        "Required 'compute.instances.create' permission for 'projects/crew-1/zones/europe-west3-a/instances/here-1'";
    let disabled = Answer(
        403,
        json!({ "error": {
            "code": 403, "message": "Compute Engine API has not been used in project 1 before or it is disabled.",
            "errors": [{ "message": "…", "domain": "usageLimits", "reason": "accessNotConfigured" }], "status": "PERMISSION_DENIED",
            "details": [{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "SERVICE_DISABLED", "domain": "googleapis.com",
                "metadata": { "service": "compute.googleapis.com", "consumer": "projects/1" },
            }],
        } }),
    );
    for (answer, kind, words) in [
        (refusal(403, "quotaExceeded", quota), ErrorKind::Quota, quota),
        (refusal(403, "rateLimitExceeded", rate), ErrorKind::Throttled, rate),
        (refusal(429, "somethingNew", "slower"), ErrorKind::Throttled, "slower"),
        (refusal(403, "forbidden", permission), ErrorKind::Credentials, permission),
        (refusal(401, "authError", "Invalid Credentials"), ErrorKind::Credentials, "Invalid Credentials"),
        (disabled, ErrorKind::Credentials, "SERVICE_DISABLED"),
        (refusal(503, "backendError", "Internal error"), ErrorKind::Unavailable, "backendError"),
        (Answer(500, json!("not in Google's form")), ErrorKind::Unavailable, "500"),
        (
            refusal(400, "invalid", "Invalid value for field 'resource.labels': ''."),
            ErrorKind::Invalid,
            "resource.labels",
        ),
    ] {
        let google = Google::start().await;
        google.compute.world(|world| world.trouble(Method::POST, "/instances", Trouble::Answer(answer)));
        let error = launch(&google).await;
        holds(&error, kind, words);
        assert_eq!(google.compute.inserts().len(), 1, "the client does not ask again by itself");
    }
}

#[tokio::test]
async fn what_an_operation_comes_to_is_told_apart_and_leaves_nothing() {
    let zone = "The zone 'projects/crew-1/zones/europe-west3-a' does not have enough resources available to fulfill the request.";
    for (code, message, kind, advice) in [
        (
            "QUOTA_EXCEEDED",
            "Quota 'CPUS' exceeded.  Limit: 24.0 in region europe-west3.",
            ErrorKind::Quota,
            Advice::NextTypeOrZone,
        ),
        ("ZONE_RESOURCE_POOL_EXHAUSTED", zone, ErrorKind::Capacity, Advice::NextTypeOrZone),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", zone, ErrorKind::Capacity, Advice::NextTypeOrZone),
        ("RESOURCE_OPERATION_RATE_EXCEEDED", "Operation rate exceeded", ErrorKind::Throttled, Advice::Again),
        ("PERMISSIONS_ERROR", "Required 'compute.subnetworks.use' permission", ErrorKind::Credentials, Advice::Change),
        (
            "INTERNAL_ERROR",
            "Internal error. Please try again or contact Google Support.",
            ErrorKind::Unavailable,
            Advice::Again,
        ),
    ] {
        let google = Google::start().await;
        google.compute.world(|world| {
            world.operations_take = 1;
            world.inserts_fail = vec![operation_error(code, message)];
        });
        let error = launch(&google).await;
        holds(&error, kind, code);
        assert_eq!(error.advice(), advice, "{code}");
        assert_eq!(google.compute.world(|world| world.alive()), [""; 0], "{code}");
    }
}

#[tokio::test]
async fn what_is_not_there_names_the_setting() {
    for (field, change) in [
        (
            "project",
            (|settings: &mut flux_provider_gcp::GcpSettings| settings.project = "crew-2".to_owned())
                as fn(&mut flux_provider_gcp::GcpSettings),
        ),
        ("zones", |settings| settings.zones = vec!["europe-west3-z".to_owned()]),
        ("image", |settings| settings.image = Some("no-such-image".to_owned())),
        ("image_family", |settings| settings.image_family = Some("no-such-image".to_owned())),
        ("network", |settings| settings.network = Some("no-such-network".to_owned())),
        ("subnetwork", |settings| settings.subnetwork = Some("no-such-network".to_owned())),
    ] {
        let google = Google::start().await;
        let mut settings = google.settings();
        change(&mut settings);
        let error = google.provider_with("here", settings).await.launch(&request("here-1")).await.expect_err(field);
        let ProviderError::Invalid { field: named, .. } = error else { panic!("{field}: {error:?}") };
        assert_eq!(named, field);
    }
}

#[tokio::test]
async fn that_an_operation_cannot_be_looked_at_says_nothing_about_the_machine() {
    let google = Google::start().await;
    let refused = || Trouble::Answer(refusal(403, "forbidden", "Required 'compute.zoneOperations.get' permission"));
    google.compute.world(|world| world.trouble(Method::GET, "/operations/", refused()));
    // It is looked at itself, and there.
    let node = google.provider("here").await.launch(&request("here-1")).await.expect("launched");
    assert_eq!(node.id.as_str(), "europe-west3-a/here-1");
    // Nor can it be looked at: then it is out of reach, and not refused.
    google.compute.world(|world| {
        world.trouble(Method::GET, "/operations/", refused());
        for zone in crate::compute::ZONES {
            let path: &'static str =
                if zone.ends_with('a') { "europe-west3-a/instances/here-2" } else { "europe-west3-b/instances/here-2" };
            world.trouble(Method::GET, path, Trouble::Answer(refusal(404, "notFound", "not there yet")));
        }
        world.trouble(Method::GET, "/instances/here-2", refused());
    });
    let error = google.provider("here").await.launch(&request("here-2")).await.expect_err("out of reach");
    assert!(!error.kind().bought_nothing(), "{error:?}");
    assert!(google.compute.world(|world| world.alive()).contains(&"europe-west3-a/here-2".to_owned()));
}

#[tokio::test]
async fn no_answer_says_nothing_about_what_was_bought() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    google.compute.world(|world| world.trouble(Method::POST, "/instances", Trouble::Silence));
    let error = provider.launch(&request("here-1")).await.expect_err("no answer");
    assert!(!error.kind().bought_nothing(), "{error:?}");
    // Nobody listens.
    let mut settings = google.settings();
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    settings.endpoint_url = Some(format!("http://{port}"));
    let error =
        google.provider_with("here", settings).await.launch(&request("here-1")).await.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn how_long_to_wait_is_taken_from_google() {
    let google = Google::start().await;
    google.compute.world(|world| world.retry_after = Some(7));
    google.compute.world(|world| {
        world.trouble(Method::POST, "/instances", Trouble::Answer(refusal(429, "rateLimitExceeded", "slower")));
    });
    let ProviderError::Throttled { retry_after, .. } = launch(&google).await else { panic!("throttled") };
    assert_eq!(retry_after.map(|wait| wait.as_secs()), Some(7));
}

#[tokio::test]
async fn a_key_file_that_is_none_is_named() {
    let google = Google::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    for (content, words) in [
        (None, "No such file"),
        (Some("{"), "EOF"),
        (Some(r#"{"type": "authorized_user"}"#), "GOOGLE_APPLICATION_CREDENTIALS"),
        (Some(r#"{"type": "service_account", "client_email": "a@b"}"#), "missing field"),
    ] {
        let path = dir.path().join("key.json");
        if let Some(content) = content {
            std::fs::write(&path, content).expect("written");
        }
        let mut settings = google.settings();
        settings.key_file = Some(path);
        let connected = flux_provider_gcp::GcpProvider::connect(settings, crate::name("here")).await;
        let error = connected.expect_err("it is no key");
        assert!(matches!(error, ProviderError::Invalid { field: "key_file", .. }), "{error:?}");
        holds(&error, ErrorKind::Invalid, words);
    }
}
