//! One cgroup's directory: the seam between the controllers and the file system.
//!
//! Everything goes through here, so that a controller's logic is tested on an ordinary directory, without rights.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::sys::{descriptor, process};

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("the kernel has no {controller} controller mounted")]
    NoController { controller: &'static str },
    #[error("the {controller} controller is not delegated to {}", .path.display())]
    NotDelegated { controller: &'static str, path: PathBuf },
    #[error("no cgroup hierarchy of version 2 is mounted")]
    NoUnified,
    #[error("the cgroup {} is not of this process alone", .path.display())]
    Shared { path: PathBuf },
    #[error(
        "the cgroup `{named}` is not below what is mounted where Flux runs; a container with Flux in it has to be started with `--cgroupns=host`"
    )]
    Elsewhere { named: String },
    #[error("process {pid} has ended")]
    Ended { pid: u32 },
    #[error("reading where process {pid} is failed: {source}")]
    Read {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("making cgroup {} failed: {source}", .path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("opening {} failed: {source}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("writing {value} to {} failed: {source}", .path.display())]
    Write {
        path: PathBuf,
        value: String,
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            CgroupError::NoController { .. }
            | CgroupError::NotDelegated { .. }
            | CgroupError::NoUnified
            | CgroupError::Shared { .. }
            | CgroupError::Elsewhere { .. }
            | CgroupError::Ended { .. } => None,
            CgroupError::Make { source, .. }
            | CgroupError::Open { source, .. }
            | CgroupError::Write { source, .. }
            | CgroupError::Read { source, .. } => source.raw_os_error(),
        }
    }
}

/// Ends everything in the cgroup that writes to it.
const KILL: &str = "cgroup.kill";
const PIDS_MAX: &str = "pids.max";

#[derive(Debug, Clone)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Directory(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn child(&self, name: &str) -> Self {
        Directory(self.0.join(name))
    }

    /// Makes it; one that exists is fine.
    pub(super) fn make(&self) -> Result<(), CgroupError> {
        match fs::create_dir(&self.0) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(CgroupError::Make { path: self.0.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// `true` when it is gone.
    pub(super) fn remove(&self) -> bool {
        match fs::remove_dir(&self.0) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }

    /// The names of the cgroups in it.
    pub(super) fn children(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.0) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .filter_map(|e| e.file_name().into_string().ok())
            .collect()
    }

    /// `true` if there was one.
    ///
    /// All at once where the kernel can (version 2 since 5.14). Otherwise one by one, with forks forbidden meanwhile
    /// where the directory has that controller: what a process starts behind the listing's back would be missed.
    pub(super) fn kill_processes(&self) -> bool {
        if self.has(KILL) {
            let any = self.read("cgroup.procs").is_ok_and(|list| !list.is_empty());
            return any && self.write(KILL, "1").is_ok();
        }
        let max = self.read(PIDS_MAX).ok();
        if max.is_some() {
            let _ = self.write(PIDS_MAX, "0");
        }
        let any = self.kill_listed();
        if let Some(max) = max {
            let _ = self.write(PIDS_MAX, max.trim());
        }
        any
    }

    fn kill_listed(&self) -> bool {
        let mut any = false;
        for pid in self.read("cgroup.procs").unwrap_or_default().lines().filter_map(|l| l.parse().ok()) {
            if pid > 1 {
                any |= process::kill(pid, libc::SIGKILL).is_ok();
            }
        }
        any
    }

    pub(super) fn has(&self, file: &str) -> bool {
        self.0.join(file).exists()
    }

    pub(super) fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(file))
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        let written = self.0.join(file);
        let failed = |source| CgroupError::Write { path: written, value: value.to_owned(), source };
        // One write call: the kernel takes each as a whole value.
        let path = self.0.join(file);
        let mut file =
            OpenOptions::new().write(true).open(&path).map_err(|source| CgroupError::Open { path, source })?;
        file.write_all(value.as_bytes()).map_err(failed)
    }

    /// The directory itself: what programs are attached to.
    pub(super) fn open_itself(&self) -> Result<File, CgroupError> {
        let opened = File::open(&self.0).map_err(|source| CgroupError::Open { path: self.0.clone(), source })?;
        Ok(descriptor::keep(opened.into()).into())
    }

    pub(super) fn open_for_writing(&self, file: &str) -> Result<File, CgroupError> {
        self.open(file, OpenOptions::new().write(true))
    }

    pub(super) fn open_for_both(&self, file: &str) -> Result<File, CgroupError> {
        self.open(file, OpenOptions::new().read(true).write(true))
    }

    pub(super) fn open_for_reading(&self, file: &str) -> Result<File, CgroupError> {
        self.open(file, OpenOptions::new().read(true))
    }

    /// For as long as the slot is there: a descriptor that children leave behind.
    fn open(&self, file: &str, options: &OpenOptions) -> Result<File, CgroupError> {
        let path = self.0.join(file);
        match options.open(&path) {
            Ok(file) => Ok(descriptor::keep(file.into()).into()),
            Err(source) => Err(CgroupError::Open { path, source }),
        }
    }
}

/// Reads an open cgroup file anew, without a path to look up and without allocating.
pub(super) fn read_again(file: &File, buffer: &mut [u8; 512]) -> usize {
    file.read_at(buffer, 0).unwrap_or(0)
}

/// The number in an open one-number file.
pub(super) fn number_in(file: &File) -> Option<u64> {
    let mut buffer = [0; 512];
    let len = read_again(file, &mut buffer);
    std::str::from_utf8(buffer.get(..len)?).ok()?.trim().parse().ok()
}

/// The number after `key` in an open file of `key number` lines.
pub(super) fn field_in(file: &File, key: &str) -> Option<u64> {
    let mut buffer = [0; 512];
    let len = read_again(file, &mut buffer);
    let text = std::str::from_utf8(buffer.get(..len)?).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A directory with the files that a kernel would have put there.
#[cfg(test)]
pub(super) fn fake(name: &str, files: &[(&str, &str)]) -> Directory {
    let path = std::env::temp_dir().join(format!("flux-cgroup-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    for (file, content) in files {
        fs::write(path.join(file), content).unwrap();
    }
    Directory(path)
}
