//! The configuration file, whole: one `flux.yaml` serves `flux up`, `flux-gateway` and `flux-agent`; each reads
//! the sections that it needs. Times are in seconds unless the name says otherwise.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};

use crate::telemetry::LogFormat;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where `flux up` keeps everything: database, queue, code.
    pub data_dir: Option<PathBuf>,
    /// CA, certificates and keys; `/etc/flux/certs` unless it is set, under `flux up` in `data_dir`.
    pub certs_dir: Option<PathBuf>,
    /// The queue is talked to without certificates: for private networks. Whoever reaches it can do everything.
    pub disable_mtls: bool,
    /// `host:port` of a Redis, where `store.url` is not set: as files of the system that Flux succeeds have it.
    pub redis_addr: Option<String>,
    pub log: LogSettings,
    pub queue: QueueSettings,
    pub store: StoreSettings,
    pub artifacts: ArtifactSettings,
    pub gateway: GatewaySettings,
    pub agent: AgentSettings,
    pub autoscaler: crate::autoscaler_settings::AutoscalerSettings,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,flux_agent=debug`.
    pub level: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: "info".to_owned() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSettings {
    /// `nats://host:port`; several separated by commas. Under `flux up`: where the supervised server listens.
    pub url: String,
    /// The `nats-server` program of `flux up`: on `PATH` or in `.tools/bin` unless it is named.
    pub nats_server: Option<PathBuf>,
    /// Names and addresses under which the queue and the gateway are reached, for their certificates: besides this machine's own.
    pub names: Vec<String>,
    /// Where the gateway that has the CA writes the server's `accounts`, and the file with the server's pid, which is told to
    /// read them again. `flux up` sets both; unset, `flux pki export-nats-conf` prints them.
    pub accounts_file: Option<PathBuf>,
    pub server_pid_file: Option<PathBuf>,
    /// Copies of each stream in a NATS cluster.
    pub replicas: u8,
    pub durability: Durability,
}

/// What an invocation that was accepted survives, in the queue and in the store alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The death of every process (`kill -9`): what is answered has been handed to the kernel, which writes it to the
    /// disk within moments. A power cut may lose the last of them.
    #[default]
    Process,
    /// A power cut too: what is answered has been synced to the disk.
    Fsync,
}

impl Durability {
    /// Every value, as it is written.
    pub const NAMES: [&str; 2] = [Self::Process.as_str(), Self::Fsync.as_str()];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Fsync => "fsync",
        }
    }
}

impl Settings {
    /// Sets `store.url` where it is not: from `redis_addr`, or else to `default`.
    pub fn store_url_or(&mut self, default: impl FnOnce() -> String) {
        let redis = self.redis_addr.as_ref().map(|address| format!("redis://{address}"));
        self.store.url.get_or_insert_with(|| redis.unwrap_or_else(default));
    }

    /// Where certificates are.
    pub fn certs_dir(&self) -> PathBuf {
        self.certs_dir.clone().unwrap_or_else(|| PathBuf::from("/etc/flux/certs"))
    }
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            nats_server: None,
            names: Vec::new(),
            accounts_file: None,
            server_pid_file: None,
            replicas: 1,
            durability: Durability::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// `sqlite:///path/flux.db`, `postgres://…` or `redis://…` (docs/stores.md); under `flux up` a file in `data_dir` unless it
    /// is set.
    pub url: Option<String>,
    /// How long terminal executions are kept, in hours.
    pub history_hours: u64,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self { url: None, history_hours: flux_protocol::limits::HISTORY.as_secs() / 3600 }
    }
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ArtifactSettings {
    /// Folder of the gateway's own copy of every code archive; `<data_dir>/artifacts` unless it is set.
    pub dir: Option<PathBuf>,
    /// `s3://bucket/prefix`: a bucket instead of a folder, which several gateways share. The rest here is about it.
    pub url: Option<String>,
    /// Where it is, if not at AWS: `https://minio:9000`.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// What is not set here is looked for where AWS's own tools do: their environment, a role's token, the machine's profile.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    /// The bucket's name is in the path instead of the host's name: true where there is an `endpoint`, unless it is set.
    pub path_style: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewaySettings {
    pub listen: String,
    /// The admin key. `/health`, `/ready` and `/agents` need none.
    pub api_key: Option<String>,
    /// Sync calls held at once.
    pub max_in_flight: usize,
    pub drain_timeout: u64,
    /// A function without work for this long is cooled.
    pub cool_after: u64,
    /// Pools that agents may join; `default` is always there.
    pub pools: Vec<String>,
    /// Requests a second of each key or token that has no number of its own; none is without limit. `api_key` has none.
    pub requests_per_second: Option<u32>,
    /// The file of the keys that secrets are encrypted with; `secrets.key` in the data directory unless it is set. Made when
    /// the first secret is. Gateways of one store need the same.
    pub secrets_key: Option<PathBuf>,
    /// Origins whose pages may ask from a browser; `"*"` is any. None gives no browser leave. One need not be a list: a predecessor's file
    /// says `"*"`.
    #[serde(deserialize_with = "one_or_many")]
    pub cors: Vec<String>,
    /// HTTPS instead of HTTP: `auto`, or a certificate's files.
    pub tls: Option<TlsSettings>,
    /// Whose tokens (JWT) are taken beside API keys.
    pub jwt: Vec<IssuerSettings>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an origin, such as \"https://app.example.org\" or \"*\", or a list of them")]
    enum Given {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Given::deserialize(deserializer)? {
        Given::One(one) => vec![one],
        Given::Many(many) => many,
    })
}

/// `auto`, or `{ cert, key }`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TlsSettings {
    Files(TlsFiles),
    /// By the gateway's certificate of Flux's own CA, for the names in `queue.names` and this machine's own.
    Own(OwnCertificate),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnCertificate {
    Auto,
}

/// By hand: an enum of either kind would say of a wrong field that nothing matched, and not which.
impl<'de> Deserialize<'de> for TlsSettings {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = TlsSettings;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`auto`, or `cert` and `key`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TlsSettings, E> {
                match text {
                    "auto" => Ok(TlsSettings::Own(OwnCertificate::Auto)),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<TlsSettings, A::Error> {
                TlsFiles::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(TlsSettings::Files)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsFiles {
    /// A PEM file with the certificate, and those between it and its CA behind it. Read again when it changes.
    pub cert: PathBuf,
    /// A PEM file with its private key.
    pub key: PathBuf,
}

/// Somebody who issues tokens. Tokens must name it (`iss`), the audience (`aud`) and when they end (`exp`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IssuerSettings {
    pub issuer: String,
    pub audience: String,
    /// Where its public keys are; each must say its algorithm. `https`, or `http` on loopback.
    pub jwks_url: Option<String>,
    /// Keys that are known here.
    pub keys: Vec<IssuerKey>,
    /// The claim that says what its bearer may do: text with spaces between, or a list.
    pub scopes_claim: Option<String>,
    /// From what stands in that claim to scopes. Without it the claim has scopes themselves.
    pub scopes: std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IssuerKey {
    /// As `kid` in a token's header. One key without an id serves tokens without one.
    pub id: Option<String>,
    /// `HS256`, `RS256` or `ES256`.
    pub algorithm: String,
    /// RS256, ES256: the public key as PEM. HS256: the secret, of 32 bytes at least.
    pub file: PathBuf,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7227".to_owned(),
            api_key: None,
            max_in_flight: flux_protocol::limits::GATEWAY_IN_FLIGHT,
            drain_timeout: flux_protocol::limits::DRAIN.as_secs(),
            cool_after: flux_protocol::limits::COOL_AFTER.as_secs(),
            pools: Vec::new(),
            requests_per_second: None,
            secrets_key: None,
            cors: Vec::new(),
            tls: None,
            jwt: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSettings {
    /// Kept in `<work_dir>/agent-id` unless it is set.
    pub id: Option<String>,
    pub pool: String,
    /// Unpacked code, temporary files.
    pub work_dir: Option<PathBuf>,
    /// Executions at once; 16 for each core unless it is set.
    pub tasks: Option<u32>,
    /// CPU budget in millicores; all cores, four times over, unless it is set: most executions wait more than they compute.
    pub cpu: Option<u32>,
    /// Memory budget in MB; 80 % of the machine unless it is set.
    pub memory: Option<u32>,
    /// Attempts that may be lost with their agents before an execution fails; 0 forbids any.
    pub max_losses: u32,
    pub drain_timeout: u64,
    /// The user that functions run as, where the agent was started as root.
    pub runner_user: String,
    /// Run nothing that a layer of isolation, missing on this machine, does not hold in.
    pub isolation_required: bool,
    /// Unpacked code kept on disk, in MB; what was not used longest goes first.
    pub code_cache_mb: u64,
    pub container: ContainerSettings,
    pub microvm: MicrovmSettings,
    /// Where it tells a gateway who it is and how its machine does, such as `0.0.0.0:50052`; nowhere unless it is set.
    pub probe: Option<String>,
}

/// Functions with `isolation: microvm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MicrovmSettings {
    /// The folder that `flux microvm build` made: kernel, initramfs and root file system. Without it there are none.
    pub image: Option<PathBuf>,
    /// Firecracker, and its jailer, which is used where Flux is root.
    pub firecracker: PathBuf,
    pub jailer: PathBuf,
}

impl Default for MicrovmSettings {
    fn default() -> Self {
        Self { image: None, firecracker: "/usr/local/bin/firecracker".into(), jailer: "/usr/local/bin/jailer".into() }
    }
}

/// Functions with `isolation: container`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerSettings {
    /// `false`: none, whether Docker is there or not.
    pub enabled: bool,
    /// Docker's socket. Who starts the agent needs access to it; the agent itself drops it.
    pub socket: PathBuf,
    pub pull: Pull,
}

impl Default for ContainerSettings {
    fn default() -> Self {
        Self { enabled: true, socket: PathBuf::from("/var/run/docker.sock"), pull: Pull::default() }
    }
}

/// What to do for an image that is not on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// Pull it.
    #[default]
    Missing,
    /// Fail, saying so.
    Never,
}

impl Default for AgentSettings {
    fn default() -> Self {
        Self {
            id: None,
            pool: "default".to_owned(),
            work_dir: None,
            tasks: None,
            cpu: None,
            memory: None,
            max_losses: flux_protocol::limits::LOSSES,
            drain_timeout: flux_protocol::limits::DRAIN.as_secs(),
            runner_user: "flux-runner".to_owned(),
            isolation_required: false,
            code_cache_mb: 4096,
            container: ContainerSettings::default(),
            microvm: MicrovmSettings::default(),
            probe: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_of_the_predecessor_s_files_is_the_store_unless_another_is_named() {
        let url = |redis: Option<&str>, store: Option<&str>| {
            let mut settings = Settings { redis_addr: redis.map(str::to_owned), ..Settings::default() };
            settings.store.url = store.map(str::to_owned);
            settings.store_url_or(|| "sqlite:///d/flux.db".to_owned());
            settings.store.url.expect("it is set")
        };
        assert_eq!(url(None, None), "sqlite:///d/flux.db");
        assert_eq!(url(Some("10.0.0.5:6379"), None), "redis://10.0.0.5:6379");
        assert_eq!(url(Some("10.0.0.5:6379"), Some("postgres://h/d")), "postgres://h/d");
    }
}
