//! Why an execution is still where it is. What is asked of queue and agents is gathered first; the answer is made from
//! that alone ([`explain_execution`]).

use flux_protocol::{ExecutionId, ExecutionRecord, FunctionSpec, Lane, Phase, Timestamp, time::now};

use super::{
    Gateway, Inner, Why,
    admission::{Mine, Shortage, Summary, Told, explain},
    cancel::queue_of,
};
use crate::refusal::Refusal;

impl Gateway {
    /// Why an execution is still queued, or what it does instead.
    ///
    /// # Errors
    /// It is unknown.
    pub async fn why(&self, id: ExecutionId) -> Result<Why, Refusal> {
        let inner = &self.inner;
        let record = inner.store.execution(id).await?.ok_or_else(|| Inner::execution_not_found(id))?;
        let waiting = record.phase == Phase::Queued || (record.phase == Phase::Ended && !record.is_terminal());
        let queue = queue_of(&record);
        let (queued, function, delivered) = if waiting {
            let delivered = match &record.position {
                Some(position) => inner.broker.was_delivered(&queue, position).await.ok().flatten(),
                None => None,
            };
            let function = inner.functions.current(&record.function).await?;
            (inner.broker.depth(&queue).await.ok(), function, delivered)
        } else {
            (None, None, None)
        };
        let fleet = function.as_ref().map(|function| (function.spec().clone(), function.summary(&inner.fleet)));
        // The queue keeps what runs until it has its outcome.
        let running = fleet.as_ref().filter(|_| record.lane == Lane::Invoke).map_or(0, |(_, fleet)| fleet.invokes);
        let queued = queued.map(|stored| stored.saturating_sub(running).max(1));
        let seen = Seen {
            now: now(),
            fleet,
            mine: function.as_ref().map(|function| inner.in_flight.mine(function.spec())).unwrap_or_default(),
            queued,
            delivered: delivered.unwrap_or(false),
            hot: inner.hot.is_hot(&queue),
        };
        let (reason, explanation) = explain_execution(&record, &seen);
        Ok(Why { record, reason, explanation, queued })
    }
}

/// What was found out.
struct Seen {
    now: Timestamp,
    /// The function, unless it is gone, and the agents as it sees them.
    fleet: Option<(FunctionSpec, Summary)>,
    mine: Mine,
    queued: Option<u64>,
    delivered: bool,
    hot: bool,
}

fn explain_execution(record: &ExecutionRecord, seen: &Seen) -> (&'static str, String) {
    let name = &record.function;
    let waited = seen.now.since(record.status_at).as_secs();
    if record.is_terminal() {
        return ("ended", format!("it has ended: {}", record.status_text()));
    }
    if record.phase == Phase::Running {
        let agent = record.agent_id.as_ref().map_or("an agent", |agent| agent.as_str());
        return ("running", format!("`{agent}` has run attempt {} for {waited} s", record.attempt));
    }
    let retrying = record.phase == Phase::Ended || (record.attempt > 1 && record.outcome.is_some());
    if retrying && record.status_at > seen.now {
        let left = record.status_at.since(seen.now).as_secs_f64();
        return (
            "waiting_for_retry",
            format!(
                "attempt {} failed; attempt {} is due in {left:.1} s",
                record.attempt.saturating_sub(1),
                record.attempt
            ),
        );
    }
    if record.phase == Phase::Ended {
        return ("waiting_for_retry", format!("attempt {} failed; the next is being queued", record.attempt));
    }
    let Some((spec, fleet)) = &seen.fleet else {
        return (
            "function_not_found",
            format!("there is no function `{name}` any more; the message ends as `invalid_function` within seconds"),
        );
    };
    if seen.delivered {
        return ("starting", format!("an agent has taken it {waited} s ago at most and has not said yet that it runs"));
    }
    let said = |shortage| explain(name, spec, fleet, &seen.mine, shortage, Told::Waiting);
    if fleet.online == 0 {
        return ("no_agents", said(Shortage::NoAgents));
    }
    if fleet.with_tier == 0 {
        return ("no_capability", said(Shortage::NoCapability));
    }
    if fleet.capable == 0 {
        return ("no_capability", said(Shortage::NoRuntime));
    }
    if fleet.able == 0 {
        return ("no_resources", said(Shortage::NeverFits));
    }
    if fleet.running.max(seen.mine.of_function + fleet.invokes) >= fleet.concurrency_now {
        return ("at_concurrency", said(Shortage::Concurrency));
    }
    if fleet.slots_free == 0 {
        return ("no_resources", said(Shortage::Resources));
    }
    let behind = seen.queued.map_or_else(String::new, |queued| format!(", one of {queued} queued for `{name}`"));
    if !seen.hot {
        return (
            "queue_cold",
            format!("its queue is being made known to agents{behind}; that takes milliseconds, or 2 s at the worst"),
        );
    }
    let lane = if record.lane == Lane::Call { "sync" } else { "asynchronous" };
    (
        "queued_behind_others",
        format!("it waits for {waited} s in the {lane} queue{behind}; {} agent(s) have room for it", fleet.able),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flux_protocol::{
        ErrorKind, ExecutionError, FunctionName, Outcome, OutcomeStatus, PoolName, agent::Budget, function::parse_yaml,
    };

    use super::*;

    fn record(phase: Phase) -> ExecutionRecord {
        ExecutionRecord {
            execution_id: ExecutionId::new(),
            function: FunctionName::parse("resize").unwrap(),
            version: 1,
            attempt: 1,
            lane: Lane::Invoke,
            pool: PoolName::default(),
            phase,
            agent_id: None,
            queued_at: now(),
            started_at: None,
            status_at: now(),
            deadline: None,
            traceparent: None,
            outcome: None,
            terminal_seq: None,
            position: None,
            invocation: None,
            redrive_of: None,
            notes: Vec::new(),
        }
    }

    fn seen(fleet: Summary) -> Seen {
        let spec = parse_yaml("name: resize\nhandler: resize\nmax_concurrency: 2").unwrap();
        Seen {
            now: now(),
            fleet: Some((spec, fleet)),
            mine: Mine::default(),
            queued: Some(4),
            delivered: false,
            hot: true,
        }
    }

    fn roomy() -> Summary {
        Summary {
            online: 1,
            with_tier: 1,
            capable: 1,
            able: 1,
            concurrency_now: 2,
            concurrency_known: 2,
            capacity_known: 2,
            slots_free: 8,
            tasks_now: 8,
            tasks_known: 8,
            cpu_known: 8000,
            memory_known: 8000,
            largest: Budget { tasks: 8, cpu_millicores: 8000, memory_mb: 8000 },
            ..Summary::default()
        }
    }

    #[test]
    fn each_reason_is_named() {
        let queued = record(Phase::Queued);
        let reason = |record: &ExecutionRecord, seen: &Seen| explain_execution(record, seen).0;
        assert_eq!(reason(&queued, &seen(roomy())), "queued_behind_others");
        assert_eq!(reason(&queued, &seen(Summary::default())), "no_agents");
        assert_eq!(reason(&queued, &seen(Summary { with_tier: 0, capable: 0, able: 0, ..roomy() })), "no_capability");
        assert_eq!(reason(&queued, &seen(Summary { able: 0, ..roomy() })), "no_resources");
        assert_eq!(reason(&queued, &seen(Summary { running: 2, ..roomy() })), "at_concurrency");
        assert_eq!(reason(&queued, &seen(Summary { slots_free: 0, ..roomy() })), "no_resources");
        // It waits: nobody needs to make it wait.
        for busy in [Summary { running: 2, ..roomy() }, Summary { slots_free: 0, ..roomy() }] {
            let text = explain_execution(&queued, &seen(busy)).1;
            assert!(text.contains("in its turn") && !text.contains("behavior"), "{text}");
        }
        assert_eq!(reason(&queued, &Seen { hot: false, ..seen(roomy()) }), "queue_cold");
        assert_eq!(reason(&queued, &Seen { fleet: None, ..seen(roomy()) }), "function_not_found");
        assert_eq!(reason(&queued, &Seen { delivered: true, ..seen(roomy()) }), "starting");
        assert_eq!(reason(&record(Phase::Running), &seen(roomy())), "running");
        let mut ended = record(Phase::Ended);
        let outcome =
            Outcome::without_process(OutcomeStatus::Failed, ExecutionError::new(ErrorKind::Exit, "exited with 1"));
        ended.outcome = Some(outcome.clone());
        assert_eq!(reason(&ended, &seen(roomy())), "ended");
        ended.outcome = Some(Outcome { will_retry: true, ..outcome });
        assert_eq!(reason(&ended, &seen(roomy())), "waiting_for_retry");
        let mut scheduled = record(Phase::Queued);
        scheduled.attempt = 2;
        scheduled.outcome.clone_from(&ended.outcome);
        scheduled.status_at = now().plus(Duration::from_secs(30));
        assert_eq!(reason(&scheduled, &seen(roomy())), "waiting_for_retry");
    }

    #[test]
    fn explanations_have_numbers() {
        let (_, text) = explain_execution(&record(Phase::Queued), &seen(Summary { running: 2, ..roomy() }));
        assert!(text.contains("runs 2 times at once on 1 agent(s) with a `max_concurrency` of 2"), "{text}");
        let (_, text) = explain_execution(&record(Phase::Queued), &seen(roomy()));
        assert!(text.contains("one of 4 queued for `resize`"), "{text}");
    }
}
