//! What is configured.

use std::{collections::BTreeMap, fmt};

use flux_provider::{InvalidId, Zone};
use serde::{Deserialize, Serialize};

/// `aws:` of the autoscaler's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AwsSettings {
    pub region: String,
    /// The image's id; a Debian with cloud-init.
    pub ami: String,
    /// Where nodes may be launched, the preferred first. None is the default subnet of the account's default network.
    pub subnets: Vec<String>,
    /// Ids. They must let the autoscaler in at port 22.
    pub security_groups: Vec<String>,
    /// By its name at EC2: whose private key the autoscaler sets nodes up with.
    pub key_pair: Option<String>,
    /// The IAM instance profile's name: what the node itself may do at AWS. None is nothing.
    pub instance_profile: Option<String>,
    /// Every node is a spot instance, whatever the launch asks for.
    pub spot: bool,
    /// On every node.
    pub tags: BTreeMap<String, String>,
    /// Instead of AWS's standard chain: environment, profile, web identity, container, instance.
    pub keys: Option<StaticKeys>,
    /// Instead of AWS's own endpoint of the region.
    pub endpoint_url: Option<String>,
}

/// Keys of an IAM user or session.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StaticKeys {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

impl fmt::Debug for StaticKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticKeys").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl AwsSettings {
    /// # Errors
    /// A setting that is missing or cannot be right, by its name, and what to write.
    pub fn check(&self) -> Result<(), String> {
        if self.region.is_empty() {
            return Err("`region` is missing: where machines are launched, such as eu-central-1".to_owned());
        }
        if !self.ami.starts_with("ami-") {
            let found = if self.ami.is_empty() { "is missing" } else { "is no image's id" };
            return Err(format!("`ami` {found}: ami-… of a Debian with cloud-init in `{}`", self.region));
        }
        if self.keys.as_ref().is_some_and(|keys| keys.access_key_id.is_empty() || keys.secret_access_key.is_empty()) {
            return Err(
                "`keys` needs `access_key_id` and `secret_access_key`; without `keys` it is AWS's standard chain"
                    .to_owned(),
            );
        }
        self.zones().map(|_| ()).map_err(|error| format!("`subnets` or `region`: {error}"))
    }

    /// The zones that these settings make.
    ///
    /// # Errors
    /// A subnet or the region is no name.
    pub fn zones(&self) -> Result<Vec<Zone>, InvalidId> {
        if self.subnets.is_empty() {
            return Ok(vec![Zone::parse(&self.region)?]);
        }
        self.subnets.iter().map(|subnet| Zone::parse(subnet)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let keys = StaticKeys { secret_access_key: "hush".to_owned(), ..StaticKeys::default() };
        assert!(!format!("{:?}", AwsSettings { keys: Some(keys), ..AwsSettings::default() }).contains("hush"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut settings = AwsSettings::default();
        assert!(settings.check().expect_err("no region").contains("`region`"));
        settings.region = "eu-central-1".to_owned();
        assert!(settings.check().expect_err("no image").contains("`ami` is missing"));
        settings.ami = "debian-12".to_owned();
        assert!(settings.check().expect_err("no id").contains("`ami` is no image's id"));
        settings.ami = "ami-0123".to_owned();
        settings.check().expect("all that is needed");
        settings.keys = Some(StaticKeys { access_key_id: "AKIA".to_owned(), ..StaticKeys::default() });
        assert!(settings.check().expect_err("half a key").contains("`secret_access_key`"));
    }

    #[test]
    fn a_zone_is_a_subnet_or_else_the_region() {
        let mut settings = AwsSettings { region: "eu-central-1".to_owned(), ..AwsSettings::default() };
        let zones =
            |settings: &AwsSettings| settings.zones().expect("zones").iter().map(Zone::to_string).collect::<Vec<_>>();
        assert_eq!(zones(&settings), ["eu-central-1"]);
        settings.subnets = vec!["subnet-b".to_owned(), "subnet-a".to_owned()];
        assert_eq!(zones(&settings), ["subnet-b", "subnet-a"]);
    }
}
