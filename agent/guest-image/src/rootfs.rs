//! The root file system: packages unpacked over each other, and the few files that their scripts would have made.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use flux_shim::guest::{CODE, USER};

use crate::{
    ImageError, ToolError, file,
    tool::{failed, run},
};

/// Nobody reads them in a guest.
const NOT_NEEDED: [&str; 5] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"];
/// Where a system has these, everything is in `/usr`.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Where a guest attaches something.
const PLACES: [&str; 6] = ["dev", "proc", "sys", "tmp", "run", "root"];

const BLOCK: u64 = 4096;

/// Makes the file system `to` of these packages, unpacked in `root`.
pub(crate) fn make(debs: &[PathBuf], root: &Path, to: &Path) -> Result<(), ImageError> {
    for name in MERGED {
        let real = root.join("usr").join(name);
        fs::create_dir_all(&real).map_err(file("a folder cannot be made", &real))?;
        let link = root.join(name);
        symlink(Path::new("usr").join(name), &link).map_err(file("a link cannot be made", &link))?;
    }
    for deb in debs {
        unpack(deb, root)?;
    }
    for name in NOT_NEEDED {
        let path = root.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(file("a folder cannot be removed", &path))?;
        }
    }
    for name in PLACES.into_iter().chain([CODE.trim_start_matches('/'), "etc"]) {
        let path = root.join(name);
        fs::create_dir_all(&path).map_err(file("a folder cannot be made", &path))?;
    }
    for (name, content) in [
        ("etc/passwd", format!("root:x:0:0:root:/root:/bin/sh\nfunction:x:{USER}:{USER}::/tmp:/bin/sh\n")),
        ("etc/group", format!("root:x:0:\nfunction:x:{USER}:\n")),
        ("etc/hosts", "127.0.0.1 localhost\n".to_owned()),
        ("etc/hostname", "function\n".to_owned()),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
    ] {
        let path = root.join(name);
        fs::write(&path, content).map_err(file("a file cannot be written", &path))?;
    }
    let (bytes, files) = size(root).map_err(file("the root file system cannot be read", root))?;
    // An inode takes 256 bytes of a table; some room for the file system's own.
    let blocks = (bytes + bytes / 16 + files * 256 + (4 << 20)) / BLOCK;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096", "-O", "^has_journal,^resize_inode"]);
    mke2fs.args(["-E", "root_owner=0:0", "-N", &(files + 64).to_string(), "-d"]);
    mke2fs.arg(root).arg(to).arg(blocks.to_string());
    run(&mut mke2fs, "e2fsprogs")?;
    Ok(())
}

/// `dpkg-deb --extract` would replace the links of a merged `/usr` by folders.
fn unpack(deb: &Path, root: &Path) -> Result<(), ImageError> {
    let mut list = Command::new("dpkg-deb");
    list.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped());
    let missing = |tool: &str, package, source| ToolError::Missing { tool: tool.to_owned(), package, source };
    let mut listing = list.spawn().map_err(|source| missing("dpkg-deb", "dpkg", source))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"]).arg(root);
    if let Some(stdout) = listing.stdout.take() {
        tar.stdin(stdout);
    }
    run(&mut tar, "tar")?;
    let ended = listing.wait().map_err(|source| missing("dpkg-deb", "dpkg", source))?;
    if ended.success() { Ok(()) } else { Err(failed(&list, b"").into()) }
}

/// Bytes in whole blocks, and the number of entries.
fn size(folder: &Path) -> std::io::Result<(u64, u64)> {
    let (mut bytes, mut files) = (BLOCK, 1);
    for entry in fs::read_dir(folder)? {
        let metadata = fs::symlink_metadata(entry?.path())?;
        bytes += metadata.size().next_multiple_of(BLOCK);
        files += 1;
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let (more_bytes, more_files) = size(&entry.path())?;
            (bytes, files) = (bytes + more_bytes, files + more_files);
        }
    }
    Ok((bytes, files))
}
