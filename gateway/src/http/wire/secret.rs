//! Secrets, which have no values here.

use flux_store::SealedSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::time;

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SecretBody {
    #[schema(example = "DB_PASSWORD")]
    name: String,
    /// 1, 2, 3 … with each new value.
    version: u32,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(format = DateTime)]
    updated_at: String,
}

impl From<SealedSecret> for SecretBody {
    fn from(secret: SealedSecret) -> Self {
        Self {
            name: secret.name.to_string(),
            version: secret.version,
            created_at: time(secret.created_at),
            updated_at: time(secret.updated_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SecretsBody {
    pub(in crate::http) secrets: Vec<SecretBody>,
}

/// Its value is not shown by `Debug`: it has none.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct SecretRequest {
    /// UTF-8 without NUL, at most 64 KiB.
    pub(in crate::http) value: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SecretSetBody {
    #[schema(example = "set")]
    pub(in crate::http) status: &'static str,
    pub(in crate::http) name: String,
    pub(in crate::http) version: u32,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct RotatedBody {
    #[schema(example = "rotated")]
    pub(in crate::http) status: &'static str,
    /// How many secrets there are.
    pub(in crate::http) secrets: usize,
}
