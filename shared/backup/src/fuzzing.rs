//! What the fuzz target does with its bytes.

use crate::{Piece, read};

/// Any bytes: refused, or whole; rows are unpacked within their limit.
pub fn backup(bytes: &[u8]) {
    let _ = read(bytes, |piece| match piece {
        Piece::Rows(packed) => Piece::rows(&packed).map(drop),
        _ => Ok(()),
    });
}
