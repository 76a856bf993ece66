//! What the fuzz target does with its bytes (`fuzz/`), here so that tests can do it with the seeds.

use crate::Decoder;

/// However the bytes are cut into pieces, the same frames come out, and the same error.
pub fn frames(data: &[u8]) {
    let whole = read(data, data.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(read(data, piece), whole, "in pieces of {piece}");
    }
}

fn read(data: &[u8], piece: usize) -> (Vec<crate::FromWorker>, Option<crate::FrameError>) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in data.chunks(piece) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}
