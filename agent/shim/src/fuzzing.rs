//! What the fuzz target does with its bytes (`fuzz/`), here so that tests can do it with the seeds.

use crate::{Decoder, FrameError};

/// Whatever either side reads, and however it is cut into pieces, the same words come out, and the same error.
pub fn frames(data: &[u8]) {
    both(data, Decoder::next_to_shim);
    both(data, Decoder::next_from_shim);
}

fn both<T: PartialEq + std::fmt::Debug>(data: &[u8], next: fn(&mut Decoder) -> Result<Option<T>, FrameError>) {
    let whole = read(data, data.len().max(1), next);
    for piece in [1, 2, 7] {
        assert_eq!(read(data, piece, next), whole, "in pieces of {piece}");
    }
}

fn read<T>(
    data: &[u8],
    piece: usize,
    next: fn(&mut Decoder) -> Result<Option<T>, FrameError>,
) -> (Vec<T>, Option<FrameError>) {
    let (mut decoder, mut words) = (Decoder::default(), Vec::new());
    for piece in data.chunks(piece) {
        decoder.push(piece);
        loop {
            match next(&mut decoder) {
                Ok(Some(said)) => words.push(said),
                Ok(None) => break,
                Err(error) => return (words, Some(error)),
            }
        }
    }
    (words, None)
}
