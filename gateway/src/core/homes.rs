//! Which agent is told first that work waits at a queue.
//!
//! Each agent of a pool has points on a circle, more of them the more it runs at once; a queue belongs to the agents whose
//! points come after its own, nearest first. So queues are shared out evenly, every gateway tells the same agent, that agent
//! has the function's code, and one that joins or leaves moves its own queues only. Finding it costs O(log agents).

use std::hash::{DefaultHasher, Hash, Hasher as _};

use flux_protocol::{AgentId, subject::QueueName};

/// Points of an agent: one for two of its tasks, and not so many that a large fleet takes long to lay out.
const MOST_POINTS: u32 = 16;
/// Points looked at for one queue: where so many belong to agents that cannot take it, all agents are told later.
const LOOKED_AT: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Homes {
    agents: Vec<AgentId>,
    /// Where, and which agent.
    points: Vec<(u64, usize)>,
}

impl Homes {
    /// Agents with the executions that each runs at once.
    pub(super) fn of<'a>(agents: impl IntoIterator<Item = (&'a AgentId, u32)>) -> Self {
        let mut homes = Self::default();
        for (id, tasks) in agents {
            let index = homes.agents.len();
            homes.agents.push(id.clone());
            homes.points.extend((0..(tasks / 2).clamp(1, MOST_POINTS)).map(|point| (place_of((id, point)), index)));
        }
        homes.points.sort_unstable();
        homes
    }

    /// Its agents, nearest first, each once.
    pub(super) fn of_queue(&self, queue: &QueueName) -> impl Iterator<Item = &AgentId> {
        let at = place_of(queue);
        let first = self.points.partition_point(|(place, _)| *place < at);
        let around = self.points.iter().cycle().skip(first).take(self.points.len().min(LOOKED_AT));
        let mut seen = Vec::new();
        around.filter_map(move |(_, index)| {
            let is_new = !seen.contains(index);
            if is_new {
                seen.push(*index);
            }
            self.agents.get(*index).filter(|_| is_new)
        })
    }
}

fn place_of(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{HashMap, HashSet};

    use flux_protocol::{FunctionName, Lane, PoolName};
    use proptest::prelude::*;

    use super::*;

    fn agents(tasks: &[u32]) -> Vec<(AgentId, u32)> {
        tasks.iter().enumerate().map(|(n, tasks)| (AgentId::parse(&format!("agent-{n}")).unwrap(), *tasks)).collect()
    }

    fn homes(agents: &[(AgentId, u32)]) -> Homes {
        Homes::of(agents.iter().map(|(id, tasks)| (id, *tasks)))
    }

    fn queue(n: usize) -> QueueName {
        QueueName::new(Lane::Call, PoolName::default(), FunctionName::parse(&format!("f{n}")).unwrap())
    }

    proptest! {
        /// Each agent comes once, whoever else is there in whatever order; one that leaves moves its own queues only.
        #[test]
        fn every_agent_comes_once_and_a_leaving_one_moves_its_own(
            tasks in prop::collection::vec(1_u32..64, 1..12),
            gone in any::<prop::sample::Index>(),
        ) {
            let mut all = agents(&tasks);
            let before = homes(&all);
            let gone = all.remove(gone.index(all.len()));
            all.reverse();
            let after = homes(&all);
            for n in 0..50 {
                let order: Vec<_> = before.of_queue(&queue(n)).cloned().collect();
                prop_assert_eq!(order.iter().collect::<HashSet<_>>().len(), tasks.len());
                let without: Vec<_> = order.into_iter().filter(|id| *id != gone.0).collect();
                prop_assert_eq!(after.of_queue(&queue(n)).cloned().collect::<Vec<_>>(), without);
            }
        }
    }

    #[test]
    fn queues_are_shared_out_by_size() {
        let all = agents(&[32; 100]);
        let homes = homes(&all);
        let mut count: HashMap<&AgentId, usize> = HashMap::new();
        for n in 0..10_000 {
            *count.entry(homes.of_queue(&queue(n)).next().unwrap()).or_default() += 1;
        }
        assert!(count.len() == 100 && count.values().all(|of| (30..300).contains(of)), "{count:?}");
        assert!(Homes::default().of_queue(&queue(0)).next().is_none());
    }
}
