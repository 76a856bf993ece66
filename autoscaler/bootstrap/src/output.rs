//! What a step printed: its end, without secrets.

use std::collections::VecDeque;

use flux_protocol::limits;
use flux_secrets::{Patterns, Redactor};

/// Both streams, as they came.
pub(crate) struct Output {
    redactor: Option<Redactor>,
    kept: VecDeque<u8>,
    dropped: u64,
}

impl Output {
    pub(crate) fn new(hidden: Option<Patterns>) -> Self {
        Self { redactor: hidden.map(Redactor::new), kept: VecDeque::new(), dropped: 0 }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        match &mut self.redactor {
            Some(redactor) => {
                let shown = redactor.push(bytes);
                self.keep(&shown);
            }
            None => self.keep(bytes),
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend(bytes);
        let over = self.kept.len().saturating_sub(limits::BOOTSTRAP_OUTPUT);
        self.kept.drain(..over);
        self.dropped += over as u64;
    }

    pub(crate) fn finish(mut self) -> String {
        let rest = self.redactor.as_mut().map(Redactor::finish).unwrap_or_default();
        self.keep(&rest);
        let text = String::from_utf8_lossy(self.kept.make_contiguous()).trim_end().to_owned();
        if self.dropped == 0 { text } else { format!("[{} bytes before this]\n{text}", self.dropped) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_what_is_secret_is_not() {
        let mut output = Output::new(Patterns::of([b"hunter22".as_slice()]));
        output.push(&vec![b'x'; limits::BOOTSTRAP_OUTPUT]);
        // In two pieces.
        output.push(b" password: hunt");
        output.push(b"er22\n");
        let text = output.finish();
        assert!(text.starts_with('[') && text.ends_with(" password: ***"), "{text}");
        assert!(text.len() < limits::BOOTSTRAP_OUTPUT + 64);
    }

    #[test]
    fn little_is_kept_whole() {
        let mut output = Output::new(None);
        output.push(b"E: no such package \xff\n");
        assert_eq!(output.finish(), "E: no such package \u{fffd}");
    }
}
