//! A guest's folder: what Firecracker sees as its working directory, and how it is started there.
//!
//! With a jailer the folder becomes the guest's `/`, without one its working directory. Either way Firecracker is told
//! relative paths only, so that a snapshot taken in one folder can be loaded in another.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use crate::settings::{JailCgroups, Settings};

/// The names in a guest's folder.
pub(crate) const API_SOCKET: &str = "api.sock";
pub(crate) const VSOCK_SOCKET: &str = "v.sock";
pub(crate) const KERNEL: &str = "kernel";
pub(crate) const INITRAMFS: &str = "initramfs";
pub(crate) const ROOTFS: &str = "rootfs";
pub(crate) const CODE: &str = "code";
pub(crate) const SNAPSHOT_STATE: &str = "snapshot.state";
pub(crate) const SNAPSHOT_MEMORY: &str = "snapshot.memory";
/// Beside the folder: who is to be ended by the next driver, should this one die.
pub(crate) const OWNER: &str = "owner";

/// What one guest may use of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Thousandths of a core for all of its threads; 0 is no limit.
    pub cpu_millicores: u32,
}

/// One guest's folder. Removed when dropped, with its cgroups.
#[derive(Debug)]
pub(crate) struct Jail {
    id: String,
    base: PathBuf,
    pub(crate) root: PathBuf,
    uid: Option<u32>,
    cgroups: Option<JailCgroups>,
}

/// Where the folders of all guests are: the jailer puts them below a folder named as the program.
pub(crate) fn guests(settings: &Settings) -> PathBuf {
    settings.directory.join("guests").join(settings.firecracker.file_name().unwrap_or_default())
}

impl Jail {
    /// An empty folder. `uid` is whom Firecracker will run as, where there is a jailer.
    pub(crate) fn make(settings: &Settings, id: &str, uid: Option<u32>) -> io::Result<Self> {
        let base = guests(settings).join(id);
        let root = base.join("root");
        let cgroups = settings.jailer.as_ref().and_then(|jailer| jailer.cgroups.clone());
        let jail = Self { id: id.to_owned(), base, root, uid, cgroups };
        fs::create_dir_all(&jail.root)?;
        jail.give(&jail.root, 0o700)?;
        Ok(jail)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Has `file` in the folder as `name`: by a link, or as a copy where it is on another file system.
    pub(crate) fn has(&self, file: &Path, name: &str) -> io::Result<()> {
        let to = self.path(name);
        match fs::hard_link(file, &to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(file, &to).map(drop),
            linked => linked,
        }
    }

    /// Firecracker's command line.
    pub(crate) fn command(&self, settings: &Settings, size: Size) -> (PathBuf, Vec<OsString>) {
        let own = ["--id", &self.id, "--api-sock", API_SOCKET].map(OsString::from);
        let (Some(jailer), Some(uid)) = (&settings.jailer, self.uid) else {
            return (settings.firecracker.clone(), own.to_vec());
        };
        let mut args: Vec<OsString> = Vec::new();
        let mut flag = |name: &str, value: OsString| args.extend([name.into(), value]);
        flag("--id", self.id.clone().into());
        flag("--exec-file", settings.firecracker.clone().into());
        flag("--uid", uid.to_string().into());
        flag("--gid", uid.to_string().into());
        flag("--chroot-base-dir", settings.directory.join("guests").into());
        if let Some(cgroups) = &self.cgroups {
            flag("--cgroup-version", cgroups.version.to_string().into());
            flag("--parent-cgroup", cgroups.parent.clone().into());
            for limit in cgroup_limits(cgroups.version, size) {
                flag("--cgroup", limit.into());
            }
        }
        // What a snapshot needs is the guest's memory and a little.
        flag("--resource-limit", format!("fsize={}", (u64::from(size.memory_mib) + 64) << 20).into());
        // The jailer gives the id by itself.
        args.extend(["--", "--api-sock", API_SOCKET].map(OsString::from));
        (jailer.program.clone(), args)
    }

    /// Gives a file or folder to whom Firecracker runs as.
    fn give(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        match self.uid {
            Some(uid) => chown(path, Some(uid), Some(uid)),
            None => Ok(()),
        }
    }

    /// Where the owner's mark is.
    pub(crate) fn owner(&self) -> PathBuf {
        self.base.join(OWNER)
    }
}

/// Firecracker's own threads need some memory beside the guest's.
const OVERHEAD_MIB: u64 = 32;

/// The values that the jailer writes into the guest's cgroups.
fn cgroup_limits(version: u8, size: Size) -> Vec<String> {
    const PERIOD_US: u64 = 100_000;
    let memory = (u64::from(size.memory_mib) + OVERHEAD_MIB) << 20;
    let quota = u64::from(size.cpu_millicores) * PERIOD_US / 1000;
    let mut limits = match version {
        2 => vec![format!("memory.max={memory}")],
        _ => vec![format!("memory.limit_in_bytes={memory}")],
    };
    if size.cpu_millicores > 0 {
        match version {
            2 => limits.push(format!("cpu.max={quota} {PERIOD_US}")),
            _ => limits.extend([format!("cpu.cfs_period_us={PERIOD_US}"), format!("cpu.cfs_quota_us={quota}")]),
        }
    }
    limits
}

/// The cgroups that the jailer made for `id`: it leaves them behind.
pub(crate) fn remove_cgroups(cgroups: &JailCgroups, id: &str) {
    const MOUNT: &str = "/sys/fs/cgroup";
    let hierarchies: &[&str] = if cgroups.version == 2 { &[""] } else { &["memory", "cpu"] };
    for hierarchy in hierarchies {
        let path = Path::new(MOUNT).join(hierarchy).join(&cgroups.parent).join(id);
        match fs::remove_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "a guest's cgroup is left"),
        }
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.base) {
            tracing::warn!(path = %self.base.display(), %error, "a guest's folder is left");
        }
        if let Some(cgroups) = &self.cgroups {
            remove_cgroups(cgroups, &self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Jailer;

    const SIZE: Size = Size { vcpus: 1, memory_mib: 192, cpu_millicores: 500 };

    fn command(settings: &Settings, id: &str, uid: Option<u32>) -> String {
        let jail = Jail {
            id: id.to_owned(),
            base: "/nonexistent".into(),
            root: "/nonexistent/root".into(),
            uid,
            cgroups: settings.jailer.as_ref().and_then(|jailer| jailer.cgroups.clone()),
        };
        let (program, args) = jail.command(settings, SIZE);
        let jail = std::mem::ManuallyDrop::new(jail);
        let _ = &jail;
        let mut line = program.display().to_string();
        for arg in args {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }

    #[test]
    fn without_a_jailer_firecracker_is_started_by_itself() {
        let settings = Settings::new("/opt/firecracker", "k", "i", "r", "/var/lib/flux/microvm");
        assert_eq!(command(&settings, "a-1", None), "/opt/firecracker --id a-1 --api-sock api.sock");
    }

    #[test]
    fn a_jailer_is_told_of_user_folder_and_cgroups() {
        let mut settings = Settings::new("/opt/firecracker", "k", "i", "r", "/var/lib/flux/microvm");
        settings.jailer = Some(Jailer {
            program: "/opt/jailer".into(),
            first_uid: 5000,
            uids: 10,
            cgroups: Some(JailCgroups { version: 2, parent: "flux/microvm".to_owned() }),
        });
        assert_eq!(
            command(&settings, "a-1", Some(5001)),
            "/opt/jailer --id a-1 --exec-file /opt/firecracker --uid 5001 --gid 5001 \
             --chroot-base-dir /var/lib/flux/microvm/guests --cgroup-version 2 --parent-cgroup flux/microvm \
             --cgroup memory.max=234881024 --cgroup cpu.max=50000 100000 --resource-limit fsize=268435456 \
             -- --api-sock api.sock"
        );
    }

    #[test]
    fn version_1_has_other_files_for_the_same_limits() {
        assert_eq!(
            cgroup_limits(1, SIZE),
            ["memory.limit_in_bytes=234881024", "cpu.cfs_period_us=100000", "cpu.cfs_quota_us=50000"]
        );
        assert_eq!(cgroup_limits(2, Size { cpu_millicores: 0, ..SIZE }), ["memory.max=234881024"]);
    }
}
