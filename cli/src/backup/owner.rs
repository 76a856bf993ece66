//! Root works as whom a directory belongs to: what it wrote there that user could not read, and what that user put there might
//! lead root elsewhere.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Uid, setegid, seteuid, setgroups};

use crate::error::CliError;

/// Does it as the owner of `path`, or of the nearest directory above it that is there.
pub(super) fn as_owner_of<T>(path: &Path, work: impl FnOnce() -> Result<T, CliError>) -> Result<T, CliError> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = absolute.ancestors().find_map(|above| Some((above, fs::symlink_metadata(above).ok()?)));
    let Some((above, meta)) = found.filter(|(_, meta)| Uid::effective().is_root() && meta.uid() != 0) else {
        return work();
    };
    let above: PathBuf = above.to_owned();
    let failed = |error: nix::Error| {
        CliError::local(format!("the owner of {} cannot be become", above.display()), io::Error::from(error))
    };
    let become_owner = || {
        setgroups(&[])?;
        setegid(Gid::from_raw(meta.gid()))?;
        seteuid(Uid::from_raw(meta.uid()))
    };
    become_owner().map_err(failed)?;
    let done = work();
    let back = || {
        seteuid(Uid::from_raw(0))?;
        setegid(Gid::from_raw(0))
    };
    back().map_err(failed)?;
    done
}
