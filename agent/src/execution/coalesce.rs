//! What was read of two streams and not published yet: merged into few chunks, cut where characters end.
//!
//! A function that prints byte by byte would otherwise make a chunk, a message and an allocation of each byte. Order
//! between the streams is kept as it was read, up to a bound: two streams that alternate faster than that within
//! one publishing interval are each appended to their own last piece.

use bytes::{Bytes, BytesMut};
use flux_protocol::{Stream, limits};

/// Pieces kept apart between two publishes.
const PIECES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Coalescer {
    pieces: Vec<(Stream, BytesMut)>,
    /// The start of a character whose rest was not read yet, per stream.
    carried: [Bytes; 2],
    bytes: usize,
}

const fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr | Stream::Result => 1,
    }
}

impl Coalescer {
    pub(super) fn push(&mut self, stream: Stream, data: BytesMut) {
        if data.is_empty() {
            return;
        }
        self.bytes += data.len();
        let full = self.pieces.len() >= PIECES;
        let last = self.pieces.last_mut().filter(|(of, _)| *of == stream);
        let same = match last {
            Some(last) => Some(last),
            None if full => self.pieces.iter_mut().rev().find(|(of, _)| *of == stream),
            None => None,
        };
        match same {
            // Neighbours of one buffer are joined without copying.
            Some((_, piece)) => piece.unsplit(data),
            None => self.pieces.push((stream, data)),
        }
    }

    /// Bytes that wait to be taken.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The chunks to publish now, each of at most [`limits::OUTPUT_CHUNK`]. Unless this is the `last` time, an
    /// unfinished character at a stream's end waits for its rest.
    pub(super) fn take(&mut self, last: bool, mut chunk: impl FnMut(Stream, Bytes)) {
        for (stream, piece) in self.pieces.drain(..) {
            let carried = std::mem::take(&mut self.carried[index(stream)]);
            let mut piece = if carried.is_empty() { piece.freeze() } else { joined(&carried, &piece) };
            if !last {
                let whole = piece.len() - unfinished(&piece);
                self.carried[index(stream)] = piece.split_off(whole);
            }
            while !piece.is_empty() {
                chunk(stream, piece.split_to(cut(&piece)));
            }
        }
        if last {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let rest = std::mem::take(&mut self.carried[index(stream)]);
                if !rest.is_empty() {
                    chunk(stream, rest);
                }
            }
        }
        self.bytes = 0;
    }
}

fn joined(first: &[u8], second: &[u8]) -> Bytes {
    let mut all = BytesMut::with_capacity(first.len() + second.len());
    all.extend_from_slice(first);
    all.extend_from_slice(second);
    all.freeze()
}

/// How much of `piece` makes the next chunk: up to the limit, and not into the middle of a character.
fn cut(piece: &[u8]) -> usize {
    if piece.len() <= limits::OUTPUT_CHUNK {
        return piece.len();
    }
    let head = &piece[..limits::OUTPUT_CHUNK];
    head.len() - unfinished(head)
}

/// The bytes at the end of `data` that begin a UTF-8 character and do not finish it: 0 to 3.
fn unfinished(data: &[u8]) -> usize {
    for back in 1..=data.len().min(3) {
        let byte = data[data.len() - back];
        let needs = match byte {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            // Inside a character: look further back for its start.
            0x80..=0xBF => continue,
            _ => return 0,
        };
        return if back < needs { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(coalescer: &mut Coalescer, last: bool) -> Vec<(Stream, Bytes)> {
        let mut chunks = Vec::new();
        coalescer.take(last, |stream, data| chunks.push((stream, data)));
        chunks
    }

    #[test]
    fn neighbours_are_merged_and_order_is_kept() {
        let mut coalescer = Coalescer::default();
        for (stream, text) in
            [(Stream::Stdout, "a"), (Stream::Stdout, "b"), (Stream::Stderr, "c"), (Stream::Stdout, "d")]
        {
            coalescer.push(stream, text.as_bytes().into());
        }
        let chunks = taken(&mut coalescer, false);
        let expected = [(Stream::Stdout, "ab"), (Stream::Stderr, "c"), (Stream::Stdout, "d")];
        assert_eq!(chunks, expected.map(|(stream, text)| (stream, Bytes::from(text))));
        assert!(coalescer.is_empty());
    }

    #[test]
    fn a_character_is_not_cut_in_two() {
        let mut coalescer = Coalescer::default();
        let euro = "€".as_bytes();
        coalescer.push(Stream::Stdout, [b"1", &euro[..2]].concat().as_slice().into());
        assert_eq!(taken(&mut coalescer, false), [(Stream::Stdout, Bytes::from_static(b"1"))]);
        coalescer.push(Stream::Stdout, euro[2..].into());
        assert_eq!(taken(&mut coalescer, false), [(Stream::Stdout, Bytes::from_static(euro))]);
        // What never becomes whole is given at the end.
        coalescer.push(Stream::Stderr, euro[..1].into());
        assert_eq!(taken(&mut coalescer, false), []);
        assert_eq!(taken(&mut coalescer, true), [(Stream::Stderr, Bytes::from_static(&euro[..1]))]);
    }

    proptest! {
        /// Whatever is read in whatever pieces: nothing is lost or reordered within a stream, chunks are bounded,
        /// and text stays text.
        #[test]
        fn nothing_is_lost(
            reads in prop::collection::vec((any::<bool>(), "[aß€🦀]{0,40}", 0_usize..4, any::<bool>()), 0..60),
            flood in 0_usize..3,
        ) {
            let mut coalescer = Coalescer::default();
            let mut written = [Vec::new(), Vec::new()];
            let mut given = [Vec::new(), Vec::new()];
            let mut write = |coalescer: &mut Coalescer, stream: Stream, data: &[u8]| {
                written[index(stream)].extend_from_slice(data);
                coalescer.push(stream, data.into());
            };
            for (stderr, text, cut, take) in reads {
                let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
                let (head, tail) = text.as_bytes().split_at(cut.min(text.len()));
                write(&mut coalescer, stream, head);
                if take {
                    for (stream, data) in taken(&mut coalescer, false) {
                        prop_assert!(std::str::from_utf8(&data).is_ok());
                        given[index(stream)].extend_from_slice(&data);
                    }
                }
                write(&mut coalescer, stream, tail);
            }
            let flood = "🦀".repeat(flood * limits::OUTPUT_CHUNK / 4 + flood);
            write(&mut coalescer, Stream::Stdout, flood.as_bytes());
            for (stream, data) in taken(&mut coalescer, true) {
                prop_assert!(data.len() <= limits::OUTPUT_CHUNK);
                prop_assert!(std::str::from_utf8(&data).is_ok());
                given[index(stream)].extend_from_slice(&data);
            }
            prop_assert_eq!(written, given);
        }
    }
}
