//! Keys, tickets, and the audit log.

use flux_protocol::{Scope, Timestamp};
use flux_store::{ApiKeyRecord, AuditEntry};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time;

/// A key, without what opens anything.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct KeyBody {
    #[schema(example = "3f9a1c0b77e2")]
    id: String,
    name: String,
    #[schema(value_type = Vec<String>, example = json!(["invoke:img-*", "read"]))]
    scopes: Vec<Scope>,
    #[schema(format = DateTime)]
    created_at: String,
    /// Who made it, as the audit log names them.
    created_by: String,
    #[schema(format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    rotated_at: Option<String>,
    /// Until when the key before the last rotation works.
    #[schema(format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_until: Option<String>,
    #[schema(format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// Some seconds behind.
    #[schema(format = DateTime)]
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requests_per_second: Option<u32>,
}

/// A key that was made or rotated: its text is told this once.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct NewKeyBody {
    /// What opens: keep it. Nobody can tell it again.
    #[schema(example = "flux_3f9a1c0b77e2_…")]
    key: String,
    #[serde(flatten)]
    about: KeyBody,
}

impl NewKeyBody {
    pub(in crate::http) fn new(record: ApiKeyRecord, key: String) -> Self {
        Self { key, about: record.into() }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct KeysBody {
    pub(in crate::http) keys: Vec<KeyBody>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RevokedBody {
    #[schema(example = "revoked")]
    pub(in crate::http) status: &'static str,
    pub(in crate::http) id: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct CreateKeyRequest {
    /// What you call it: who or what uses it.
    pub(in crate::http) name: String,
    /// Of `admin`, `deploy`, `read` and `invoke:<function>`, in which `*` stands for any characters.
    pub(in crate::http) scopes: Vec<String>,
    /// Such as `30d`; without it the key lasts until it is revoked.
    #[schema(example = "90d")]
    pub(in crate::http) expires_in: Option<String>,
    /// Requests a second; without it as `gateway.requests_per_second` says.
    pub(in crate::http) requests_per_second: Option<u32>,
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(in crate::http) struct RotateKeyRequest {
    /// How long the old key still works: 24 h unless it is said, 30 days at most, `0s` for not at all.
    #[schema(example = "1h")]
    pub(in crate::http) overlap: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TicketBody {
    ticket: String,
    #[schema(format = DateTime)]
    expires_at: String,
}

impl TicketBody {
    pub(in crate::http) fn new(ticket: String, expires_at: Timestamp) -> Self {
        Self { ticket, expires_at: time(expires_at) }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AuditBody {
    pub(in crate::http) entries: Vec<AuditEntryBody>,
    /// To be sent as `cursor` for what came before; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::http) next_cursor: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct AuditEntryBody {
    #[schema(format = DateTime)]
    at: String,
    #[schema(example = "key 3f9a1c0b77e2 (ci)")]
    who: String,
    /// The other end of the connection: a proxy, if there is one in front.
    #[schema(example = "10.0.0.7:51424")]
    from: String,
    #[schema(example = "PUT")]
    method: String,
    #[schema(example = "/deploy/resize")]
    path: String,
    status: u16,
    request_id: String,
    /// What it came to, or the code of the refusal.
    #[schema(example = "version 3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<String>,
}

impl From<ApiKeyRecord> for KeyBody {
    fn from(record: ApiKeyRecord) -> Self {
        Self {
            id: record.id.to_string(),
            name: record.name,
            scopes: record.scopes.iter().cloned().collect(),
            created_at: time(record.created_at),
            created_by: record.created_by,
            rotated_at: record.rotated_at.map(time),
            previous_until: record.previous.map(|previous| time(previous.until)),
            expires_at: record.expires_at.map(time),
            last_used_at: record.last_used_at.map(time),
            requests_per_second: record.requests_per_second,
        }
    }
}

impl From<AuditEntry> for AuditEntryBody {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { at, who, from, method, path, status, request_id, what } = entry;
        Self { at: time(at), who, from, method, path, status, request_id, what }
    }
}
