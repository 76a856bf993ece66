//! What snapshots depend on beside the function: found once, at the driver's start.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::{settings::Settings, snapshots::hex};

/// Of the machine, of Firecracker, and of what guests boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub cpu: String,
    pub host_kernel: String,
    pub firecracker: String,
    pub guest_kernel: String,
    pub initramfs: String,
    pub rootfs: String,
}

/// What is missing for a driver.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    #[error("{what} at {path} cannot be read")]
    Missing {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{program} --version` said `{said}`")]
    Version { program: PathBuf, said: String },
}

impl Facts {
    pub(crate) async fn find(settings: &Settings) -> Result<Self, FactsError> {
        Ok(Self {
            cpu: cpu_of(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            host_kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            firecracker: version(&settings.firecracker).await?,
            guest_kernel: digest("the guests' kernel", &settings.kernel)?,
            initramfs: digest("the guests' initramfs", &settings.initramfs)?,
            rootfs: digest("the guests' root file system", &settings.rootfs)?,
        })
    }
}

/// What the first processor says of itself, less what changes from moment to moment.
fn cpu_of(cpuinfo: &str) -> String {
    const NAMED: [&str; 7] = ["vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let of = |line: &str| line.split_once(':').is_some_and(|(name, _)| NAMED.contains(&name.trim()));
    let lines: Vec<&str> = first.lines().filter(|line| of(line)).collect();
    lines.join("\n")
}

async fn version(program: &Path) -> Result<String, FactsError> {
    let missing = |source| FactsError::Missing { what: "Firecracker", path: program.to_owned(), source };
    let output = Command::new(program).arg("--version").kill_on_drop(true).output().await.map_err(missing)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let first = said.lines().next().unwrap_or_default();
    match first.strip_prefix("Firecracker v") {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(FactsError::Version { program: program.to_owned(), said: first.chars().take(200).collect() }),
    }
}

fn digest(what: &'static str, path: &Path) -> Result<String, FactsError> {
    let missing = |source| FactsError::Missing { what, path: path.to_owned(), source };
    let mut file = fs::File::open(path).map_err(missing)?;
    let mut sum = Sha256::new();
    io::copy(&mut file, &mut sum).map_err(missing)?;
    Ok(hex(&sum.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_what_stays_the_same() {
        let info = "processor\t: 0\nvendor_id\t: V\nmodel\t\t: 1\ncpu MHz\t\t: 2445.1\nflags\t\t: a b\n\nprocessor\t: 1\nmodel\t\t: 9\n";
        assert_eq!(cpu_of(info), "vendor_id\t: V\nmodel\t\t: 1\nflags\t\t: a b");
    }
}
