//! Histories that are broken in one way each, which must be refused for that; sound ones that are generated, which must
//! not be; and what is left of those after a mutation, which must be refused again.

use flux_protocol::{ExecutionId, Timestamp};
use flux_testkit::Seed;
use proptest::prelude::*;

use super::*;
use crate::{
    function,
    history::{Answer, Ask, AskKind, Place, Seen},
};

const SECOND: u64 = 1_000_000;

fn at(at_us: u64, event: Event) -> Entry {
    Entry { at_us, event }
}

fn ask(kind: AskKind) -> Ask {
    Ask { kind, function: "f".to_owned(), exit: 0, attempts: 1, key: None, execution: None }
}

fn success(op: u64, attempt: u32, version: u32) -> Seen {
    Seen {
        status: "success".to_owned(),
        attempt,
        version: Some(version),
        error: None,
        exit_code: None,
        output: function::output(op, attempt, version),
    }
}

fn ended(status: &str, attempt: u32, error: &str) -> Seen {
    Seen {
        status: status.to_owned(),
        attempt,
        version: Some(1),
        error: Some(error.to_owned()),
        exit_code: None,
        output: String::new(),
    }
}

fn name(op: u64) -> String {
    format!("exc-{op}")
}

fn began(at_us: u64, op: u64, attempt: u32, version: u32) -> Entry {
    at(at_us, Event::Began { execution: name(op), op, attempt, version })
}

fn finished(at_us: u64, op: u64, attempt: u32) -> Entry {
    at(at_us, Event::Finished { execution: name(op), attempt })
}

fn gone(at_us: u64, op: u64, attempt: u32) -> Entry {
    at(at_us, Event::Gone { execution: name(op), attempt })
}

fn read(at_us: u64, op: u64, seen: Seen) -> Entry {
    at(at_us, Event::Read { execution: name(op), seen })
}

fn struck(at_us: u64, fault: u64, kind: FaultKind, target: &str) -> Entry {
    at(at_us, Event::Struck { fault, kind, target: target.to_owned() })
}

fn accepted(at_us: u64, op: u64) -> Entry {
    at(at_us, Event::Answered { op, answer: Answer::Accepted { execution: name(op) } })
}

/// The whole of it, with its opening and its closing at 100 s. Reads after that are final.
fn history(agents: u32, entries: impl IntoIterator<Item = Entry>) -> Vec<Entry> {
    let opened = Event::Opened { seed: 1, topology: "test".to_owned(), agents, max_losses: 5 };
    let mut all = vec![at(0, opened), at(100 * SECOND, Event::Closing)];
    all.extend(entries);
    all
}

/// One invocation, accepted, run and recorded.
fn sound() -> Vec<Entry> {
    vec![
        at(SECOND, Event::Asked { op: 7, ask: ask(AskKind::Async) }),
        accepted(SECOND + 10, 7),
        began(SECOND + 20, 7, 1, 1),
        finished(SECOND + 30, 7, 1),
        gone(SECOND + 40, 7, 1),
        read(2 * SECOND, 7, success(7, 1, 1)),
        read(101 * SECOND, 7, success(7, 1, 1)),
    ]
}

/// The same, with some entries replaced or added.
fn sound_but(change: impl FnOnce(&mut Vec<Entry>)) -> Vec<Entry> {
    let mut entries = sound();
    change(&mut entries);
    history(1, entries)
}

fn rules(history: &[Entry]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = check(history).violations.iter().map(|violation| violation.rule).collect();
    rules.dedup();
    rules
}

#[track_caller]
fn refused(history: &[Entry], rule: Rule) {
    let report = check(history);
    assert!(report.violations.iter().any(|violation| violation.rule == rule), "{rule:?} is not seen: {report}");
}

#[track_caller]
fn holds(history: &[Entry]) {
    let report = check(history);
    assert!(report.holds(), "{report}");
}

#[test]
fn a_sound_history_holds() {
    holds(&sound_but(|_| {}));
    assert_eq!(check(&sound_but(|_| {})).counts.outcomes["success"], 1);
}

#[test]
fn a_history_without_its_ends_says_nothing() {
    assert_eq!(rules(&[]), [Rule::NoHistory]);
    assert_eq!(rules(&sound()), [Rule::NoHistory]);
}

#[test]
fn what_was_accepted_and_has_no_record_is_lost() {
    refused(&sound_but(|all| all.retain(|e| !matches!(e.event, Event::Read { .. }))), Rule::Lost);
    // A record that was seen before, and is not there in the end.
    refused(&sound_but(|all| drop(all.pop())), Rule::Lost);
    // A wipe is no excuse for what was accepted over HTTP.
    let wiped = struck(SECOND, 0, FaultKind::Wipe, "nats-server");
    refused(&sound_but(|all| *all = vec![all[0].clone(), all[1].clone(), wiped.clone()]), Rule::Lost);
}

#[test]
fn a_record_that_is_open_in_the_end_is_lost() {
    let open = Seen { status: "running".to_owned(), output: String::new(), ..success(7, 1, 1) };
    refused(
        &sound_but(|all| all.retain(|e| !matches!(e.event, Event::Read { .. }))).tap(read(101 * SECOND, 7, open)),
        Rule::Lost,
    );
}

#[test]
fn a_direct_publish_may_go_with_a_wiped_queue_and_only_with_it() {
    let direct = Ask { execution: Some(name(7)), ..ask(AskKind::Direct) };
    for bare in [false, true] {
        let ask = Ask { execution: direct.execution.clone().filter(|_| !bare), ..direct.clone() };
        let stored = [
            at(SECOND, Event::Asked { op: 7, ask }),
            at(SECOND + 1, Event::Answered { op: 7, answer: Answer::Stored { place: None } }),
        ];
        refused(&history(1, stored.clone()), Rule::Lost);
        let wiped = history(1, stored.clone()).tap(struck(SECOND + 2, 0, FaultKind::Wipe, "nats-server"));
        holds(&wiped);
        assert_eq!(check(&wiped).counts.wiped, 1);
        let wiped_before = history(1, stored)
            .tap(struck(10, 0, FaultKind::Wipe, "nats-server"))
            .tap(at(20, Event::Lifted { fault: 0 }));
        refused(&wiped_before, Rule::Lost);
    }
}

#[test]
fn a_direct_publish_that_never_said_whose_it_is_is_known_by_its_place() {
    let id = ExecutionId::derived("FLUX_INVOKE", 12, Timestamp::from_micros(1_700_000_000_123_456));
    let lost = Seen { output: String::new(), ..ended("failed", 7, "agent_lost") };
    for (sequence, is_there) in [(12, true), (13, false)] {
        let place = Some(Place { stream: "FLUX_INVOKE".to_owned(), sequence });
        let mut all = vec![
            at(SECOND, Event::Asked { op: 7, ask: ask(AskKind::Direct) }),
            at(SECOND + 1, Event::Answered { op: 7, answer: Answer::Stored { place } }),
        ];
        all.extend((0..6).map(|fault| struck(SECOND * (2 + fault), fault, FaultKind::Kill, "worker")));
        let all = history(1, all).tap(at(101 * SECOND, Event::Read { execution: id.to_string(), seen: lost.clone() }));
        if is_there { holds(&all) } else { refused(&all, Rule::Lost) }
    }
}

#[test]
fn an_outcome_that_changes_is_a_second_one() {
    refused(&sound_but(|all| all[5] = read(2 * SECOND, 7, ended("failed", 1, "exit"))), Rule::SecondOutcome);
    let opened_again = Seen { status: "running".to_owned(), ..success(7, 1, 1) };
    refused(&sound_but(|all| all.insert(6, read(3 * SECOND, 7, opened_again))), Rule::SecondOutcome);
    // What a late cancel was told is an outcome as well.
    let cancel = Ask { execution: Some(name(7)), ..ask(AskKind::Cancel) };
    let told = Answer::AlreadyEnded { status: "failed".to_owned() };
    let late =
        [at(3 * SECOND, Event::Asked { op: 8, ask: cancel }), at(4 * SECOND, Event::Answered { op: 8, answer: told })];
    refused(&sound_but(|all| all.extend(late)), Rule::SecondOutcome);
}

/// A call that ran twice: answered with the first attempt, recorded with the second.
fn answered_with_another_attempt(version: u32, fault: Option<Entry>) -> Vec<Entry> {
    let answer = Answer::Outcome { execution: name(7), seen: success(7, 1, version) };
    let entries = [
        at(SECOND, Event::Asked { op: 7, ask: ask(AskKind::Call) }),
        began(SECOND + 20, 7, 1, 1),
        finished(SECOND + 30, 7, 1),
        gone(SECOND + 40, 7, 1),
        at(SECOND + 50, Event::Answered { op: 7, answer }),
        began(3 * SECOND, 7, 2, 1),
        finished(3 * SECOND + 30, 7, 2),
        gone(3 * SECOND + 40, 7, 2),
        read(101 * SECOND, 7, success(7, 2, 1)),
    ];
    history(1, entries.into_iter().chain(fault))
}

#[test]
fn a_call_is_answered_with_what_its_record_says_unless_a_fault_fell_between() {
    refused(&answered_with_another_attempt(1, None), Rule::SecondOutcome);
    holds(&answered_with_another_attempt(1, Some(struck(SECOND + 60, 0, FaultKind::Kill, "worker"))));
    let version = answered_with_another_attempt(2, Some(struck(SECOND + 60, 0, FaultKind::Kill, "worker")));
    refused(&version, Rule::VersionsMixed);
}

#[test]
fn an_answered_call_is_lost_only_with_all_that_knew_of_it() {
    let lost = |agents, kills: &[(u64, &str)]| {
        let answer = Answer::Outcome { execution: name(7), seen: success(7, 1, 1) };
        let entries = [
            at(SECOND, Event::Asked { op: 7, ask: ask(AskKind::Call) }),
            began(SECOND + 20, 7, 1, 1),
            finished(SECOND + 30, 7, 1),
            gone(SECOND + 40, 7, 1),
            at(SECOND + 50, Event::Answered { op: 7, answer }),
            read(101 * SECOND, 7, ended("failed", 1, "agent_lost")),
        ];
        let kills = kills.iter().zip(0..);
        let kills = kills.map(|((at_us, target), fault)| struck(*at_us, fault, FaultKind::Kill, target));
        history(agents, entries.into_iter().chain(kills))
    };
    holds(&lost(1, &[(SECOND + 49, "root")]));
    holds(&lost(1, &[(SECOND + 60, "worker"), (SECOND + 70, "nats-server")]));
    holds(&lost(1, &[(SECOND + 60, "worker"), (2 * SECOND, "nats-server")]));
    let again_and_again =
        [(SECOND + 60, "worker"), (3 * SECOND, "worker"), (11 * SECOND / 2, "worker"), (8 * SECOND, "nats-server")];
    holds(&lost(1, &again_and_again));
    let wiped = |at_us| lost(3, &[]).tap(struck(at_us, 0, FaultKind::Wipe, "nats-server"));
    holds(&wiped(SECOND + 40).tap(at(2 * SECOND, Event::Lifted { fault: 0 })));
    refused(&wiped(3 * SECOND).tap(at(4 * SECOND, Event::Lifted { fault: 0 })), Rule::SecondOutcome);
    for (agents, kills) in [
        (1, vec![]),
        (1, vec![(SECOND + 60, "worker")]),
        (1, vec![(SECOND + 60, "nats-server")]),
        (1, vec![(9 * SECOND, "root")]),
        (1, vec![(SECOND + 60, "worker"), (9 * SECOND, "nats-server")]),
        (1, vec![(2 * SECOND, "worker"), (2 * SECOND, "nats-server")]),
        (3, vec![(SECOND + 49, "root")]),
    ] {
        refused(&lost(agents, &kills), Rule::SecondOutcome);
        refused(&lost(agents, &kills), Rule::Outcome);
    }
}

#[test]
fn attempts_grow() {
    let again = |attempt, kills: &[(u64, &str)]| {
        let mut all = sound();
        let kills = kills.iter().enumerate();
        all.extend(kills.map(|(n, (at_us, target))| struck(*at_us, n as u64, FaultKind::Kill, target)));
        all.splice(2..5, [began(SECOND + 20, 7, 1, 1), gone(SECOND + 40, 7, 1), began(9 * SECOND, 7, attempt, 1)]);
        all.retain(|e| !matches!(e.event, Event::Read { .. }));
        all.extend([finished(10 * SECOND, 7, attempt), gone(10 * SECOND, 7, attempt)]);
        history(1, all).tap(read(101 * SECOND, 7, success(7, attempt, 1)))
    };
    holds(&again(2, &[]));
    refused(&again(1, &[]), Rule::Attempts);
    refused(&again(0, &[]), Rule::Attempts);
    // Only the agent died, or only the queue: somebody remembers.
    refused(&again(1, &[(SECOND + 40, "worker")]), Rule::Attempts);
    refused(&again(1, &[(SECOND + 40, "nats-server")]), Rule::Attempts);
    // Both, but the queue long after it was delivered.
    refused(&again(1, &[(4 * SECOND, "nats-server"), (5 * SECOND, "worker")]), Rule::Attempts);
    let forgotten = again(1, &[(SECOND + 40, "nats-server"), (5 * SECOND, "worker")]);
    holds(&forgotten);
    assert_eq!(check(&forgotten).counts.numbers_repeated, 1);
}

#[test]
fn rabbitmq_does_not_count_how_often_a_call_was_delivered() {
    let again = |topology: &str, kind, attempt| {
        let answer = Answer::Outcome { execution: name(7), seen: success(7, attempt, 1) };
        let entries = [
            at(SECOND, Event::Asked { op: 7, ask: ask(kind) }),
            began(SECOND + 20, 7, 1, 1),
            gone(SECOND + 30, 7, 1),
            began(2 * SECOND, 7, attempt, 1),
            gone(2 * SECOND + 30, 7, attempt),
            began(3 * SECOND, 7, attempt, 1),
            finished(3 * SECOND + 30, 7, attempt),
            gone(3 * SECOND + 40, 7, attempt),
            at(3 * SECOND + 50, Event::Answered { op: 7, answer }),
            read(101 * SECOND, 7, success(7, attempt, 1)),
        ];
        let mut all = history(3, entries);
        for entry in &mut all {
            if let Event::Opened { topology: opened, .. } = &mut entry.event {
                topology.clone_into(opened);
            }
        }
        all
    };
    holds(&again("postgres-rabbitmq", AskKind::Call, 2));
    assert_eq!(check(&again("postgres-rabbitmq", AskKind::Call, 2)).counts.numbers_repeated, 1);
    refused(&again("postgres-rabbitmq", AskKind::Call, 3), Rule::Attempts);
    refused(&again("postgres-rabbitmq", AskKind::Async, 2), Rule::Attempts);
    refused(&again("redis", AskKind::Call, 2), Rule::Attempts);
}

#[test]
fn a_server_that_stood_still_may_send_an_attempt_late() {
    // The second attempt started while it stood still, and the first when it went on.
    let numbered = |agents, kind, target: &str, lifted, after| {
        let entries = [
            at(SECOND, Event::Asked { op: 7, ask: ask(AskKind::Async) }),
            accepted(SECOND + 10, 7),
            struck(SECOND + 20, 0, kind, target),
            began(3 * SECOND, 7, 2, 1),
            finished(3 * SECOND + 30, 7, 2),
            gone(3 * SECOND + 40, 7, 2),
            at(lifted, Event::Lifted { fault: 0 }),
            began(5 * SECOND, 7, after, 1),
            finished(5 * SECOND + 30, 7, after),
            gone(5 * SECOND + 40, 7, after),
            read(101 * SECOND, 7, success(7, 2, 1)),
        ];
        history(agents, entries)
    };
    let late = |agents, kind, target: &str, lifted| numbered(agents, kind, target, lifted, 1);
    let held = late(3, FaultKind::Pause, "nats-server", 5 * SECOND - 9);
    holds(&held);
    let counts = check(&held).counts;
    assert_eq!((counts.sent_late, counts.numbers_repeated), (1, 0));
    refused(&late(1, FaultKind::Pause, "nats-server", 5 * SECOND - 9), Rule::Attempts);
    refused(&late(3, FaultKind::Pause, "agent", 5 * SECOND - 9), Rule::Attempts);
    refused(&late(3, FaultKind::StalledLink, "nats-server", 5 * SECOND - 9), Rule::Attempts);
    for cut in [FaultKind::Partition, FaultKind::OneWayLoss] {
        let held = late(3, cut, "from the leader", 5 * SECOND - 9);
        holds(&held);
        assert_eq!(check(&held).counts.sent_late, 1);
        refused(&late(3, cut, "from the leader", 2 * SECOND), Rule::Attempts);
        refused(&numbered(3, cut, "from the leader", 5 * SECOND - 9, 2), Rule::Attempts);
    }
    refused(&late(3, FaultKind::SlowLink, "between nats-servers", 5 * SECOND - 9), Rule::Attempts);
    // The same number twice is no earlier attempt.
    refused(&numbered(3, FaultKind::Pause, "nats-server", 5 * SECOND - 9, 2), Rule::Attempts);
    // Long after it, or before it went on.
    refused(&late(3, FaultKind::Pause, "nats-server", 2 * SECOND), Rule::Attempts);
    refused(&late(3, FaultKind::Pause, "nats-server", 9 * SECOND), Rule::Attempts);
}

#[test]
fn nothing_starts_after_a_confirmed_cancel() {
    let cancelled = |start_us, seen: Seen| {
        let cancel = Ask { execution: Some(name(7)), ..ask(AskKind::Cancel) };
        history(1, sound()[..2].to_vec())
            .tap(at(2 * SECOND, Event::Asked { op: 8, ask: cancel }))
            .tap(at(3 * SECOND, Event::Answered { op: 8, answer: Answer::Confirmed }))
            .tap(began(start_us, 7, 1, 1))
            .tap(gone(start_us + 10, 7, 1))
            .tap(read(101 * SECOND, 7, seen))
    };
    holds(&cancelled(2 * SECOND, ended("cancelled", 1, "cancelled")));
    refused(&cancelled(4 * SECOND, ended("cancelled", 1, "cancelled")), Rule::StartedAfterCancel);
    refused(&cancelled(2 * SECOND, success(7, 1, 1)), Rule::StartedAfterCancel);
}

#[test]
fn one_execution_is_of_one_version() {
    refused(&sound_but(|all| all[6] = read(101 * SECOND, 7, success(7, 1, 2))), Rule::VersionsMixed);
    let mixed = sound_but(|all| {
        all.splice(2..5, [began(SECOND + 20, 7, 1, 2), gone(SECOND + 25, 7, 1), began(2 * SECOND - 9, 7, 2, 1)]);
    });
    refused(&mixed, Rule::VersionsMixed);
}

#[test]
fn a_success_ran_to_its_end_and_has_its_own_output() {
    refused(&sound_but(|all| drop(all.drain(2..5))), Rule::SuccessWithoutRun);
    refused(&sound_but(|all| drop(all.remove(3))), Rule::SuccessWithoutRun);
    let anothers = Seen { output: function::output(8, 1, 1), ..success(7, 1, 1) };
    refused(&sound_but(|all| all[6] = read(101 * SECOND, 7, anothers)), Rule::SuccessWithoutRun);
}

#[test]
fn an_outcome_has_its_reason_in_the_history() {
    let recorded_as = |seen: Seen| {
        sound_but(|all| {
            all.retain(|e| !matches!(e.event, Event::Read { .. }));
            all.push(read(101 * SECOND, 7, seen));
        })
    };
    for error in ["exit", "signal", "timeout", "sandbox", "agent_lost", "expired"] {
        refused(&recorded_as(ended("failed", 1, error)), Rule::Outcome);
    }
    refused(&recorded_as(ended("cancelled", 1, "cancelled")), Rule::Outcome);
    // Told to fail, it fails with that code, after all its attempts.
    let told = |exit, attempts, seen: Seen| {
        let mut all = recorded_as(seen);
        for entry in &mut all {
            if let Event::Asked { ask, .. } = &mut entry.event {
                (ask.exit, ask.attempts) = (exit, attempts);
            }
        }
        all
    };
    let exit = |code| Seen { exit_code: Some(code), ..ended("failed", 1, "exit") };
    holds(&told(3, 1, exit(3)));
    refused(&told(3, 1, exit(4)), Rule::Outcome);
    refused(&told(3, 2, exit(3)), Rule::Outcome);
    refused(&told(3, 1, success(7, 1, 1)), Rule::Outcome);
}

#[test]
fn losses_are_a_reason_once_there_were_more_than_may_be() {
    let lost = |kills: u64| {
        let mut all = history(1, sound()[..2].to_vec());
        all.extend((0..kills).map(|n| struck((n + 2) * SECOND, n, FaultKind::Kill, "worker")));
        all.extend((1..=kills).flat_map(|n| {
            let attempt = u32::try_from(n).expect("few");
            [began((n + 1) * SECOND + 9, 7, attempt, 1), gone((n + 1) * SECOND + 99, 7, attempt)]
        }));
        all.tap(read(101 * SECOND, 7, ended("failed", 6, "agent_lost")))
    };
    holds(&lost(6));
    refused(&lost(3), Rule::Outcome);
}

#[test]
fn two_attempts_do_not_live_at_once() {
    let together = |agents, until_us: u64, fault: Option<Entry>| {
        let entries = [
            at(SECOND, Event::Asked { op: 7, ask: ask(AskKind::Async) }),
            accepted(SECOND + 10, 7),
            began(2 * SECOND, 7, 1, 1),
            began(4 * SECOND, 7, 2, 1),
            gone(until_us, 7, 1),
            finished(9 * SECOND, 7, 2),
            gone(9 * SECOND, 7, 2),
            read(101 * SECOND, 7, success(7, 2, 1)),
        ];
        history(agents, entries.into_iter().chain(fault))
    };
    let kill = || Some(struck(3 * SECOND, 0, FaultKind::Kill, "agent"));
    let pause = || Some(struck(3 * SECOND, 0, FaultKind::Pause, "agent"));
    holds(&together(3, 4 * SECOND, None));
    refused(&together(3, 5 * SECOND, None), Rule::RanAtOnce);
    holds(&together(3, 6 * SECOND, kill()));
    refused(&together(3, 8 * SECOND, kill()), Rule::RanAtOnce);
    holds(&together(3, 8 * SECOND, pause()));
    // It was over long before the first was.
    let lifted = |lifted_us| {
        let mut entries = together(3, 8 * SECOND, pause());
        entries.push(at(lifted_us, Event::Lifted { fault: 0 }));
        entries
    };
    holds(&lifted(5 * SECOND + 20));
    refused(&lifted(5 * SECOND - 20), Rule::RanAtOnce);
    // Another held it before it could notice, or only when it had.
    let held_again = |from_us| {
        let mut entries = lifted(5 * SECOND - 20);
        entries.push(struck(from_us, 1, FaultKind::Pause, "agent"));
        entries.push(at(from_us + SECOND, Event::Lifted { fault: 1 }));
        entries
    };
    holds(&held_again(7 * SECOND));
    refused(&held_again(8 * SECOND - 10), Rule::RanAtOnce);
    // One agent knows what it runs itself.
    refused(&together(1, 8 * SECOND, pause()), Rule::RanAtOnce);
}

#[test]
fn one_operation_is_one_execution() {
    let twice = Answer::Accepted { execution: name(8) };
    let again = [
        at(SECOND + 15, Event::Answered { op: 7, answer: twice }),
        read(101 * SECOND, 8, ended("cancelled", 1, "cancelled")),
    ];
    refused(&sound_but(|all| all.extend(again)), Rule::TwiceAccepted);
    let started = at(SECOND + 15, Event::Began { execution: name(8), op: 7, attempt: 1, version: 1 });
    refused(&sound_but(|all| all.push(started)), Rule::TwiceAccepted);
}

/// A history of many executions with faults, as a Flux that keeps its promises would give it.
fn generated(seed: u64, operations: u64) -> Vec<Entry> {
    let mut seed = Seed::new(seed);
    let mut all = Vec::new();
    for op in 1..=operations {
        let mut now = SECOND + seed.below(60 * SECOND);
        let version = 1 + u32::try_from(seed.below(3)).expect("few");
        let kind = *seed.pick(&[AskKind::Async, AskKind::Call, AskKind::Direct]);
        let exit = if seed.chance(20) { 3 } else { 0 };
        let execution = (kind == AskKind::Direct && seed.chance(50)).then(|| name(op));
        all.push(at(now, Event::Asked { op, ask: Ask { exit, execution, ..ask(kind) } }));
        match kind {
            AskKind::Async => all.push(accepted(now + 50, op)),
            AskKind::Direct => all.push(at(now + 50, Event::Answered { op, answer: Answer::Stored { place: None } })),
            _ => {}
        }
        let lost = u32::try_from(seed.below(3)).expect("few");
        for attempt in 1..=lost {
            now += 1_000 + seed.below(SECOND);
            all.push(began(now, op, attempt, version));
            now += 1_000;
            all.push(struck(now, op * 10 + u64::from(attempt), FaultKind::Kill, "worker"));
            all.push(gone(now + 500, op, attempt));
        }
        now += 1_000 + seed.below(SECOND);
        let attempt = lost + 1;
        all.extend([began(now, op, attempt, version), finished(now + 100, op, attempt), gone(now + 200, op, attempt)]);
        let output = function::output(op, attempt, version);
        let end = if exit == 0 {
            success(op, attempt, version)
        } else {
            Seen { exit_code: Some(exit.into()), version: Some(version), output, ..ended("failed", attempt, "exit") }
        };
        if kind == AskKind::Call {
            let answer = Answer::Outcome { execution: name(op), seen: end.clone() };
            all.push(at(now + 300, Event::Answered { op, answer }));
        }
        if seed.chance(50) {
            all.push(read(now + 400, op, end.clone()));
        }
        all.push(read(101 * SECOND, op, end));
    }
    let mut all = history(1, all);
    // The order of the lines says nothing.
    seed.shuffle(&mut all);
    all
}

/// Breaks one execution in the way of this number; what that is called.
fn mutate(all: &mut Vec<Entry>, op: u64, way: u8) -> Rule {
    let is_final = |e: &Entry| {
        e.at_us > 100 * SECOND && matches!(&e.event, Event::Read { execution, .. } if *execution == name(op))
    };
    let end = all.iter().position(is_final).expect("a final record");
    let last = all
        .iter()
        .filter_map(|e| match &e.event {
            Event::Began { execution, attempt, .. } if *execution == name(op) => Some((e.at_us, *attempt)),
            _ => None,
        })
        .max()
        .expect("it started");
    let Event::Read { seen, .. } = &mut all[end].event else { unreachable!("as it was found") };
    match way {
        0 => {
            seen.status = "running".to_owned();
            Rule::Lost
        }
        1 => {
            seen.version = Some(9);
            Rule::VersionsMixed
        }
        2 => {
            "cancelled".clone_into(&mut seen.status);
            Rule::Outcome
        }
        3 => {
            all.push(at(last.0 + 50, Event::Began { execution: name(op), op, attempt: last.1, version: 1 }));
            Rule::Attempts
        }
        4 => {
            let other = Seen { output: "other".to_owned(), ..seen.clone() };
            all.push(read(102 * SECOND, op, other));
            Rule::SecondOutcome
        }
        _ => {
            all.push(at(last.0 + 9, Event::Began { execution: "exc-other".to_owned(), op, attempt: 1, version: 1 }));
            Rule::TwiceAccepted
        }
    }
}

proptest! {
    #[test]
    fn sound_histories_hold_and_their_mutations_do_not(seed in any::<u64>(), broken in 1..=12_u64, way in 0..6_u8) {
        let mut all = generated(seed, 12);
        let report = check(&all);
        prop_assert!(report.holds(), "{report}");
        prop_assert_eq!(report.counts.executions, 12);
        let rule = mutate(&mut all, broken, way);
        let report = check(&all);
        prop_assert!(report.violations.iter().any(|v| v.rule == rule), "{:?} is not seen: {}", rule, report);
    }
}

/// With one more entry.
trait Tap {
    fn tap(self, entry: Entry) -> Self;
}

impl Tap for Vec<Entry> {
    fn tap(mut self, entry: Entry) -> Self {
        self.push(entry);
        self
    }
}
