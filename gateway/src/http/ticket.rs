//! Tickets: a minute of watching one execution, for browsers, whose `EventSource` sends no headers. A key in a URL would end
//! in logs and histories; a ticket there is worth little.
//!
//! It is what it says and an HMAC of that under a key that all gateways share: none of them has to remember it.

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use flux_protocol::{ExecutionId, Timestamp};

const ID: usize = 16;
const TIME: usize = 8;
const MAC: usize = 32;

pub(super) fn make(key: &[u8; 32], execution: ExecutionId, until: Timestamp) -> String {
    let mut ticket = execution.as_bytes().to_vec();
    ticket.extend_from_slice(&until.as_micros().to_be_bytes());
    let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &ticket);
    ticket.extend_from_slice(mac.as_ref());
    URL_SAFE_NO_PAD.encode(ticket)
}

/// The execution that it is for, if it is one of ours and its time is not over.
pub(super) fn check(key: &[u8; 32], text: &str, at: Timestamp) -> Option<ExecutionId> {
    let ticket = URL_SAFE_NO_PAD.decode(text).ok().filter(|ticket| ticket.len() == ID + TIME + MAC)?;
    let (said, mac) = ticket.split_at(ID + TIME);
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), said, mac).ok()?;
    let (id, until) = said.split_at(ID);
    let until = Timestamp::from_micros(i64::from_be_bytes(until.try_into().ok()?));
    (at < until).then_some(ExecutionId::from_bytes(id.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flux_protocol::time::now;

    use super::*;

    #[test]
    fn a_ticket_is_for_one_execution_and_a_while() {
        let (id, until) = (ExecutionId::new(), now());
        let ticket = make(&[7; 32], id, until);
        let before = until.minus(Duration::from_micros(1));
        assert_eq!(check(&[7; 32], &ticket, before), Some(id));
        assert_eq!(check(&[7; 32], &ticket, until), None, "over");
        assert_eq!(check(&[8; 32], &ticket, before), None, "another store's");
        for at in 0..ticket.len() {
            let mut changed = ticket.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("text");
            assert_eq!(check(&[7; 32], &changed, before), None, "changed at {at}");
        }
        for wrong in ["", "x", &ticket[1..], &format!("{ticket}AAAA")] {
            assert_eq!(check(&[7; 32], wrong, before), None, "{wrong}");
        }
    }
}
