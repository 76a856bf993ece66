//! What an insert's body may have.

use serde_json::Value;

use super::answers::{Answer, has_type, refusal};

/// Fields of `Instance` and what is in it, as far as an insert of ours may name them.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "name",
            "machineType",
            "labels",
            "disks",
            "networkInterfaces",
            "metadata",
            "tags",
            "serviceAccounts",
            "scheduling",
        ],
    ),
    ("disks", &["boot", "autoDelete", "initializeParams"]),
    ("initializeParams", &["sourceImage", "labels", "diskSizeGb", "diskType"]),
    ("networkInterfaces", &["network", "subnetwork", "accessConfigs"]),
    ("accessConfigs", &["name", "type"]),
    ("metadata", &["items"]),
    ("tags", &["items"]),
    ("serviceAccounts", &["email", "scopes"]),
    ("scheduling", &["provisioningModel", "instanceTerminationAction", "onHostMaintenance", "automaticRestart"]),
];

pub(super) fn against(zone: &str, body: &Value) -> Option<Answer> {
    if let Some(field) = unknown("", body) {
        let message = format!("Invalid JSON payload received. Unknown name \"{field}\": Cannot find field.");
        return Some(refusal(400, "invalid", &message));
    }
    let invalid = |field: &str, value: &str, why: &str| {
        Some(refusal(400, "invalid", &format!("Invalid value for field 'resource.{field}': '{value}'. {why}")))
    };
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let name = text("/name");
    let of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !((1..=63).contains(&name.len()) && name.bytes().all(of_name) && name.as_bytes()[0].is_ascii_lowercase()) {
        return invalid("name", name, "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'");
    }
    let machine_type = text("/machineType");
    let Some(kind) = machine_type.strip_prefix(&format!("zones/{zone}/machineTypes/")) else {
        return invalid("machineType", machine_type, "The URL is malformed.");
    };
    if !has_type(zone, kind) {
        return invalid(
            "machineType",
            machine_type,
            &format!("Machine type with name '{kind}' does not exist in zone '{zone}'."),
        );
    }
    let image = text("/disks/0/initializeParams/sourceImage");
    if !image.starts_with("projects/debian-cloud/global/images/") || image.ends_with("no-such-image") {
        return Some(refusal(404, "notFound", &format!("The resource '{image}' was not found")));
    }
    for field in ["network", "subnetwork"] {
        let named = text(&format!("/networkInterfaces/0/{field}"));
        if named.ends_with("no-such-network") {
            return Some(refusal(404, "notFound", &format!("The resource 'projects/crew-1/{named}' was not found")));
        }
    }
    let labels = body["labels"].as_object().into_iter().flatten();
    for (key, value) in labels {
        let value = value.as_str().unwrap_or("?");
        let fits = |text: &str| text.len() <= 63 && text.bytes().all(|b| of_name(b) || b == b'_');
        if !(fits(key) && key.starts_with(|c: char| c.is_ascii_lowercase()) && fits(value)) {
            return invalid(
                "labels",
                "",
                &format!("Label key '{key}' or value '{value}' violates the format of labels."),
            );
        }
    }
    None
}

/// The first field that the reference does not have there.
fn unknown(of: &str, value: &Value) -> Option<String> {
    let (_, known) = FIELDS.iter().find(|(name, _)| *name == of)?;
    let objects = value.as_array().map_or_else(|| vec![value], |array| array.iter().collect());
    objects
        .into_iter()
        .filter_map(Value::as_object)
        .flatten()
        .find_map(|(key, value)| if known.contains(&key.as_str()) { unknown(key, value) } else { Some(key.clone()) })
}
