//! Answers in the forms of the reference.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{PROJECT, ZONES};

/// A status and a body.
#[derive(Debug, Clone)]
pub(crate) struct Answer(pub(crate) u16, pub(crate) Value);

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        (StatusCode::from_u16(self.0).expect("a status"), Json(self.1)).into_response()
    }
}

/// `{"error": {"errors": [{"domain", "reason", "message"}], "code", "message"}}`.
pub(crate) fn refusal(status: u16, reason: &str, message: &str) -> Answer {
    let item = json!({ "message": message, "domain": "global", "reason": reason });
    Answer(status, json!({ "error": { "code": status, "message": message, "errors": [item] } }))
}

pub(super) fn not_found(path: &str) -> Answer {
    refusal(404, "notFound", &format!("The resource 'projects/{PROJECT}/{path}' was not found"))
}

pub(super) fn url(path: &str) -> String {
    format!("https://www.googleapis.com/compute/v1/projects/{PROJECT}/{path}")
}

/// Types, and where they are: vCPUs and MB.
const TYPES: [(&str, &[&str], i32, i32); 3] =
    [("e2-small", &ZONES, 2, 2048), ("e2-standard-4", &ZONES, 4, 16384), ("c4-standard-8", &[ZONES[1]], 8, 30720)];

pub(super) fn has_type(zone: &str, name: &str) -> bool {
    TYPES.iter().any(|(known, zones, ..)| *known == name && zones.contains(&zone))
}

pub(super) fn machine_type(zone: &str, name: &str) -> Answer {
    match TYPES.iter().find(|(known, zones, ..)| *known == name && zones.contains(&zone)) {
        None => not_found(&format!("zones/{zone}/machineTypes/{name}")),
        Some((_, _, cpus, memory)) => Answer(
            200,
            json!({
                "kind": "compute#machineType", "id": "334002", "creationTimestamp": "1969-12-31T16:00:00.000-08:00", "name": name,
                "guestCpus": cpus, "memoryMb": memory, "imageSpaceGb": 0, "maximumPersistentDisks": 16,
                "maximumPersistentDisksSizeGb": "3072", "zone": zone, "isSharedCpu": false, "architecture": "X86_64",
                "selfLink": url(&format!("zones/{zone}/machineTypes/{name}")),
            }),
        ),
    }
}

/// An operation that is `RUNNING`, or `DONE` with or without `error`.
pub(super) fn operation(
    zone: &str,
    name: &str,
    kind: &str,
    target: &str,
    status: &str,
    failed: Option<&Value>,
) -> Answer {
    let mut operation = json!({
        "kind": "compute#operation", "id": "4170000000000000001", "name": name, "zone": url(&format!("zones/{zone}")),
        "operationType": kind, "targetLink": url(&format!("zones/{zone}/instances/{target}")), "targetId": "4170000000000000002",
        "status": status, "user": "autoscaler@crew-1.iam.gserviceaccount.com", "progress": if status == "DONE" { 100 } else { 0 },
        "insertTime": "2026-11-30T11:42:22.006-08:00", "startTime": "2026-11-30T11:42:22.007-08:00",
        "selfLink": url(&format!("zones/{zone}/operations/{name}")),
    });
    if status == "DONE" {
        operation["endTime"] = "2026-11-30T11:42:29.294-08:00".into();
        for (key, value) in failed.and_then(Value::as_object).into_iter().flatten() {
            operation[key] = value.clone();
        }
    }
    Answer(200, operation)
}
