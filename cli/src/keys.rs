//! Where the API key of a gateway on this machine is remembered: `$XDG_CONFIG_HOME/flux/keys/<host>_<port>`, one file
//! per address, so that the key of one Flux is never sent to another.
//!
//! Beside it, in `cas`, is who signed the certificate of a gateway that has one of Flux's own CA.
//!
//! `flux up` writes it; every other command reads it, unless `--key` or `FLUX_KEY` gives one.

use std::{
    fs::Permissions,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use flux_runtime::config::env;

/// The mode of a file for its owner alone.
pub(crate) const SECRET: u32 = 0o600;

/// The file for the gateway at `authority` (`host:port`), if there is a home to keep it in.
pub(crate) fn path(authority: &str) -> Option<PathBuf> {
    below("flux/keys", authority)
}

/// The file with the CA of the gateway at `authority`.
pub(crate) fn ca_path(authority: &str) -> Option<PathBuf> {
    below("flux/cas", authority)
}

fn below(dir: &str, authority: &str) -> Option<PathBuf> {
    let config = env("XDG_CONFIG_HOME")
        .map_or_else(|| env("HOME").map(|home| Path::new(&home).join(".config")), |dir| Some(dir.into()))?;
    Some(config.join(dir).join(file_name(authority)))
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
    write_at(path(authority), key)
}

/// Remembers who signs the gateway's certificates. Returns where.
pub(crate) fn write_ca(authority: &str, pem: &str) -> std::io::Result<Option<PathBuf>> {
    write_at(ca_path(authority), pem.trim_end())
}

fn write_at(path: Option<PathBuf>, text: &str) -> std::io::Result<Option<PathBuf>> {
    let Some(path) = path else { return Ok(None) };
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    write_secret(&path, text)?;
    Ok(Some(path))
}

/// Writes a file that nobody else can read, whole or not at all.
pub(crate) fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    replace(path, &format!("{text}\n"), SECRET, None)
}

/// Puts a new file in the place of whatever has that name, whole or not at all. It is made under a name that nobody
/// can foresee and must not be there yet; a link is replaced, never followed.
pub(crate) fn replace(path: &Path, text: &str, mode: u32, group: Option<u32>) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut fresh = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    fresh.write_all(text.as_bytes())?;
    if group.is_some() {
        fchown(fresh.as_file(), None, group)?;
    }
    fresh.as_file().set_permissions(Permissions::from_mode(mode))?;
    fresh.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::{file_name, write_secret};

    #[test]
    fn a_secret_takes_the_place_of_a_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let (target, secret) = (dir.path().join("target"), dir.path().join("secret"));
        fs::write(&target, "kept").expect("a file");
        symlink(&target, &secret).expect("a link");
        write_secret(&secret, "hidden").expect("written");
        assert_eq!(fs::read_to_string(&target).expect("a file"), "kept");
        assert_eq!(fs::read_to_string(&secret).expect("a file"), "hidden\n");
        let meta = fs::symlink_metadata(&secret).expect("it is there");
        assert!(meta.is_file());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 2, "nothing else is left");
    }

    #[test]
    fn this_machine_has_one_name() {
        for authority in ["127.0.0.1:7227", "localhost:7227", "0.0.0.0:7227", "[::1]:7227"] {
            assert_eq!(file_name(authority), "127.0.0.1_7227");
        }
        assert_eq!(file_name("flux.example.org:443"), "flux.example.org_443");
        assert_eq!(file_name("../../x:1"), ".._.._x_1");
    }
}
