//! Server-Sent Events, as far as the API uses them: `id`, `event`, `data`. What a client reads of a gateway, which may be
//! anybody: an event that does not end is not kept for ever.

use crate::limits;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    pub id: Option<String>,
    pub name: String,
    pub data: String,
}

/// Takes bytes as they come and gives events as they are complete.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// A line or an event passed [`limits::EVENT`]: nothing after it can be trusted to be whole.
    too_long: bool,
}

impl Parser {
    /// Whether the stream has to be given up.
    pub fn is_too_long(&self) -> bool {
        self.too_long
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + self.event.data.len() + piece.len() > limits::EVENT {
                self.too_long = true;
            }
            if self.too_long {
                return events;
            }
            self.line.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                events.extend(self.take_line(&line));
            }
        }
        events
    }

    fn take_line(&mut self, line: &[u8]) -> Option<Event> {
        let line = String::from_utf8_lossy(line);
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            let complete = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(complete);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            // A comment (a keep-alive), or a field that we do not use.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, Parser, limits};

    #[test]
    fn an_event_that_does_not_end_is_given_up() {
        let mut parser = Parser::default();
        let begun = b"data: ";
        parser.feed(begun);
        let piece = vec![b'x'; 1 << 20];
        let pieces = (0..).take_while(|_| {
            parser.feed(&piece);
            !parser.is_too_long()
        });
        assert_eq!(pieces.count(), (limits::EVENT - begun.len()) >> 20, "and no sooner");
        assert!(parser.feed(b"\n\n").is_empty());
    }

    fn event(id: &str, name: &str, data: &str) -> Event {
        Event { id: Some(id.to_owned()), name: name.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text =
            ": hello\n\nid: 1.1\nevent: output\ndata: {\"a\":\ndata: \"ä\"}\n\nid:1.2\r\nevent:end\r\ndata:x\r\n\r\n"
                .as_bytes();
        let wanted = vec![event("1.1", "output", "{\"a\":\n\"ä\"}"), event("1.2", "end", "x")];
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let events: Vec<Event> = text.chunks(size).flat_map(|chunk| parser.feed(chunk)).collect();
            assert_eq!(events, wanted, "cut every {size} bytes");
        }
    }
}
