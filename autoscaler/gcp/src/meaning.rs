//! What Google's errors mean to the autoscaler.
//!
//! A request is refused with `error.errors[].reason` (`quotaExceeded`), by newer services also with `error.details[].reason`
//! (`RATE_LIMIT_EXCEEDED`); an operation that failed has `error.errors[].code` (`QUOTA_EXCEEDED`). From
//! <https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation>,
//! <https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-resource-availability>, and
//! <https://cloud.google.com/compute/docs/api/rate-limits>. What is not known there is judged by its status: the client's
//! fault is a setting's, everything else passes.

use std::time::Duration;

use flux_provider::ProviderError;

/// Google refused something, or did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Refusal {
    /// Reasons and codes, in whatever spelling.
    pub(crate) reasons: Vec<String>,
    pub(crate) message: String,
    /// 0 where there is none.
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
}

const CAPACITY: &[&str] = &[
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    "resource_availability",
    "insufficientCapacity",
    // No address is free in the subnetwork.
    "IP_SPACE_EXHAUSTED",
    "IP_SPACE_EXHAUSTED_WITH_DETAILS",
];
const QUOTA: &[&str] = &["quotaExceeded", "QUOTA_EXCEEDED", "limitExceeded", "LIMIT_EXCEEDED"];
const CREDENTIALS: &[&str] = &[
    "required",
    "authError",
    "forbidden",
    "insufficientPermissions",
    "accessNotConfigured",
    "accountDisabled",
    "PERMISSIONS_ERROR",
    "IAM_PERMISSION_DENIED",
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
    "ACCESS_TOKEN_EXPIRED",
    "SERVICE_DISABLED",
    "BILLING_DISABLED",
    "CONSUMER_INVALID",
];
const THROTTLED: &[&str] = &[
    "rateLimitExceeded",
    "userRateLimitExceeded",
    "concurrentLimitExceeded",
    "RATE_LIMIT_EXCEEDED",
    "RESOURCE_OPERATION_RATE_EXCEEDED",
];
const CONFLICT: &[&str] = &["alreadyExists", "RESOURCE_ALREADY_EXISTS"];
/// Something else is being done to the same thing.
const BUSY: &[&str] = &[
    "resourceNotReady",
    "RESOURCE_NOT_READY",
    "resourceInUseByAnotherResource",
    "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
    "operationInProgress",
];
const PASSES: &[&str] = &["backendError", "internalError", "INTERNAL_ERROR"];
/// What messages name, and the setting that is meant; the first counts. A message quotes the field (`resource.machineType`) or
/// the path of what is not there (`projects/p/global/networks/n`).
const FIELDS: &[(&str, &str)] = &[
    ("machinetype", "node_types"),
    ("machine type", "node_types"),
    ("/images/family/", "image_family"),
    ("sourceimage", "image"),
    ("/images/", "image"),
    ("disktype", "disk_type"),
    ("disksizegb", "disk_gb"),
    ("disk size", "disk_gb"),
    ("subnetwork", "subnetwork"),
    ("externalipaccess", "internal_only"),
    ("network", "network"),
    ("scopes", "scopes"),
    ("serviceaccount", "service_account"),
    ("service account", "service_account"),
    ("resource.labels", "tags"),
    ("resource.tags", "network_tags"),
    ("ssh-keys", "ssh_public_key"),
    ("resource.metadata", "user_data"),
    ("zone", "zones"),
    ("project", "project"),
];

impl Refusal {
    fn has(&self, of: &[&str]) -> bool {
        self.reasons.iter().any(|reason| of.contains(&reason.as_str()))
    }

    /// What is asked for is there already.
    pub(crate) fn is_conflict(&self) -> bool {
        self.has(CONFLICT)
    }

    /// Something else is being done to it.
    pub(crate) fn is_busy(&self) -> bool {
        self.has(BUSY)
    }

    pub(crate) fn into_error(self, attempted: &str) -> ProviderError {
        let reasons = self.reasons.join(", ");
        let source = if reasons.is_empty() { self.message.clone() } else { format!("{reasons}: {}", self.message) };
        if self.has(CAPACITY) {
            ProviderError::capacity(attempted, source)
        } else if self.has(QUOTA) && !self.has(THROTTLED) {
            ProviderError::quota(attempted, source)
        } else if self.has(THROTTLED) || self.status == 429 {
            let retry_after = self.retry_after;
            ProviderError::Throttled { attempted: attempted.to_owned(), retry_after, source: source.into() }
        } else if self.has(CREDENTIALS) {
            ProviderError::credentials(attempted, source)
        } else if self.is_conflict() || self.is_busy() || self.has(PASSES) {
            ProviderError::unavailable(attempted, source)
        } else {
            match self.status {
                401 | 403 => ProviderError::credentials(attempted, source),
                400..500 if !matches!(self.status, 408 | 409) => {
                    ProviderError::invalid(self.field(), attempted, source)
                }
                _ => ProviderError::unavailable(attempted, source),
            }
        }
    }

    /// The setting that Google complains of.
    fn field(&self) -> &'static str {
        let message = self.message.to_ascii_lowercase();
        FIELDS.iter().find(|(name, _)| message.contains(name)).map_or("gcp", |(_, field)| field)
    }
}

#[cfg(test)]
mod tests {
    use flux_provider::ErrorKind;

    use super::*;

    fn error(reason: &str, message: &str, status: u16) -> ProviderError {
        let reasons = vec![reason.to_owned()];
        Refusal { reasons, message: message.to_owned(), status, retry_after: None }.into_error("launch a node")
    }

    #[test]
    fn reasons_are_told_apart_by_what_helps() {
        for (reason, status, kind) in [
            ("quotaExceeded", 403, ErrorKind::Quota),
            ("QUOTA_EXCEEDED", 403, ErrorKind::Quota),
            ("ZONE_RESOURCE_POOL_EXHAUSTED", 503, ErrorKind::Capacity),
            ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", 0, ErrorKind::Capacity),
            ("IP_SPACE_EXHAUSTED", 0, ErrorKind::Capacity),
            ("rateLimitExceeded", 403, ErrorKind::Throttled),
            ("RATE_LIMIT_EXCEEDED", 403, ErrorKind::Throttled),
            ("QUOTA_EXCEEDED", 429, ErrorKind::Quota),
            ("somethingNew", 429, ErrorKind::Throttled),
            ("forbidden", 403, ErrorKind::Credentials),
            ("required", 401, ErrorKind::Credentials),
            ("somethingNew", 403, ErrorKind::Credentials),
            ("alreadyExists", 409, ErrorKind::Unavailable),
            ("somethingNew", 409, ErrorKind::Unavailable),
            ("resourceNotReady", 400, ErrorKind::Unavailable),
            ("backendError", 503, ErrorKind::Unavailable),
            ("INTERNAL_ERROR", 0, ErrorKind::Unavailable),
            ("SOMETHING_NEW", 0, ErrorKind::Unavailable),
            ("somethingNew", 503, ErrorKind::Unavailable),
            ("conditionNotMet", 412, ErrorKind::Invalid),
            ("invalid", 400, ErrorKind::Invalid),
            ("notFound", 404, ErrorKind::Invalid),
        ] {
            assert_eq!(error(reason, "", status).kind(), kind, "{reason} {status}");
        }
    }

    #[test]
    fn an_invalid_request_names_the_setting() {
        for (message, expected) in [
            (
                "Invalid value for field 'resource.machineType': 'zones/us-east4-a/machineTypes/x'. Machine type with name 'x' does \
                 not exist in zone 'us-east4-a'.",
                "node_types",
            ),
            ("The resource 'projects/debian-cloud/global/images/family/debian-1' was not found", "image_family"),
            ("The resource 'projects/debian-cloud/global/images/debian-12-v1' was not found", "image"),
            ("The resource 'projects/p/global/networks/n' was not found", "network"),
            ("The resource 'projects/p/regions/r/subnetworks/s' was not found", "subnetwork"),
            ("Invalid value for field 'resource.disks[0].initializeParams.diskType': 'x'.", "disk_type"),
            ("Requested disk size cannot be smaller than the image size (10 GB)", "disk_gb"),
            ("The user does not have access to service account 'n@p'.", "service_account"),
            ("Constraint constraints/compute.vmExternalIpAccess violated for project 1.", "internal_only"),
            ("Invalid value for field 'resource.labels': ''.", "tags"),
            ("Invalid value for field 'zone': 'us-east1'. Unknown zone.", "zones"),
            ("The resource 'projects/p' was not found", "project"),
            ("something", "gcp"),
        ] {
            let ProviderError::Invalid { field, .. } = error("invalid", message, 400) else { panic!("{message}") };
            assert_eq!(field, expected, "{message}");
        }
    }
}
