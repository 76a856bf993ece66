//! The reply subject of a delivery, which is where it is acked and where JetStream says what it is.
//!
//! `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<timestamp ns>.<pending>`, or with
//! `<domain>.<account hash>` before the stream and perhaps a random token behind (nats-server, ADR-15).

use flux_protocol::Timestamp;

/// What the subject says. Borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AckSubject<'s> {
    /// `<stream>.<consumer>`.
    pub(super) consumer: &'s str,
    /// Deliveries so far, this one included.
    pub(super) delivered: u64,
    pub(super) stream_sequence: u64,
    pub(super) stored_at: Timestamp,
    /// The same in full, in nanoseconds since the epoch.
    pub(super) stored_ns: u64,
    pub(super) pending: u64,
}

pub(super) const PREFIX: &str = "$JS.ACK.";

impl<'s> AckSubject<'s> {
    pub(super) fn parse(subject: &'s str) -> Option<Self> {
        let rest = subject.strip_prefix(PREFIX)?;
        let mut tokens = [""; 10];
        let mut count = 0;
        for token in rest.split('.') {
            *tokens.get_mut(count)? = token;
            count += 1;
        }
        let first = match count {
            7 => 0,
            9 | 10 => 2,
            _ => return None,
        };
        let [stream, consumer] = [tokens[first], tokens[first + 1]];
        if stream.is_empty() || consumer.is_empty() {
            return None;
        }
        // Both are slices of `rest` with one dot between them.
        let start = stream.as_ptr() as usize - rest.as_ptr() as usize;
        let nanos: i64 = tokens[first + 5].parse().ok()?;
        Some(Self {
            consumer: rest.get(start..start + stream.len() + 1 + consumer.len())?,
            delivered: tokens[first + 2].parse().ok()?,
            stream_sequence: tokens[first + 3].parse().ok()?,
            stored_at: Timestamp::from_micros(nanos.div_euclid(1_000)),
            stored_ns: u64::try_from(nanos).ok()?,
            pending: tokens[first + 6].parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_forms_are_read() {
        let short = "$JS.ACK.FLUX_CALL.hello.3.77.9.1700000000123456789.12";
        let read = AckSubject::parse(short).expect("the short form");
        assert_eq!(read.consumer, "FLUX_CALL.hello");
        assert_eq!((read.delivered, read.stream_sequence, read.pending), (3, 77, 12));
        assert_eq!(read.stored_at, Timestamp::from_micros(1_700_000_000_123_456));
        assert_eq!(read.stored_ns, 1_700_000_000_123_456_789);

        for long in [
            "$JS.ACK._.ACCHASH.FLUX_CALL.hello.3.77.9.1700000000123456789.12",
            "$JS.ACK.hub.ACCHASH.FLUX_CALL.hello.3.77.9.1700000000123456789.12.rnd",
        ] {
            assert_eq!(AckSubject::parse(long), Some(read), "{long}");
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            stream in "[A-Za-z0-9_-]{1,32}",
            consumer in "[A-Za-z0-9_-]{1,64}",
            delivered in 1_u64..,
            sequence in 1_u64..,
            nanos in 0_i64..,
            pending: u64,
            domain in proptest::option::of("[A-Z_]{1,8}"),
        ) {
            let middle = domain.map(|d| format!("{d}.HASH.")).unwrap_or_default();
            let subject = format!("$JS.ACK.{middle}{stream}.{consumer}.{delivered}.{sequence}.5.{nanos}.{pending}");
            let read = AckSubject::parse(&subject).expect("a well-formed subject");
            let place = format!("{stream}.{consumer}");
            prop_assert_eq!(read.consumer, place.as_str());
            prop_assert_eq!(read.delivered, delivered);
            prop_assert_eq!(read.stream_sequence, sequence);
            prop_assert_eq!(read.stored_at.as_micros(), nanos / 1_000);
            prop_assert_eq!(read.pending, pending);
        }

        #[test]
        fn nothing_makes_it_panic(text in "(\\$JS\\.ACK\\.)?[ -~.]{0,120}") {
            let _ = AckSubject::parse(&text);
        }
    }
}
