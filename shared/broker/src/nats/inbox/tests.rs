use super::*;

const CONSUMER: &str = "FLUX_CALL.f";

/// Whether what is delivered then may be late, to whoever pulled.
fn may_be_late(inbox: &Inbox, at: Instant) -> bool {
    inbox.may_be_late(at, inbox.routes.lock().pulls.get(CONSUMER))
}

#[test]
fn what_comes_after_an_overdue_end_or_heartbeat_may_be_late() {
    let (inbox, _given_back) = Inbox::new("_INBOX.test", None);
    let begun = Instant::now();
    let after = |ms| begun + Duration::from_millis(ms);
    let pull = inbox.open_pull(CONSUMER, 1, Duration::from_secs(1), false);
    assert!(!may_be_late(&inbox, begun), "its end is not due");
    assert!(may_be_late(&inbox, after(5_000)));
    drop(pull);
    assert!(may_be_late(&inbox, after(6_500)), "what lay there may still come");
    assert!(!may_be_late(&inbox, after(7_500)));

    let (inbox, _given_back) = Inbox::new("_INBOX.test", None);
    let _beats = inbox.open_pull(CONSUMER, 1, Duration::from_secs(600), true);
    assert!(!may_be_late(&inbox, begun), "it was just opened");
    assert!(may_be_late(&inbox, after(60_000)), "three seconds without a heartbeat");
}

#[test]
fn what_comes_after_a_pull_that_was_given_up_may_be_late() {
    let (inbox, _given_back) = Inbox::new("_INBOX.test", None);
    let begun = Instant::now();
    let pull = inbox.open_pull(CONSUMER, 1, Duration::from_secs(1), false);
    let given_up = begun + Duration::from_secs(60);
    inbox.end_overdue(given_up);
    drop(pull);
    assert!(may_be_late(&inbox, given_up + STALLED_AT_MOST - Duration::from_secs(1)));
    assert!(!may_be_late(&inbox, given_up + STALLED_AT_MOST + Duration::from_secs(1)), "by then it would have come");
}
