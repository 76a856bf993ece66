//! What the fuzz target of the archives does with its bytes (`fuzz/`), here so that a test can do it with the seeds.

use flux_protocol::Digest;

use crate::archive;

/// An archive is refused, or unpacks to what was said of it, and nothing but that.
pub fn archive_inspect(data: &[u8]) {
    let inspected = archive::inspect(data);
    let _ = archive::read_entry(data, "flux.yaml", 4096);
    let Ok(summary) = inspected else { return };
    if summary.unpacked_bytes > 1 << 20 {
        return; // one is as good as many, and the disk is not what is tried
    }
    let place = tempfile::tempdir().expect("a directory");
    let code = place.path().join("code");
    let bytes = archive::unpack(data, Digest::of(data), &code).expect("what was found good unpacks");
    assert_eq!(bytes, summary.unpacked_bytes);
    for file in summary.files() {
        assert!(code.join(file).symlink_metadata().is_ok_and(|found| found.is_file()), "{file} is missing");
    }
    assert_eq!(std::fs::read_dir(place.path()).expect("list").count(), 1, "something is beside it");
}
