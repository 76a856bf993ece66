//! What a reply to a sync call is worth. Pure.
//!
//! Knowing the reply subject is the permission to answer, and an agent that lost its delivery still knows it. So a
//! reply counts only for this execution, and only from the agent that is known to hold the attempt it speaks of, once
//! one is known.

use flux_protocol::{AgentId, ExecutionId, Phase, StatusMessage};

/// Attempts whose holders are remembered; more losses than this end the execution anyway.
const REMEMBERED: usize = 8;

/// Who holds which attempt, as far as they said.
#[derive(Debug, Default)]
pub(super) struct Holders {
    by_attempt: Vec<(u32, AgentId)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An agent holds the execution from now on.
    Running,
    /// The outcome.
    Ended,
    /// Said again, or of an attempt that is over.
    Old,
    /// Of another execution.
    WrongExecution,
    /// Another agent holds that attempt.
    WrongAgent,
}

impl Holders {
    pub(super) fn judge(&mut self, id: ExecutionId, reply: &StatusMessage) -> Verdict {
        if reply.execution_id != id {
            return Verdict::WrongExecution;
        }
        let known = self.by_attempt.iter().find(|(attempt, _)| *attempt == reply.attempt);
        if let (Some((_, holder)), Some(sender)) = (known, &reply.agent_id)
            && holder != sender
        {
            return Verdict::WrongAgent;
        }
        if reply.is_terminal() {
            return Verdict::Ended;
        }
        match (&reply.agent_id, reply.phase) {
            (Some(agent), Phase::Running) if known.is_none() => {
                let newest = self.by_attempt.iter().all(|(attempt, _)| *attempt < reply.attempt);
                if self.by_attempt.len() >= REMEMBERED {
                    self.by_attempt.remove(0);
                }
                self.by_attempt.push((reply.attempt, agent.clone()));
                if newest { Verdict::Running } else { Verdict::Old }
            }
            _ => Verdict::Old,
        }
    }
}

/// Whether the sender of a status may say it: an agent speaks for itself, and what no agent ran is said by gateways.
/// The broker holds each process to its own name in the subject, not to what it writes into the body.
pub(super) fn may_say(sender: &str, status: &StatusMessage) -> bool {
    let names_itself = match &status.agent_id {
        Some(agent) => agent.as_str() == sender,
        None => sender.starts_with("gw-"),
    };
    let output = status.outcome.as_ref().and_then(|outcome| outcome.output_ref.as_ref());
    names_itself && output.is_none_or(|blob| is_its_output(sender, status, &blob.key))
}

/// An output that lies elsewhere is read, shown and deleted with its execution: it must not be another's, nor a payload.
fn is_its_output(sender: &str, status: &StatusMessage, key: &str) -> bool {
    match key.split_once('.') {
        Some((writer, _)) => writer == sender,
        // Of a release without identities.
        None => key == format!("output-{}-{}", status.execution_id, status.attempt),
    }
}

#[cfg(test)]
mod tests {
    use flux_protocol::{
        FunctionName, Lane, Outcome, OutcomeStatus, PoolName,
        execution::{ErrorKind, ExecutionError},
        time::now,
    };

    use super::*;

    fn reply(id: ExecutionId, attempt: u32, agent: &str, phase: Phase) -> StatusMessage {
        let outcome = (phase == Phase::Ended).then(|| {
            Outcome::without_process(OutcomeStatus::Failed, ExecutionError::new(ErrorKind::Exit, "exited with 1"))
        });
        StatusMessage {
            execution_id: id,
            function: FunctionName::parse("f").unwrap(),
            version: 1,
            attempt,
            lane: Lane::Call,
            pool: PoolName::default(),
            phase,
            agent_id: Some(AgentId::parse(agent).unwrap()),
            queued_at: now(),
            started_at: None,
            at: now(),
            deadline: None,
            traceparent: None,
            outcome,
            invocation: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn replies_are_judged_by_execution_attempt_and_holder() {
        let id = ExecutionId::new();
        let mut holders = Holders::default();
        let steps = [
            (reply(ExecutionId::new(), 1, "a", Phase::Ended), Verdict::WrongExecution),
            (reply(id, 1, "a", Phase::Running), Verdict::Running),
            (reply(id, 1, "a", Phase::Running), Verdict::Old),
            (reply(id, 1, "b", Phase::Ended), Verdict::WrongAgent),
            (reply(id, 1, "b", Phase::Running), Verdict::WrongAgent),
            // The agent was lost: the next attempt is another's.
            (reply(id, 2, "b", Phase::Running), Verdict::Running),
            (reply(id, 2, "a", Phase::Ended), Verdict::WrongAgent),
            // The first one was not dead after all, and its outcome came first.
            (reply(id, 1, "a", Phase::Ended), Verdict::Ended),
            (reply(id, 2, "b", Phase::Ended), Verdict::Ended),
            // Most executions end before they say that they run.
            (reply(id, 3, "c", Phase::Ended), Verdict::Ended),
        ];
        for (at, (reply, expected)) in steps.into_iter().enumerate() {
            assert_eq!(holders.judge(id, &reply), expected, "step {at}");
        }
    }

    #[test]
    fn agents_speak_for_themselves_alone() {
        let mut status = reply(ExecutionId::new(), 1, "a", Phase::Ended);
        assert!(may_say("a", &status));
        assert!(!may_say("b", &status));
        status.agent_id = None;
        assert!(!may_say("a", &status));
        assert!(may_say(flux_protocol::GatewayId::random().as_str(), &status));
    }

    #[test]
    fn an_output_that_lies_elsewhere_is_the_sender_s_own() {
        let id = ExecutionId::new();
        let says = |key: String| {
            let mut status = reply(id, 1, "a", Phase::Ended);
            let blob = flux_protocol::execution::BlobRef { key, digest: flux_protocol::Digest::of(b""), size: 0 };
            status.outcome.as_mut().unwrap().output_ref = Some(blob);
            may_say("a", &status)
        };
        let agent = |id: &str| AgentId::parse(id).unwrap();
        assert!(says(flux_protocol::subject::output_blob(&agent("a"), id, 1)));
        assert!(says(format!("output-{id}-1")));
        assert!(!says(flux_protocol::subject::output_blob(&agent("b"), id, 1)));
        assert!(!says(format!("output-{}-1", ExecutionId::new())));
        assert!(!says(flux_protocol::subject::payload_blob(id)));
    }

    #[test]
    fn a_failure_that_is_tried_again_is_no_end() {
        let id = ExecutionId::new();
        let mut reply = reply(id, 1, "a", Phase::Ended);
        reply.outcome.as_mut().unwrap().will_retry = true;
        assert_eq!(Holders::default().judge(id, &reply), Verdict::Old);
    }
}
