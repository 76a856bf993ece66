//! Zip archives made byte by byte, so that they can be wrong in any way.

pub(crate) const FILE: u32 = 0o100_644;
pub(crate) const PROGRAM: u32 = 0o100_755;
pub(crate) const DIRECTORY: u32 = 0o040_755;
pub(crate) const LINK: u32 = 0o120_777;

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) content: Vec<u8>,
    /// Unix mode; `None` makes it an entry of an MS-DOS archive, which has none.
    pub(crate) mode: Option<u32>,
    pub(crate) flags: u16,
    pub(crate) method: u16,
    /// Said instead of the content's size.
    pub(crate) size: Option<u32>,
    pub(crate) checksum: Option<u32>,
    /// Lies where the entry of that number lies, and brings nothing of its own.
    pub(crate) shares: Option<usize>,
}

pub(crate) fn entry(name: impl AsRef<[u8]>, mode: u32, content: impl AsRef<[u8]>) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        content: content.as_ref().to_vec(),
        mode: Some(mode),
        flags: 0,
        method: 0,
        size: None,
        checksum: None,
        shares: None,
    }
}

pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut places: Vec<usize> = Vec::new();
    for entry in entries {
        if let Some(other) = entry.shares {
            places.push(places[other]);
            continue;
        }
        places.push(out.len());
        out.extend(b"PK\x03\x04\x14\x00");
        out.extend(common(entry));
        out.extend(&entry.name);
        out.extend(&entry.content);
    }
    let start = out.len();
    for (entry, place) in entries.iter().zip(places) {
        out.extend(b"PK\x01\x02");
        let system: u8 = if entry.mode.is_some() { 3 } else { 0 };
        out.extend([20, system, 20, 0]);
        out.extend(common(entry));
        out.extend([0; 6]); // comment's length, disk, internal attributes
        out.extend((entry.mode.unwrap_or(0) << 16).to_le_bytes());
        out.extend(u32::try_from(place).expect("small").to_le_bytes());
        out.extend(&entry.name);
    }
    let size = out.len() - start;
    let count = u16::try_from(entries.len()).expect("small").to_le_bytes();
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count);
    out.extend(count);
    out.extend(u32::try_from(size).expect("small").to_le_bytes());
    out.extend(u32::try_from(start).expect("small").to_le_bytes());
    out.extend([0, 0]);
    out
}

/// What local and central headers share, from the flags to the lengths.
fn common(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(entry.flags.to_le_bytes());
    out.extend(entry.method.to_le_bytes());
    out.extend([0, 0, 0x21, 0]); // midnight, 1 January 1980
    out.extend(entry.checksum.unwrap_or_else(|| crc32(&entry.content)).to_le_bytes());
    let packed = u32::try_from(entry.content.len()).expect("small");
    out.extend(packed.to_le_bytes());
    out.extend(entry.size.unwrap_or(packed).to_le_bytes());
    out.extend(u16::try_from(entry.name.len()).expect("small").to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(content: &[u8]) -> u32 {
    !content.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// An archive as other programs make it, deflated.
pub(crate) fn deflated(files: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write as _;
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).expect("start");
        writer.write_all(content).expect("write");
    }
    writer.finish().expect("finish").into_inner()
}
