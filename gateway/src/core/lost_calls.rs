//! Finding sync calls whose message the queue lost.
//!
//! `FLUX_CALL` lies in the broker's memory: when the broker dies, it is made anew, empty, with another creation time. Calls
//! whose message lay in the old one are published again by the gateway that waits for them, unless an agent still runs
//! them. Agents are asked first, and believed only once every agent that was there before has answered (it may still be
//! connecting) or has had time to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use flux_broker::BrokerError;
use flux_protocol::{
    AgentId, ExecutionId, Lane, PoolName, Timestamp,
    agent::{ControlReply, ControlRequest},
    subject,
};
use tokio::time::Instant;

use super::{
    Inner,
    in_flight::{Call, CallEvent},
};

/// Executions in one question to the agents.
const ASKED_AT_ONCE: usize = 1000;
const ANSWER_WITHIN: Duration = Duration::from_millis(300);
/// Agents that do not answer within this after the connection came back are taken for gone.
const RECONNECT_WITHIN: Duration = Duration::from_secs(2);
const SEARCH_EVERY: Duration = Duration::from_millis(400);

/// What the agents said of some executions.
#[derive(Debug, Default)]
pub(super) struct Held {
    held: HashSet<ExecutionId>,
    answered: HashSet<AgentId>,
}

impl Held {
    pub(super) fn holds(&self, id: ExecutionId) -> bool {
        self.held.contains(&id)
    }

    /// Whether all of `agents` answered, and none that holds it.
    pub(super) fn by_nobody(&self, id: ExecutionId, agents: &[AgentId]) -> bool {
        !self.holds(id) && agents.iter().all(|agent| self.answered.contains(agent))
    }

    fn answered_by(&self, agent: &AgentId) -> bool {
        self.answered.contains(agent)
    }
}

impl Inner {
    /// Asks every agent which of these executions it holds.
    pub(super) async fn ask_holds(&self, ids: &[ExecutionId]) -> Result<Held, BrokerError> {
        let mut all = Held::default();
        let most = self.fleet.list().len() + 16;
        for (at, some) in ids.chunks(ASKED_AT_ONCE).enumerate() {
            let request = serde_json::to_vec(&ControlRequest::Holds { execution_ids: some.to_vec() })
                .map_err(|error| BrokerError::refused("encode a question to agents", error))?;
            let answers =
                self.broker.ask_all(subject::control_all().to_owned(), request.into(), ANSWER_WITHIN, most).await?;
            let mut answered = HashSet::new();
            for answer in answers {
                if let Ok(ControlReply::Holds { agent_id, execution_ids }) = serde_json::from_slice(&answer.body) {
                    answered.insert(agent_id);
                    all.held.extend(execution_ids);
                }
            }
            // "Answered" means every part of the question.
            if at == 0 {
                all.answered = answered;
            } else {
                all.answered.retain(|agent| answered.contains(agent));
            }
        }
        Ok(all)
    }

    /// Tells every agent that an execution's message was taken back. Done when as many answered as are expected.
    pub(super) async fn ask_withdrawn(
        &self,
        id: ExecutionId,
        reason: &str,
        expected: usize,
    ) -> Result<Held, BrokerError> {
        let mut all = Held::default();
        if expected == 0 {
            return Ok(all);
        }
        let request = serde_json::to_vec(&ControlRequest::Withdrawn { execution_id: id, reason: reason.to_owned() })
            .map_err(|error| BrokerError::refused("encode a question to agents", error))?;
        let subject = subject::control_all().to_owned();
        for answer in self.broker.ask_all(subject, request.into(), ANSWER_WITHIN, expected).await? {
            if let Ok(ControlReply::Holds { agent_id, execution_ids }) = serde_json::from_slice(&answer.body) {
                all.answered.insert(agent_id);
                all.held.extend(execution_ids);
            }
        }
        Ok(all)
    }

    /// Called when the connection came back: as long as calls of an old stream wait, finds those that nobody runs.
    pub(super) async fn search_lost_calls(self: &Arc<Self>) {
        let began = Instant::now();
        loop {
            match self.lost_calls(began).await {
                Ok(0) => return,
                Ok(left) => tracing::debug!(left, "calls of a lost stream are still held by agents"),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot search for lost calls; trying again"
                    );
                }
            }
            tokio::time::sleep(SEARCH_EVERY).await;
        }
    }

    /// How many calls still wait on a message of a stream that is gone.
    async fn lost_calls(&self, since: Instant) -> Result<usize, BrokerError> {
        let mut epochs: HashMap<PoolName, Timestamp> = HashMap::new();
        let mut suspects: Vec<(Arc<Call>, Option<AgentId>)> = Vec::new();
        for call in self.in_flight.all() {
            let known = call.known();
            let Some(position) = known.position else { continue };
            let pool = &call.queue.pool;
            let epoch = match epochs.get(pool) {
                Some(epoch) => *epoch,
                None => {
                    let epoch = self.broker.epoch(Lane::Call, pool).await?;
                    epochs.insert(pool.clone(), epoch);
                    epoch
                }
            };
            if position.epoch != epoch {
                suspects.push((call, known.holder));
            }
        }
        if suspects.is_empty() {
            return Ok(0);
        }
        let ids: Vec<_> = suspects.iter().map(|(call, _)| call.execution_id).collect();
        let held = self.ask_holds(&ids).await?;
        let online = self.agents_online();
        let waited = since.elapsed() >= RECONNECT_WITHIN;
        let mut left = 0;
        for (call, holder) in suspects {
            let free = match &holder {
                _ if held.holds(call.execution_id) => false,
                _ if waited => true,
                Some(holder) => held.answered_by(holder),
                None => !online.is_empty() && held.by_nobody(call.execution_id, &online),
            };
            if free {
                call.tell(CallEvent::Lost);
            }
            left += 1;
        }
        Ok(left)
    }

    /// Calls whose agent went silent and whose message is gone: nothing would ever redeliver them. The silence may have been
    /// ours; so the agents are asked, and nobody is judged before they had time to come back.
    pub(super) async fn search_orphaned_calls(&self) -> Result<(), BrokerError> {
        let mut suspects: Vec<Arc<Call>> = Vec::new();
        for call in self.in_flight.all() {
            let known = call.known();
            let (Some(position), Some(holder)) = (known.position, known.holder) else { continue };
            if self.fleet.is_online(&holder) {
                continue;
            }
            if matches!(self.broker.is_stored(&call.queue, &position).await, Ok(false)) {
                suspects.push(call);
            }
        }
        if suspects.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = suspects.iter().map(|call| call.execution_id).collect();
        let held = self.ask_holds(&ids).await?;
        for call in suspects {
            if !held.holds(call.execution_id) {
                call.tell(CallEvent::Lost);
            }
        }
        Ok(())
    }
}
