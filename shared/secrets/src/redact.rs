//! Hides secrets in a stream of output that comes in pieces.
//!
//! What may be the beginning of a secret is held back until more comes: at most as many bytes as the longest secret has,
//! less one. Everything else goes on at once.

use crate::Patterns;

/// What stands in the place of a secret.
const MASK: &[u8] = b"***";

/// One stream.
#[derive(Debug)]
pub struct Redactor {
    patterns: Patterns,
    held: Vec<u8>,
}

impl Redactor {
    pub fn new(patterns: Patterns) -> Self {
        Self { patterns, held: Vec::new() }
    }

    /// What can be shown now that `piece` came.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(piece);
        let keep_from = self.first_that_may_begin(&all);
        let (shown, rest) = self.replaced(&all, keep_from);
        self.held = all[rest..].to_vec();
        shown
    }

    /// The rest, at the end of the stream.
    pub fn finish(&mut self) -> Vec<u8> {
        let all = std::mem::take(&mut self.held);
        self.replaced(&all, all.len()).0
    }

    /// All of something at once.
    pub fn whole(patterns: &Patterns, bytes: &[u8]) -> Vec<u8> {
        let mut redactor = Self::new(patterns.clone());
        let mut shown = redactor.push(bytes);
        shown.append(&mut redactor.finish());
        shown
    }

    /// Where the first piece begins that may become a secret, or a longer one than it is: its bytes are undecided.
    fn first_that_may_begin(&self, all: &[u8]) -> usize {
        let inner = self.patterns.inner();
        let earliest = all.len().saturating_sub(inner.longest.saturating_sub(1));
        (earliest..all.len())
            .find(|at| {
                inner.patterns.iter().any(|pattern| pattern.len() > all.len() - at && pattern.starts_with(&all[*at..]))
            })
            .unwrap_or(all.len())
    }

    /// `all` up to `until` with its secrets replaced, and how far that is: a secret that ends beyond is replaced whole.
    fn replaced(&self, all: &[u8], until: usize) -> (Vec<u8>, usize) {
        let inner = self.patterns.inner();
        let (mut shown, mut at) = (Vec::with_capacity(until), 0);
        for found in inner.finder.find_iter(all) {
            if found.start() >= until {
                break;
            }
            shown.extend_from_slice(&all[at..found.start()]);
            shown.extend_from_slice(MASK);
            at = found.end();
        }
        if at < until {
            shown.extend_from_slice(&all[at..until]);
            at = until;
        }
        (shown, at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patterns(values: &[&str]) -> Patterns {
        Patterns::of(values.iter().map(|value| value.as_bytes())).expect("something to hide")
    }

    fn in_pieces(patterns: &Patterns, text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut redactor = Redactor::new(patterns.clone());
        let (mut shown, mut at) = (Vec::new(), 0);
        for cut in cuts {
            let next = (at + cut).min(text.len());
            shown.extend(redactor.push(&text[at..next]));
            at = next;
        }
        shown.extend(redactor.push(&text[at..]));
        shown.extend(redactor.finish());
        shown
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_is_cut() {
        let patterns = patterns(&["hunter2", "correct horse"]);
        let text = b"a hunter2 and correct horsehunter2, hunter, correct hors";
        for cut in 0..text.len() {
            let shown = in_pieces(&patterns, text, &[cut]);
            assert_eq!(shown, b"a *** and ******, hunter, correct hors", "cut at {cut}");
        }
        let bytes: Vec<usize> = vec![1; text.len()];
        assert_eq!(in_pieces(&patterns, text, &bytes), b"a *** and ******, hunter, correct hors");
    }

    #[test]
    fn what_cannot_begin_one_is_not_held_back() {
        let mut redactor = Redactor::new(patterns(&["hunter2"]));
        assert_eq!(redactor.push(b"progress: 10%\n"), b"progress: 10%\n");
        assert_eq!(redactor.push(b"the hunt"), b"the ");
        assert_eq!(redactor.push(b" is on"), b"hunt is on");
        assert_eq!(redactor.finish(), b"");
    }

    #[test]
    fn one_within_another_and_one_that_begins_another() {
        let patterns = patterns(&["abcd", "abcdefgh", "cdef"]);
        for (text, expected) in
            [("abcdefgh", "***"), ("abcdefg", "***efg"), ("xabcd", "x***"), ("abcdef", "***ef"), ("xcdefx", "x***x")]
        {
            for cut in 0..=text.len() {
                let shown = in_pieces(&patterns, text.as_bytes(), &[cut]);
                let shown = String::from_utf8(shown).expect("text");
                assert_eq!(shown, expected, "{text} cut at {cut}");
            }
        }
    }

    #[test]
    fn forms_of_a_value() {
        let pem = "-----BEGIN KEY-----\nMIIBVQ/abc\n-----END KEY-----\n";
        let patterns = patterns(&["say \"hi\"\tthere", pem]);
        let whole = |text: &str| String::from_utf8(Redactor::whole(&patterns, text.as_bytes())).expect("text");
        assert_eq!(whole(r#"{"a": "say \"hi\"\tthere"}"#), r#"{"a": "***"}"#);
        assert_eq!(whole("key MIIBVQ/abc, "), "key ***, ", "a line of it");
        assert_eq!(whole(&format!("{pem}!")), "***!");
        assert!(Patterns::of([&b"abc"[..], b""]).is_none(), "too short to hide");
    }

    proptest! {
        /// However the output is cut into pieces, what is shown is the same as for all of it at once, and no secret is in it.
        #[test]
        fn cutting_changes_nothing(
            text in "[abAB ]{0,60}",
            values in prop::collection::vec("[abAB]{4,8}", 1..4),
            cuts in prop::collection::vec(0_usize..8, 0..20),
        ) {
            let values: Vec<&[u8]> = values.iter().map(String::as_bytes).collect();
            let patterns = Patterns::of(values.clone()).expect("something to hide");
            let whole = in_pieces(&patterns, text.as_bytes(), &[]);
            let cut = in_pieces(&patterns, text.as_bytes(), &cuts);
            for value in values {
                prop_assert!(!whole.windows(value.len()).any(|window| window == value));
                prop_assert!(!cut.windows(value.len()).any(|window| window == value));
            }
            prop_assert_eq!(cut, whole);
        }
    }
}
