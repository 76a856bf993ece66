//! What a function sees of the machine: an allow-list, built as a list of steps for the holder.
//!
//! A list of what is *hidden* would forget the next thing that somebody mounts; so the new root is an empty tmpfs, and
//! what is not named here does not exist in it: `/run` with its sockets, `/root`, `/home`, `/sys`, `/opt`, `/srv`.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::seen::{DEVICES, ETC, ETC_NESTED, SYSTEM};
use crate::config::{LauncherConfig, Runner};
use crate::sys::holder::Step;

/// Where a function finds its code.
pub(crate) const CODE_DIR: &str = "/var/task";

const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// Device nodes must work, so the mounts of single devices have no `nodev`.
const DEVICE: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;

/// Makes the steps for new slots.
#[derive(Debug)]
pub(crate) struct RootView {
    root: PathBuf,
    common: Vec<Step>,
}

impl RootView {
    /// Looks at the machine once; slots made later see the same list.
    pub(crate) fn survey(config: &LauncherConfig) -> io::Result<Self> {
        let root = config.work_dir.join("root");
        fs::create_dir_all(&root)?;
        let mut list = Steps { root: root.clone(), steps: Vec::new() };
        list.mount("flux", "", Some("tmpfs"), libc::MS_NOSUID | libc::MS_NODEV, Some("size=1m,mode=0755"));
        for name in SYSTEM {
            list.link_or_bind(&Path::new("/").join(name))?;
        }
        for (name, mode) in [("etc", 0o755), ("dev", 0o755), ("proc", 0o555), ("var", 0o755), ("tmp", 0o777)] {
            list.directory(name, mode);
        }
        list.directory("var/task", 0o755);
        list.symlink("/tmp", "var/tmp");
        list.etc()?;
        list.dev()?;
        for path in &config.extra_paths {
            list.extra(path)?;
        }
        let proc_flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        list.mount("proc", "proc", Some("proc"), proc_flags, None);
        Ok(RootView { root, common: list.steps })
    }

    /// Where the holder builds.
    pub(crate) fn root(&self) -> CString {
        c(self.root.as_os_str())
    }

    /// The steps of a slot for the code in `code_dir` and functions of this user.
    pub(crate) fn steps(&self, code_dir: &Path, runner: Runner) -> Vec<Step> {
        let mut list = Steps { root: self.root.clone(), steps: self.common.clone() };
        list.names(runner);
        list.bind(code_dir, "var/task", READ_ONLY);
        // Last of all, and not of what is mounted below: the root itself.
        list.mount("none", "", None, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID, None);
        list.steps
    }
}

/// Paths come from configuration and directory entries, which hold no NUL byte; a stray one gives an empty path,
/// which fails in the kernel with a message that names the step.
fn c(text: impl AsRef<OsStr>) -> CString {
    CString::new(text.as_ref().as_bytes()).unwrap_or_default()
}

struct Steps {
    root: PathBuf,
    steps: Vec<Step>,
}

impl Steps {
    fn inside(&self, path: &str) -> CString {
        c(self.root.join(path))
    }

    fn directory(&mut self, path: &str, mode: u32) {
        let path = self.inside(path);
        self.steps.push(Step::Directory { path, mode });
    }

    fn file(&mut self, path: &str, content: &str) {
        let path = self.inside(path);
        self.steps.push(Step::File { path, content: content.as_bytes().to_vec() });
    }

    fn symlink(&mut self, target: impl AsRef<OsStr>, path: &str) {
        let path = self.inside(path);
        self.steps.push(Step::Symlink { target: c(target), path });
    }

    fn mount(&mut self, source: &str, to: &str, kind: Option<&str>, flags: libc::c_ulong, options: Option<&str>) {
        let target = self.inside(to);
        self.steps.push(Step::Mount { source: c(source), target, kind: kind.map(c), flags, options: options.map(c) });
    }

    /// Mounts a directory, or a file, of the machine at `to`, which exists.
    fn bind(&mut self, from: &Path, to: &str, attributes: u64) {
        let target = self.inside(to);
        self.steps.push(Step::Mount {
            source: c(from),
            target: target.clone(),
            kind: None,
            flags: libc::MS_BIND | libc::MS_REC,
            options: None,
        });
        self.steps.push(Step::Attributes { target, set: attributes });
    }

    /// The machine's `path` under the same name: a link as the same link, the rest mounted; missing is left out.
    fn link_or_bind(&mut self, path: &Path) -> io::Result<()> {
        let Ok(metadata) = fs::symlink_metadata(path) else {
            return Ok(());
        };
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned();
        if metadata.is_symlink() && !leads_into_hidden(path) {
            self.symlink(fs::read_link(path)?, &name);
            return Ok(());
        }
        match fs::metadata(path) {
            Ok(target) if target.is_dir() => self.directory(&name, 0o755),
            Ok(target) if target.is_file() => self.file(&name, ""),
            _ => return Ok(()),
        }
        self.bind(path, &name, READ_ONLY);
        Ok(())
    }

    fn etc(&mut self) -> io::Result<()> {
        for name in ETC {
            self.link_or_bind(&Path::new("/etc").join(name))?;
        }
        for (parent, children) in ETC_NESTED {
            if Path::new("/etc").join(parent).is_dir() {
                self.directory(&format!("etc/{parent}"), 0o755);
                for child in children {
                    self.link_or_bind(&Path::new("/etc").join(child))?;
                }
            }
        }
        self.file("etc/hostname", "flux\n");
        Ok(())
    }

    fn names(&mut self, runner: Runner) {
        let Runner { uid, gid } = runner;
        // Node's userInfo() and Python's getpwuid throw where a uid has no name.
        let (mut passwd, mut group) =
            (String::from("root:x:0:0:root:/:/usr/sbin/nologin\n"), String::from("root:x:0:\n"));
        if uid != 65534 {
            passwd.push_str(&format!("flux-runner:x:{uid}:{gid}:Flux function:/tmp:/bin/sh\n"));
        }
        if gid != 65534 {
            group.push_str(&format!("flux-runner:x:{gid}:\n"));
        }
        passwd.push_str("nobody:x:65534:65534:nobody:/tmp:/usr/sbin/nologin\n");
        group.push_str("nogroup:x:65534:\n");
        self.file("etc/passwd", &passwd);
        self.file("etc/group", &group);
    }

    fn dev(&mut self) -> io::Result<()> {
        for name in DEVICES {
            let to = format!("dev/{name}");
            self.file(&to, "");
            self.bind(&Path::new("/dev").join(name), &to, DEVICE);
        }
        for (name, target) in DEVICE_LINKS {
            self.symlink(target, &format!("dev/{name}"));
        }
        self.directory("dev/shm", 0o1777);
        Ok(())
    }

    /// A path that configuration adds: its parents as empty directories, then itself.
    fn extra(&mut self, path: &Path) -> io::Result<()> {
        let plain = path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !path.is_absolute() || !plain {
            let message = format!("extra path {} must be absolute and without `..`", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if SYSTEM.iter().any(|s| path.starts_with(Path::new("/").join(s))) {
            return Ok(());
        }
        let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
        parents.reverse();
        for parent in parents.into_iter().skip(1) {
            let name = parent.strip_prefix("/").unwrap_or(parent).to_string_lossy().into_owned();
            self.directory(&name, 0o755);
        }
        self.link_or_bind(path)
    }
}

/// A link whose target is not in the view (`/etc/resolv.conf` into `/run`) is replaced by what it leads to.
fn leads_into_hidden(link: &Path) -> bool {
    let Ok(target) = fs::canonicalize(link) else {
        return false;
    };
    !SYSTEM.iter().any(|s| target.starts_with(Path::new("/").join(s)))
}
