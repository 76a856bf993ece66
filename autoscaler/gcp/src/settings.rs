//! What is configured.

use std::{collections::BTreeMap, path::PathBuf};

use flux_provider::{ProviderError, Zone, tag};
use serde::{Deserialize, Serialize};

use crate::labels;

/// `gcp:` of the autoscaler's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GcpSettings {
    /// The project's id.
    pub project: String,
    /// Where nodes may be launched, the preferred first.
    pub zones: Vec<String>,
    /// The image's name, in `image_project`. Not together with `image_family`.
    pub image: Option<String>,
    /// The newest image of it is taken. Without either it is `debian-12`.
    pub image_family: Option<String>,
    /// Whose image it is; `debian-cloud` unless set.
    pub image_project: Option<String>,
    /// A name, or the path of another project's (`projects/…/global/networks/…`). Without it and `subnetwork`, `default`. It
    /// must let the autoscaler in at port 22.
    pub network: Option<String>,
    /// The name that the subnetwork has in every region of `zones`, or a path (`projects/…/regions/…/subnetworks/…`).
    pub subnetwork: Option<String>,
    /// No address outside of the network: then nodes need another way out, and the autoscaler one in.
    pub internal_only: bool,
    /// What firewall rules go by.
    pub network_tags: Vec<String>,
    /// On every node and its disk.
    pub labels: BTreeMap<String, String>,
    /// Its email: what the node itself may do at Google. None is nothing.
    pub service_account: Option<String>,
    /// Of `service_account`; without any `https://www.googleapis.com/auth/cloud-platform`.
    pub scopes: Vec<String>,
    /// Every node is a spot machine, whatever the launch asks for.
    pub spot: bool,
    /// Without it as large as the image.
    pub disk_gb: Option<u32>,
    /// Without it Google's default for the type of machine.
    pub disk_type: Option<String>,
    /// Whom the autoscaler logs in as; `admin` unless set. Google's images make it, and let it be root.
    pub ssh_user: Option<String>,
    /// The autoscaler's public key, as a `.pub` file has it. Without it nobody is let in but by the image.
    pub ssh_public_key: Option<String>,
    /// A service account's key in JSON, instead of Google's application default credentials.
    pub key_file: Option<PathBuf>,
    /// Instead of `https://compute.googleapis.com`.
    pub endpoint_url: Option<String>,
}

/// Labels that one resource may have.
const LABELS: usize = 64;
/// `diskSizeGb` of a boot disk.
const DISK_GB: std::ops::RangeInclusive<u32> = 10..=65_536;
/// Root is not let in by Google's images; the others are those of Flux's packages, which must not become root.
const NOT_USERS: [&str; 3] = ["root", "flux", "flux-runner"];
pub(crate) const CONNECT: &str = "connect to Google Compute Engine";

impl GcpSettings {
    /// The zones that these settings make.
    ///
    /// # Errors
    /// None is named, or one that is no zone.
    pub fn zones(&self) -> Result<Vec<Zone>, ProviderError> {
        if self.zones.is_empty() {
            return refuse("zones", "none is named: add one, like `europe-west3-a`".to_owned());
        }
        let zone = |zone: &String| match region_of(zone).map(|_| Zone::parse(zone)) {
            Some(Ok(zone)) => Ok(zone),
            _ => refuse(
                "zones",
                format!("`{zone}` is no zone: name a region's zone by its letter, like `europe-west3-a`"),
            ),
        };
        self.zones.iter().map(zone).collect()
    }

    /// # Errors
    /// A setting cannot be; it says which, and what to write instead.
    pub fn validate(&self) -> Result<(), ProviderError> {
        let project = self.project.as_str();
        let of_project = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':');
        if project.is_empty() || !project.bytes().all(of_project) {
            return refuse(
                "project",
                format!("`{project}` is no id: write the PROJECT_ID that `gcloud projects list` shows"),
            );
        }
        self.zones()?;
        if self.image.is_some() && self.image_family.is_some() {
            return refuse("image", "`image_family` is set too: leave one of them out".to_owned());
        }
        for (field, name) in
            [("image", &self.image), ("image_family", &self.image_family), ("disk_type", &self.disk_type)]
        {
            if let Some(name) = name.as_ref().filter(|name| !labels::is_name(name)) {
                return refuse(field, format!("`{name}` is no name: leave out what stands before the last `/`"));
            }
        }
        for (field, name) in [("network", &self.network), ("subnetwork", &self.subnetwork)] {
            if let Some(name) = name.as_ref().filter(|name| !(labels::is_name(name) || name.starts_with("projects/"))) {
                return refuse(field, format!("`{name}` is neither a name nor a path that begins with `projects/`"));
            }
        }
        if let Some(name) = self.network_tags.iter().find(|name| !labels::is_name(name)) {
            return refuse("network_tags", format!("`{name}`: use 1 to 63 of a-z 0-9 -, a letter first and no - last"));
        }
        self.validate_region()?;
        self.validate_labels()?;
        self.validate_machine()
    }

    fn validate_region(&self) -> Result<(), ProviderError> {
        let path = self.subnetwork.as_deref().and_then(|path| path.split_once("/regions/"));
        let Some((_, rest)) = path else { return Ok(()) };
        let region = rest.split('/').next().unwrap_or_default();
        match self.zones.iter().find(|zone| region_of(zone) != Some(region)) {
            Some(zone) => refuse("subnetwork", format!("it is in `{region}`, and the zone `{zone}` is not")),
            None => Ok(()),
        }
    }

    fn validate_labels(&self) -> Result<(), ProviderError> {
        let ours = [tag::CLUSTER, tag::CLIENT_TOKEN, tag::POOL];
        if let Some(key) = ours.into_iter().find(|key| self.labels.contains_key(*key)) {
            return refuse("labels", format!("`{key}` is Flux's own: leave it out"));
        }
        if let Some(why) = self.labels.iter().find_map(|(key, value)| labels::against(key, value)) {
            return refuse("labels", why);
        }
        if self.labels.len() > LABELS - ours.len() {
            return refuse("labels", format!("there are more than {}", LABELS - ours.len()));
        }
        Ok(())
    }

    fn validate_machine(&self) -> Result<(), ProviderError> {
        if self.service_account.as_ref().is_some_and(|email| !email.contains('@')) {
            return refuse("service_account", "it is no email: write `…@….iam.gserviceaccount.com`".to_owned());
        }
        if self.service_account.is_none() && !self.scopes.is_empty() {
            return refuse(
                "scopes",
                "they are a service account's: set `service_account`, or leave them out".to_owned(),
            );
        }
        if let Some(scope) = self.scopes.iter().find(|scope| !scope.starts_with("https://")) {
            return refuse(
                "scopes",
                format!("`{scope}`: write it whole, like `https://www.googleapis.com/auth/cloud-platform`"),
            );
        }
        if let Some(size) = self.disk_gb.filter(|size| !DISK_GB.contains(size)) {
            return refuse("disk_gb", format!("{size} is not within {} and {}", DISK_GB.start(), DISK_GB.end()));
        }
        let of_user = |user: &str| {
            (1..=32).contains(&user.len())
                && user.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && user.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
        };
        let is_login = |user: &str| of_user(user) && !NOT_USERS.contains(&user);
        if let Some(user) = self.ssh_user.as_ref().filter(|user| !is_login(user)) {
            let not = NOT_USERS.join(", ");
            return refuse(
                "ssh_user",
                format!("`{user}`: use a user's name of 1 to 32 of a-z 0-9 _ -, and none of {not}"),
            );
        }
        let is_key = |key: &str| {
            let mut words = key.split_whitespace();
            let algorithm = words.next().unwrap_or_default();
            !key.trim_end().contains('\n')
                && (algorithm.starts_with("ssh-") || algorithm.starts_with("ecdsa-sha2-"))
                && words.next().is_some()
        };
        if self.ssh_public_key.as_ref().is_some_and(|key| !is_key(key)) {
            return refuse("ssh_public_key", "it is no public key: write the one line of the `.pub` file".to_owned());
        }
        let is_url = |url: &str| url.starts_with("https://") || url.starts_with("http://");
        if let Some(url) = self.endpoint_url.as_ref().filter(|url| !is_url(url)) {
            return refuse("endpoint_url", format!("`{url}` begins with neither `https://` nor `http://`"));
        }
        Ok(())
    }
}

fn refuse<T>(field: &'static str, remedy: String) -> Result<T, ProviderError> {
    Err(ProviderError::invalid(field, CONNECT, remedy))
}

/// `europe-west3` of `europe-west3-a`; `None` for what is no zone.
pub(crate) fn region_of(zone: &str) -> Option<&str> {
    let (region, letter) = zone.rsplit_once('-')?;
    let is_region = labels::is_name(region) && region.ends_with(|c: char| c.is_ascii_digit()) && region.contains('-');
    (is_region && letter.len() == 1 && letter.starts_with(|c: char| c.is_ascii_lowercase())).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> GcpSettings {
        GcpSettings {
            project: "crew-1".to_owned(),
            zones: vec!["europe-west3-a".to_owned(), "europe-west3-b".to_owned()],
            ..GcpSettings::default()
        }
    }

    #[test]
    fn a_project_and_a_zone_are_enough() {
        good().validate().expect("valid");
        let zones = good().zones().expect("zones");
        assert_eq!(zones.iter().map(Zone::as_str).collect::<Vec<_>>(), ["europe-west3-a", "europe-west3-b"]);
    }

    #[test]
    fn all_settings_can_be_set_at_once() {
        let mut all = good();
        all.image_family = Some("debian-13".to_owned());
        all.image_project = Some("debian-cloud".to_owned());
        all.network = Some("projects/host/global/networks/shared".to_owned());
        all.subnetwork = Some("projects/host/regions/europe-west3/subnetworks/nodes".to_owned());
        all.network_tags = vec!["flux".to_owned()];
        all.labels.insert("team".to_owned(), "crew".to_owned());
        all.service_account = Some("node@crew-1.iam.gserviceaccount.com".to_owned());
        all.scopes = vec!["https://www.googleapis.com/auth/devstorage.read_only".to_owned()];
        all.disk_gb = Some(20);
        all.disk_type = Some("pd-balanced".to_owned());
        all.ssh_user = Some("admin".to_owned());
        all.ssh_public_key = Some("ssh-ed25519 AAAA flux\n".to_owned());
        all.endpoint_url = Some("http://127.0.0.1:1".to_owned());
        all.validate().expect("valid");
    }

    #[test]
    fn what_cannot_be_names_its_field_and_says_what_to_write() {
        type Change = fn(&mut GcpSettings);
        for (field, remedy, change) in [
            ("project", "gcloud projects list", (|s| s.project.clear()) as Change),
            ("project", "PROJECT_ID", |s| s.project = "My Project".to_owned()),
            ("zones", "europe-west3-a", |s| s.zones.clear()),
            ("zones", "by its letter", |s| s.zones = vec!["europe-west3".to_owned()]),
            ("image", "leave one", |s| (s.image, s.image_family) = (Some("a".to_owned()), Some("b".to_owned()))),
            ("image_family", "before the last", |s| s.image_family = Some("debian-cloud/debian-12".to_owned())),
            ("network", "projects/", |s| s.network = Some("global/networks/default".to_owned())),
            ("subnetwork", "europe-west3-a", |s| {
                s.subnetwork = Some("projects/h/regions/us-east1/subnetworks/n".to_owned())
            }),
            ("network_tags", "a letter first", |s| s.network_tags = vec!["1".to_owned()]),
            ("labels", "a letter first", |s| _ = s.labels.insert("Team".to_owned(), "crew".to_owned())),
            ("labels", "leave it out", |s| _ = s.labels.insert("flux-cluster".to_owned(), "there".to_owned())),
            ("labels", "more than 61", |s| s.labels = (0..62).map(|n| (format!("l{n}"), String::new())).collect()),
            ("service_account", "gserviceaccount", |s| s.service_account = Some("node".to_owned())),
            ("scopes", "service_account", |s| s.scopes = vec!["https://www.googleapis.com/auth/compute".to_owned()]),
            ("scopes", "cloud-platform", |s| {
                (s.service_account, s.scopes) = (Some("n@p".to_owned()), vec!["compute".to_owned()]);
            }),
            ("disk_gb", "10", |s| s.disk_gb = Some(9)),
            ("ssh_user", "none of root", |s| s.ssh_user = Some("root".to_owned())),
            ("ssh_user", "flux-runner", |s| s.ssh_user = Some("flux".to_owned())),
            ("ssh_public_key", ".pub", |s| s.ssh_public_key = Some("flux:ssh-ed25519 AAAA".to_owned())),
            ("ssh_public_key", ".pub", |s| s.ssh_public_key = Some("ssh-ed25519 AAAA\nssh-rsa BBBB".to_owned())),
            ("endpoint_url", "http://", |s| s.endpoint_url = Some("localhost".to_owned())),
        ] {
            let mut settings = good();
            change(&mut settings);
            let error = settings.validate().expect_err(field);
            let why = std::error::Error::source(&error).expect("a reason").to_string();
            let ProviderError::Invalid { field: named, .. } = error else { panic!("{field}: {error:?}") };
            assert_eq!(named, field, "{why}");
            assert!(why.contains(remedy), "{field}: {why}");
        }
    }

    #[test]
    fn a_zone_has_its_region() {
        for (zone, region) in [
            ("europe-west3-a", Some("europe-west3")),
            ("europe-west3", None),
            ("europe-west3-", None),
            ("a", None),
            ("", None),
        ] {
            assert_eq!(region_of(zone), region, "{zone}");
        }
    }
}
