//! Makes what microVMs boot, of Debian's packages, without being root and without starting anything of them.
//!
//! ```text
//!   linux-image-cloud-amd64 ──► vmlinux (uncompressed, as Firecracker wants it)
//!                          └──► modules ─┐
//!   flux-shim (in this binary) ──────────┴──► initramfs (cpio: /init, /modules)
//!   python3, bash, … and what they need ────► rootfs (ext4)
//! ```
//!
//! The tools are Debian's own: `apt-get` finds and fetches the packages, `dpkg-deb` and `tar` unpack them, `mke2fs` makes the
//! file system. No package's scripts run.

mod cpio;
mod kernel;
mod packages;
mod rootfs;
mod tool;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use tool::ToolError;

/// The names of what is made.
pub const KERNEL: &str = "vmlinux";
pub const INITRAMFS: &str = "initramfs";
pub const ROOTFS: &str = "rootfs.ext4";
pub const MANIFEST: &str = "manifest.json";

/// What the root file system has unless it is told: the runtimes that functions can ask for, and what scripts expect.
pub const PACKAGES: [&str; 5] = ["bash", "ca-certificates", "coreutils", "nodejs", "python3"];
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("{what} ({path})")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel's package has no {0}")]
    NotInKernel(String),
    #[error("the kernel {0} is not compressed in a way that is known here")]
    Compression(PathBuf),
}

impl ImageError {
    /// Another try may succeed: the packages come over a network.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Tool(_))
    }
}

pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::File { what, path, source }
}

/// What an image was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Those that were asked for.
    pub wanted: Vec<String>,
    /// Bytes and sum of the guest's agent, which is of the build that made the image.
    pub agent: String,
    /// Packages with their versions, as their files are named.
    pub packages: Vec<String>,
    pub kernel: String,
    /// In the order in which they are loaded.
    pub modules: Vec<String>,
}

/// Tells builds of the agent apart: CRC-32 is enough against accidents.
fn agent() -> String {
    let crc = flux_shim_binary::SHIM.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    });
    format!("{} {:08x}", flux_shim_binary::SHIM.len(), !crc)
}

/// Whether the folder holds an image of these packages with this build's agent. Newer packages may have come out since.
pub fn is_current(folder: &Path, packages: &[String]) -> bool {
    let made = fs::read(folder.join(MANIFEST)).ok().and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
    let whole = [KERNEL, INITRAMFS, ROOTFS].iter().all(|name| folder.join(name).is_file());
    whole && made.is_some_and(|made| made.wanted == packages && made.agent == agent())
}

/// Makes the three files in `folder`, and says of what. `said` hears of each step.
///
/// # Errors
/// A tool or a package is missing. Files that were there before are not touched then.
pub fn build(folder: &Path, packages: &[String], said: &mut dyn FnMut(&str)) -> Result<Manifest, ImageError> {
    fs::create_dir_all(folder).map_err(file("the image's folder cannot be made", folder))?;
    // On the same file system, so that what is made can be moved into its place.
    let work = tempfile::Builder::new().prefix(".build-").tempdir_in(folder);
    let work = work.map_err(file("the image's folder cannot be written", folder))?;
    let work = work.path();

    said(&format!("fetching {KERNEL_PACKAGE}"));
    let package = packages::fetch_one(KERNEL_PACKAGE, &work.join("kernel"))?;
    said("unpacking the kernel");
    let kernel = kernel::unpack(&package, work)?;
    let vmlinux = work.join(KERNEL);
    kernel.write_vmlinux(&vmlinux)?;
    let modules = kernel.modules()?;
    let initramfs = work.join(INITRAMFS);
    write_initramfs(&initramfs, &modules)?;

    said(&format!("fetching {} and what they need", packages.join(", ")));
    let debs = packages::fetch_all(packages, &work.join("packages"))?;
    said(&format!("making a root file system of {} packages", debs.len()));
    let rootfs = work.join(ROOTFS);
    rootfs::make(&debs, &work.join("root"), &rootfs)?;

    let name = |path: &PathBuf| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut names: Vec<String> = debs.iter().map(name).collect();
    names.sort();
    let modules = modules.iter().map(|module| module.name.clone()).collect();
    let manifest =
        Manifest { wanted: packages.to_vec(), agent: agent(), packages: names, kernel: name(&package), modules };
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    fs::write(work.join(MANIFEST), text).map_err(file("the manifest cannot be written", folder))?;
    for made in [KERNEL, INITRAMFS, ROOTFS, MANIFEST] {
        let to = folder.join(made);
        fs::rename(work.join(made), &to).map_err(file("what was made cannot be moved into its place", &to))?;
    }
    Ok(manifest)
}

fn write_initramfs(path: &Path, modules: &[kernel::Module]) -> Result<(), ImageError> {
    let mut archive = cpio::Archive::default();
    for directory in ["dev", "proc", "root", "modules"] {
        archive.directory(directory);
    }
    archive.console("dev/console");
    archive.program("init", flux_shim_binary::SHIM);
    for (number, module) in modules.iter().enumerate() {
        let content = fs::read(&module.path).map_err(file("a module cannot be read", &module.path))?;
        archive.file(&format!("modules/{number:02}-{}.ko", module.name), &content);
    }
    fs::write(path, archive.finish()).map_err(file("the initramfs cannot be written", path))
}
