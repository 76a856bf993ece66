//! A short run of a fuzz target among the ordinary tests: inputs grown from its seeds, the same ones each time. Without
//! coverage to lead it, it finds what is near; `make fuzz` goes further.
//!
//! A file and no crate: whoever has a target includes it in its tests.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

/// Longer ones are for `make fuzz`.
const LONGEST: usize = 64 * 1024;
/// Numbers at which lengths and offsets go wrong.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX / 2, u64::MAX];

/// SplitMix64: the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`; 0 of none.
    #[expect(clippy::cast_possible_truncation, reason = "what is below a length is a length")]
    fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start).min(32) + 1)
    }
}

/// Runs `target` on `inputs` inputs that come from `fuzz/seeds/<name>` below `root`. One that it does not survive is printed.
pub(crate) fn smoke(root: &Path, name: &str, inputs: u64, target: fn(&[u8])) {
    let dir = root.join("fuzz/seeds").join(name);
    let list = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = list.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("read")).collect();
    assert!(seeds.len() >= 2, "{} seeds of {name}", seeds.len());
    for number in 0..inputs {
        let input = grown(&seeds, number);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(&input))) {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("{name}, input {number}: put it into fuzz/seeds/{name}\n{hex}");
            resume_unwind(panic);
        }
    }
}

/// The input of that number: a seed, changed in one to eight ways.
fn grown(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(8) {
        change(&mut input, seeds, &mut random);
        input.truncate(LONGEST);
    }
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len());
    let part = random.range(input.len());
    match random.below(8) {
        0 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        1 if !input.is_empty() => input[at] = random.next().to_le_bytes()[0],
        2 => drop(input.drain(part)),
        3 => {
            let copy = input[part].to_vec();
            input.splice(at..at, copy);
        }
        // From another seed: what one has and the other does not expect there.
        4 => {
            let other = &seeds[random.below(seeds.len())];
            let copy = other[random.range(other.len())].to_vec();
            input.splice(part, copy);
        }
        5 => {
            let edge = EDGES[random.below(EDGES.len())];
            let width = 1 << random.below(4);
            let bytes = if random.below(2) == 0 { edge.to_le_bytes() } else { edge.to_be_bytes() };
            let bytes = if random.below(2) == 0 { &bytes[..width] } else { &bytes[8 - width..] };
            let end = (at + width).min(input.len());
            input.splice(at..end, bytes.iter().copied());
        }
        // Numbers in text.
        6 => {
            let edge = EDGES[random.below(EDGES.len())].to_string();
            input.splice(part, edge.into_bytes());
        }
        _ => {
            let noise: Vec<u8> = (0..random.below(16)).map(|_| random.next().to_le_bytes()[0]).collect();
            input.splice(at..at, noise);
        }
    }
}
