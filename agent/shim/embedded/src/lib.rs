//! `flux-shim` as bytes: a static program that needs nothing of the image or the guest that it is put into.

/// An ELF executable for this build's own architecture.
pub static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flux-shim"));

#[cfg(test)]
mod tests {
    use super::SHIM;

    /// A program that asks for an interpreter (`PT_INTERP`) would not start in an image without that one.
    #[test]
    fn it_is_a_static_program() {
        const INTERPRETER: u32 = 3;
        assert_eq!(&SHIM[..5], b"\x7fELF\x02", "64 bits");
        let u16_at = |at: usize| u16::from_le_bytes([SHIM[at], SHIM[at + 1]]) as usize;
        let headers = u64::from_le_bytes(SHIM[32..40].try_into().expect("8 bytes"));
        let headers = usize::try_from(headers).expect("small");
        let (size, count) = (u16_at(54), u16_at(56));
        let kinds = (0..count).map(|at| {
            let at = headers + at * size;
            u32::from_le_bytes(SHIM[at..at + 4].try_into().expect("4 bytes"))
        });
        assert!(count > 0 && kinds.into_iter().all(|kind| kind != INTERPRETER));
    }
}
