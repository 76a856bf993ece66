//! Where the API key of a gateway on this machine is remembered: `$XDG_CONFIG_HOME/flux/keys/<host>_<port>`, one file
//! per address, so that the key of one Flux is never sent to another.
//!
//! `flux up` writes it; every other command reads it, unless `--key` or `FLUX_KEY` gives one.

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use flux_runtime::config::env;

/// The file for the gateway at `authority` (`host:port`), if there is a home to keep it in.
pub(crate) fn path(authority: &str) -> Option<PathBuf> {
    let config = env("XDG_CONFIG_HOME")
        .map_or_else(|| env("HOME").map(|home| Path::new(&home).join(".config")), |dir| Some(dir.into()))?;
    Some(config.join("flux/keys").join(file_name(authority)))
}

/// Every way of writing this machine is one name.
fn file_name(authority: &str) -> String {
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "80"));
    let host = match host {
        "localhost" | "0.0.0.0" | "[::]" | "[::1]" => "127.0.0.1",
        other => other,
    };
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '_' };
    format!("{}_{port}", host.chars().map(safe).collect::<String>())
}

pub(crate) fn read(authority: &str) -> Option<String> {
    let text = std::fs::read_to_string(path(authority)?).ok()?;
    Some(text.trim().to_owned()).filter(|key| !key.is_empty())
}

/// Remembers the key, readable by its owner alone. Returns where.
pub(crate) fn write(authority: &str, key: &str) -> std::io::Result<Option<PathBuf>> {
    let Some(path) = path(authority) else { return Ok(None) };
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    write_secret(&path, key)?;
    Ok(Some(path))
}

/// Writes a file that nobody else can read, whole or not at all.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn this_machine_has_one_name() {
        for authority in ["127.0.0.1:7227", "localhost:7227", "0.0.0.0:7227", "[::1]:7227"] {
            assert_eq!(file_name(authority), "127.0.0.1_7227");
        }
        assert_eq!(file_name("flux.example.org:443"), "flux.example.org_443");
        assert_eq!(file_name("../../x:1"), ".._.._x_1");
    }
}
