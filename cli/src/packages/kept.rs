//! Installed packages that are kept for the next deployment: `$XDG_CACHE_HOME/flux/packages/<digest>`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use flux_protocol::{Digest, limits};
use flux_runtime::config::env;
use tempfile::TempDir;

/// `None` for a user without a home.
fn root() -> Option<PathBuf> {
    let cache = env("XDG_CACHE_HOME")
        .map_or_else(|| env("HOME").map(|home| Path::new(&home).join(".cache")), |dir| Some(dir.into()))?;
    Some(cache.join("flux/packages"))
}

pub(super) fn find(key: &Digest) -> Option<PathBuf> {
    Some(root()?.join(key.hex())).filter(|path| path.is_dir())
}

/// A directory to install into, where what is in it can be kept by renaming it.
pub(super) fn fresh() -> io::Result<TempDir> {
    let builder = || tempfile::Builder::new().prefix(".new-").to_owned();
    match root() {
        Some(root) if fs::create_dir_all(&root).is_ok() => builder().tempdir_in(root),
        _ => builder().tempdir(),
    }
}

/// `None` where it cannot be kept.
pub(super) fn keep(key: &Digest, installed: &Path) -> Option<PathBuf> {
    let root = root()?;
    let path = root.join(key.hex());
    // Somebody else's of the same name is the same.
    if fs::rename(installed, &path).is_err() && !path.is_dir() {
        return None;
    }
    forget_oldest(&root, &path);
    Some(path)
}

fn forget_oldest(root: &Path, but: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    let mut there: Vec<_> = entries
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    there.sort();
    let most = limits::PACKAGES_KEPT;
    for (_, path) in there.iter().take(there.len().saturating_sub(most)).filter(|(_, path)| path != but) {
        let _ = fs::remove_dir_all(path);
    }
}
