//! Configuration: a YAML file, then environment variables over it, then what the command line says.
//!
//! Unknown fields are errors that name the field and the nearest known one. The environment is read
//! here and nowhere else: `FLUX_` and the field's path with `__` for each level, such as
//! `FLUX_AGENT__TASKS=8`. Without a file named on the command line it is `./flux.yaml`, or else
//! `/etc/flux/flux.yaml`, if there is one.

use std::path::{Path, PathBuf};

use figment::{Figment, providers::Serialized};
use serde::{Serialize, de::DeserializeOwned};

use crate::former;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the configuration file {path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration file {path} is not valid YAML: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("configuration: {message}")]
    Field { message: String },
}

/// Largest configuration file.
const FILE_BYTES: u64 = 1024 * 1024;

/// Loads `T`: its defaults, then `file`, then `FLUX_…` of the environment, then `overrides`.
///
/// `T` must name its fields completely when serialized with its defaults, and refuse unknown ones
/// (`#[serde(deny_unknown_fields, default)]`).
///
/// # Errors
/// The file cannot be read, is no YAML, or a field is unknown or of the wrong kind.
pub fn load<T>(file: Option<&Path>, overrides: serde_json::Value) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Serialize + Default,
{
    let mut figment = Figment::from(Serialized::defaults(T::default()));
    if let Some(path) = file {
        figment = figment.merge(Serialized::defaults(read_yaml(path)?));
    }
    figment = figment.merge(
        figment::providers::Env::prefixed("FLUX_").filter(|key| !RESERVED.iter().any(|name| key == *name)).split("__"),
    );
    figment = figment.merge(Serialized::defaults(overrides));
    figment.extract().map_err(|error| ConfigError::Field { message: explain(&error) })
}

/// Variables that begin with `FLUX_` and are no configuration fields: the CLI's, and what passes between processes.
const RESERVED: &[&str] = &[
    "url",
    "key",
    "ca",
    "tree_fd",
    "nats_server",
    "launcher",
    "config",
    "ci",
    "bin_dir",
    "node_private_ip",
    "node_public_ip",
];

/// The file of everybody on this machine.
const SYSTEM_FILE: &str = "/etc/flux/flux.yaml";
const LOCAL_FILE: &str = "flux.yaml";

/// The configuration file: the one that was named, or the first that is found.
///
/// # Errors
/// One that is there cannot be read.
pub fn file(named: Option<&Path>) -> Result<Option<PathBuf>, ConfigError> {
    match named {
        Some(path) => Ok(Some(path.to_owned())),
        None => find(Path::new("."), Path::new(SYSTEM_FILE)),
    }
}

fn find(here: &Path, system: &Path) -> Result<Option<PathBuf>, ConfigError> {
    let local = here.join(LOCAL_FILE);
    if local.is_file() && is_trusted(&local) && !is_of_a_function(&local)? {
        return Ok(Some(local));
    }
    Ok(system.is_file().then(|| system.to_owned()))
}

/// Nobody else can have put it there: it decides what runs, and root may have been led into somebody's directory.
fn is_trusted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let owner = |path: &Path| std::fs::metadata(path).map(|meta| meta.uid()).ok();
    owner(path).is_some_and(|uid| uid == 0 || Some(uid) == owner(Path::new("/proc/self")))
}

/// Functions have a `flux.yaml` too, in their own directories, and a `name` in it.
fn is_of_a_function(path: &Path) -> Result<bool, ConfigError> {
    Ok(read_yaml(path)?.get("name").is_some())
}

fn read_yaml(path: &Path) -> Result<serde_json::Value, ConfigError> {
    let read = || -> std::io::Result<String> {
        let size = std::fs::metadata(path)?.len();
        if size > FILE_BYTES {
            return Err(std::io::Error::other(format!("it has {size} bytes; at most {FILE_BYTES} are read")));
        }
        std::fs::read_to_string(path)
    };
    let text = read().map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    if text.trim().is_empty() {
        return Ok(serde_json::Value::Object(serde_json::Map::new()));
    }
    let options = serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), message: error.to_string() })
}

fn explain(error: &figment::Error) -> String {
    use figment::error::Kind;
    let at = |name: &str| {
        let mut path: Vec<String> = error.path.clone();
        if path.last().is_none_or(|last| last != name) {
            path.push(name.to_owned());
        }
        path.join(".")
    };
    match &error.kind {
        Kind::UnknownField(field, _) if former::instead_of(&at(field)).is_some() => format!(
            "`{}` is a field of the predecessor; write {}",
            at(field),
            former::instead_of(&at(field)).unwrap_or_default()
        ),
        Kind::UnknownField(field, known) => match flux_protocol::suggest::nearest(field, known.iter().copied()) {
            Some(near) => format!("`{}` is not a field; did you mean `{near}`?", at(field)),
            None => format!("`{}` is not a field; the fields here are: {}", at(field), known.join(", ")),
        },
        Kind::UnknownVariant(value, known) => {
            format!("`{}`: `{value}` is not one of: {}", error.path.join("."), known.join(", "))
        }
        Kind::MissingField(field) => format!("`{}` is missing", at(field)),
        _ => format!("`{}`: {}", error.path.join("."), error.kind),
    }
}

/// An environment variable that is no configuration field, such as `PATH`.
#[allow(clippy::disallowed_methods)] // the one room in which the environment is read
pub fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Every environment variable whose name begins so, such as `AWS_`: for those whose names are somebody else's.
#[allow(clippy::disallowed_methods)] // as above
pub fn env_of(prefix: &str) -> Vec<(String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).filter(|(name, value)| name.starts_with(prefix) && !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    fn refused(yaml: &str) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("flux.yaml");
        std::fs::write(&file, yaml).expect("written");
        // Without the environment, which is not this test's.
        let figment = Figment::from(Serialized::defaults(Settings::default()));
        let figment = figment.merge(Serialized::defaults(read_yaml(&file).expect("YAML")));
        explain(&figment.extract::<Settings>().expect_err(yaml))
    }

    #[test]
    fn fields_of_the_predecessor_say_what_to_write_instead() {
        for (yaml, instead) in [
            ("disable_grpc_tls: true\n", "`disable_mtls: true`"),
            ("agent_redis_url: redis://x\n", "queue: { url:"),
            ("agent_port: 50052\n", "agent: { probe:"),
            ("tls: { enabled: true }\n", "gateway: { tls:"),
            ("cors: \"*\"\n", "gateway: { cors: [\"*\"] }"),
            ("gateway: { tls: { enabled: true, cert: a, key: b } }\n", "`gateway.tls` is off"),
        ] {
            let told = refused(yaml);
            assert!(told.contains("of the predecessor") && told.contains(instead), "{yaml}: {told}");
        }
        assert!(refused("gateway: { liste: x }\n").contains("did you mean `listen`"));
    }

    #[test]
    fn the_star_of_a_predecessor_s_file_lets_every_page_ask() {
        let read = |yaml: &str| {
            let dir = tempfile::tempdir().expect("a directory");
            let file = dir.path().join("flux.yaml");
            std::fs::write(&file, yaml).expect("written");
            let figment = Figment::from(Serialized::defaults(Settings::default()));
            let settings = figment.merge(Serialized::defaults(read_yaml(&file).expect("YAML"))).extract::<Settings>();
            settings.expect("settings").gateway.cors
        };
        assert_eq!(read("gateway: { cors: \"*\" }\n"), ["*"]);
        assert_eq!(read("gateway: { cors: [\"https://a.example\", \"https://b.example\"] }\n").len(), 2);
        assert_eq!(read("log: { level: info }\n"), [""; 0]);
        let told = refused("gateway: { cors: 7 }\n");
        assert!(told.contains("gateway.cors") && told.contains("or a list of them"), "{told}");
    }

    #[test]
    fn a_file_is_found_here_and_else_in_etc() {
        let dir = tempfile::tempdir().expect("a directory");
        let (here, system) = (dir.path().join("here"), dir.path().join("system.yaml"));
        std::fs::create_dir(&here).expect("a directory");
        assert_eq!(find(&here, &system).expect("none"), None);
        std::fs::write(&system, "log: { level: info }\n").expect("written");
        assert_eq!(find(&here, &system).expect("that of /etc"), Some(system.clone()));
        std::fs::write(here.join("flux.yaml"), "log: { level: debug }\n").expect("written");
        assert_eq!(find(&here, &system).expect("that of here"), Some(here.join("flux.yaml")));
        // That of a function.
        std::fs::write(here.join("flux.yaml"), "name: greet\nhandler: greet.sh\n").expect("written");
        assert_eq!(find(&here, &system).expect("that of /etc"), Some(system));
        std::fs::write(here.join("flux.yaml"), "log: [\n").expect("written");
        find(&here, dir.path()).expect_err("what cannot be read is not passed over");
    }
}
