//! Google's client, made of settings.

use std::{path::Path, time::Duration};

use flux_provider::ProviderError;
use google_cloud_auth::credentials::{self, Credentials, service_account};
use google_cloud_gax::{
    client_builder::{self, ClientBuilder},
    retry_policy::NeverRetry,
};

use crate::{GcpSettings, settings::CONNECT};

/// One request.
const REQUEST: Duration = Duration::from_secs(15);
const SCOPE: &str = "https://www.googleapis.com/auth/compute";

pub(crate) async fn credentials(settings: &GcpSettings) -> Result<Credentials, ProviderError> {
    match &settings.key_file {
        Some(path) => of_key_file(path).await,
        None => {
            let built = credentials::Builder::default().with_scopes([SCOPE]).build();
            built.map_err(|error| ProviderError::credentials(CONNECT, error))
        }
    }
}

pub(crate) fn unusable(settings: &GcpSettings, error: client_builder::Error) -> ProviderError {
    match settings.endpoint_url {
        Some(_) => ProviderError::invalid("endpoint_url", CONNECT, error),
        None => ProviderError::unavailable(CONNECT, error),
    }
}

async fn of_key_file(path: &Path) -> Result<Credentials, ProviderError> {
    let invalid = |why: String| ProviderError::invalid("key_file", CONNECT, format!("{}: {why}", path.display()));
    let text = tokio::fs::read(path).await.map_err(|error| invalid(error.to_string()))?;
    let key: serde_json::Value = serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    if key.get("type").and_then(serde_json::Value::as_str) != Some("service_account") {
        let why = "it is no service account's key; for other credentials leave `key_file` out and set GOOGLE_APPLICATION_CREDENTIALS";
        return Err(invalid(why.to_owned()));
    }
    let of_compute = service_account::AccessSpecifier::from_scopes([SCOPE]);
    let built = service_account::Builder::new(key).with_access_specifier(of_compute).build();
    built.map_err(|error| invalid(error.to_string()))
}

pub(crate) fn configured<F>(
    builder: ClientBuilder<F, Credentials>,
    settings: &GcpSettings,
    credentials: &Credentials,
) -> ClientBuilder<F, Credentials> {
    // The caller repeats, with its own pauses and to the next type or zone.
    let builder =
        builder.with_credentials(credentials.clone()).with_retry_policy(NeverRetry).with_attempt_timeout(REQUEST);
    match &settings.endpoint_url {
        Some(url) => builder.with_endpoint(url),
        None => builder,
    }
}
