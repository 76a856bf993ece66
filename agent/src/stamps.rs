//! Whether the secrets of warm workers are still those: asked every two seconds, for as long as there are such workers.
//!
//! A change is not told to agents, since who is told something once may not hear it; what is asked again and again is known
//! in the end. A worker with a value from before goes: at once where it waits, or when it has answered.

use std::{collections::HashMap, sync::Arc, time::Duration};

use flux_broker::Broker;
use flux_protocol::{
    AgentId, limits,
    secret::{FunctionStamps, SecretStamps, StampsReply, StampsRequest, VersionedFunction},
    subject::{self, SECRET_STAMPS},
};
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;

use crate::{node::Node, warm::Key};

const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// What gateways said last, of the functions that there are workers of.
#[derive(Default)]
pub(crate) struct Stamps(Mutex<HashMap<Key, SecretStamps>>);

impl Stamps {
    /// Whether a worker was given others than what is set now, as far as is known.
    pub(crate) fn are_old(&self, key: &Key, given: &SecretStamps) -> bool {
        !given.is_empty() && self.0.lock().get(key).is_some_and(|now| now != given)
    }

    /// Those that nobody spoke of this time stay as they were, if there are still workers of them.
    fn keep(&self, asked: &[Key], said: Vec<(Key, SecretStamps)>) {
        let mut now = self.0.lock();
        now.retain(|key, _| asked.contains(key));
        now.extend(said.into_iter().filter(|(key, _)| asked.contains(key)));
    }
}

/// Until the agent ends.
pub(crate) async fn follow(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(limits::STAMPS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked: Vec<Key> = node.warm.keys().into_iter().filter(|key| names_secrets(&node, key)).collect();
        let mut said = Vec::new();
        for some in asked.chunks(limits::STAMPS_ASKED) {
            said.extend(ask(&*node.broker, &node.id, some).await);
        }
        node.stamps.keep(&asked, said);
        if !asked.is_empty() {
            node.warm.forget(|key, worker| node.stamps.are_old(key, worker.secrets.stamps()));
        }
    }
}

/// Workers of other versions than the current one go anyway.
fn names_secrets(node: &Node, key: &Key) -> bool {
    let current = node.functions.current(&key.function);
    current.is_some_and(|current| current.version == key.version && !current.spec.secrets.is_empty())
}

async fn ask(broker: &dyn Broker, agent: &AgentId, keys: &[Key]) -> Vec<(Key, SecretStamps)> {
    let of = |key: &Key| VersionedFunction { function: key.function.clone(), version: key.version };
    let request = StampsRequest { functions: keys.iter().map(of).collect() };
    let Ok(body) = serde_json::to_vec(&request) else { return Vec::new() };
    let answered = broker.ask(subject::question(agent, SECRET_STAMPS), body.into(), ANSWERED_WITHIN).await;
    let reply = match answered {
        Ok(answer) => answer.and_then(|answer| serde_json::from_slice::<StampsReply>(&answer.body).ok()),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "whether secrets were changed is not known");
            None
        }
    };
    let key = |FunctionStamps { of, stamps }| (Key { function: of.function, version: of.version }, stamps);
    reply.unwrap_or_default().functions.into_iter().map(key).collect()
}

#[cfg(test)]
mod tests {
    use flux_protocol::{FunctionName, SecretName, Timestamp, secret::SecretStamp};

    use super::*;

    #[test]
    fn a_worker_is_old_once_another_value_is_known() {
        let key = |function: &str| Key { function: FunctionName::parse(function).expect("a name"), version: 1 };
        let set = |created_at: i64, version: u32| {
            let stamp = SecretStamp { created_at: Timestamp::from_millis(created_at), version };
            SecretStamps::from([(SecretName::parse("DB").expect("a name"), stamp)])
        };
        let (stamps, asked) = (Stamps::default(), [key("f"), key("g")]);
        let old = |given: &SecretStamps| stamps.are_old(&key("f"), given);
        assert!(!old(&set(1, 1)), "nothing is known");
        stamps.keep(&asked, vec![(key("f"), set(1, 1)), (key("other"), set(1, 1))]);
        assert!(!old(&set(1, 1)));
        assert!(old(&set(1, 2)) && old(&set(9, 1)), "set again, or removed and set again");
        assert!(!old(&SecretStamps::default()), "a gateway of the release before said nothing of it");
        stamps.keep(&asked, Vec::new());
        assert!(old(&set(1, 2)), "none answered: what was known is known");
        stamps.keep(&asked, vec![(key("f"), SecretStamps::default())]);
        assert!(old(&set(1, 1)), "removed");
        stamps.keep(&asked[1..], Vec::new());
        assert!(!old(&set(1, 1)), "forgotten with its last worker");
        assert_eq!(stamps.0.lock().len(), 0, "what was not asked for is not kept");
    }
}
