//! The kernel's package: an image that is uncompressed here, and the modules that a guest needs.

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    ImageError, file,
    tool::{ToolError, failed, run},
};

/// What guests need: the disks' driver, the vsock's, both ways in which a machine offers them (Firecracker's and QEMU's), and a
/// source of randomness. Those that they depend on come with them.
const WANTED: [&str; 5] = ["virtio_mmio", "virtio_pci", "virtio_blk", "vmw_vsock_virtio_transport", "virtio-rng"];

/// How a kernel's image may be compressed: what it begins with, and who uncompresses it.
const COMPRESSIONS: [(&[u8], &str, &str); 4] = [
    (b"\x02\x21\x4c\x18", "lz4", "lz4"),
    (b"\xfd7zXZ\0", "xz", "xz-utils"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd"),
    (b"\x1f\x8b\x08", "gzip", "gzip"),
];

#[derive(Debug)]
pub(crate) struct Kernel {
    image: PathBuf,
    /// By the names that modules depend on each other by.
    modules: HashMap<String, PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Unpacks the package below `work`.
pub(crate) fn unpack(package: &Path, work: &Path) -> Result<Kernel, ImageError> {
    let folder = work.join("unpacked-kernel");
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&folder), "dpkg")?;
    let mut kernel = Kernel { image: PathBuf::new(), modules: HashMap::new() };
    kernel.look_through(&folder)?;
    if kernel.image.as_os_str().is_empty() {
        return Err(ImageError::NotInKernel("vmlinuz".to_owned()));
    }
    Ok(kernel)
}

impl Kernel {
    fn look_through(&mut self, folder: &Path) -> Result<(), ImageError> {
        for entry in fs::read_dir(folder).map_err(file("a folder cannot be read", folder))?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.look_through(&path)?;
            } else if name.starts_with("vmlinuz") {
                self.image = path;
            } else if let Some(name) = name.strip_suffix(".ko") {
                self.modules.insert(name.replace('-', "_"), path);
            }
        }
        Ok(())
    }

    /// Writes the kernel inside of the image: an ELF file.
    pub(crate) fn write_vmlinux(&self, to: &Path) -> Result<(), ImageError> {
        let image = fs::read(&self.image).map_err(file("the kernel cannot be read", &self.image))?;
        let unknown = || ImageError::Compression(self.image.clone());
        let payload = payload(&image).ok_or_else(unknown)?;
        let known = COMPRESSIONS.iter().find(|(magic, ..)| payload.starts_with(magic));
        let (_, tool, package) = known.ok_or_else(unknown)?;
        let out = fs::File::create(to).map_err(file("a file cannot be written", to))?;
        let mut command = Command::new(tool);
        command.args(["-d", "-c"]).stdin(Stdio::piped()).stdout(out).stderr(Stdio::piped());
        let missing = |source| ToolError::Missing { tool: (*tool).to_owned(), package, source };
        let mut child = command.spawn().map_err(missing)?;
        if let Some(mut stdin) = child.stdin.take() {
            // What it does not read it says below: the length of the whole follows the kernel.
            let _ = stdin.write_all(payload);
        }
        let output = child.wait_with_output().map_err(missing)?;
        let mut magic = [0; 4];
        let read = fs::File::open(to).and_then(|mut made| std::io::Read::read_exact(&mut made, &mut magic));
        if read.is_err() || &magic != b"\x7fELF" {
            return Err(failed(&command, &output.stderr).into());
        }
        Ok(())
    }

    /// The modules that guests need, each after those that it depends on.
    pub(crate) fn modules(&self) -> Result<Vec<Module>, ImageError> {
        let mut ordered = Vec::new();
        for name in WANTED {
            self.add(&name.replace('-', "_"), &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, ordered: &mut Vec<Module>) -> Result<(), ImageError> {
        if ordered.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let path = self.modules.get(name).ok_or_else(|| ImageError::NotInKernel(format!("module {name}")))?;
        let content = fs::read(path).map_err(file("a module cannot be read", path))?;
        for needed in depends(&content) {
            self.add(&needed, ordered)?;
        }
        ordered.push(Module { name: name.to_owned(), path: path.clone() });
        Ok(())
    }
}

/// The compressed kernel in an x86 boot image, by its header (`Documentation/arch/x86/boot.rst`).
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SECTOR: usize = 512;
    let u32_at = |at: usize| image.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let start = (setup_sectors + 1) * SECTOR + usize::try_from(u32_at(0x248)?).ok()?;
    image.get(start..start + usize::try_from(u32_at(0x24c)?).ok()?)
}

/// What a module says that it depends on, in its section of texts.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let text = &module[at + KEY.len()..];
    let text = &text[..text.iter().position(|byte| *byte == 0).unwrap_or(text.len())];
    let names = String::from_utf8_lossy(text);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        assert_eq!(depends(b"ELF\0license=GPL\0depends=virtio,virtio-ring\0name=x\0"), ["virtio", "virtio_ring"]);
        assert_eq!(depends(b"ELF\0license=GPL\0depends=\0name=x\0"), [] as [&str; 0]);
        assert_eq!(depends(b"ELF"), [] as [&str; 0]);
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 3;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&5_u32.to_le_bytes());
        image[2064..2069].copy_from_slice(b"hello");
        assert_eq!(payload(&image), Some(&b"hello"[..]));
        image[0x24c..0x250].copy_from_slice(&5000_u32.to_le_bytes());
        assert_eq!(payload(&image), None, "beyond its end");
        assert_eq!(payload(b"MZ"), None);
    }
}
