//! EC2's real client against moto's server, which keeps instances, and against a stand-in that refuses as EC2 does.
//!
//! No cloud is ever asked: the endpoint is always given, and so are the keys.

mod moto;
mod refusals;

use flux_provider_aws::{AwsSettings, StaticKeys};

/// An account that nobody has, at this endpoint.
fn settings(endpoint_url: &str) -> AwsSettings {
    let keys =
        StaticKeys { access_key_id: "AKIATEST".to_owned(), secret_access_key: "none".to_owned(), session_token: None };
    AwsSettings {
        region: "eu-central-1".to_owned(),
        ami: "ami-0000000000000000f".to_owned(),
        keys: Some(keys),
        endpoint_url: Some(endpoint_url.to_owned()),
        ..AwsSettings::default()
    }
}
