//! Every exchange and queue on the server, by its name. Routing keys are the subjects of [`flux_protocol::subject`].

use flux_protocol::{PoolName, invocation::Lane, subject::QueueName};

/// The names below one namespace.
#[derive(Debug, Clone)]
pub(super) struct Names {
    namespace: String,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    fn below(&self, rest: &str) -> String {
        format!("{}.{rest}", self.namespace)
    }

    /// Where a lane's messages are published; the routing key is the function.
    pub(super) fn lane(&self, lane: Lane, pool: &PoolName) -> String {
        if pool.is_default() { self.below(lane.as_str()) } else { self.below(&format!("{}-{pool}", lane.as_str())) }
    }

    /// The lane and pool of an exchange.
    pub(super) fn lane_of(&self, exchange: &str) -> Option<(Lane, PoolName)> {
        let rest = exchange.strip_prefix(&self.namespace)?.strip_prefix('.')?;
        let (lane, pool) = match rest.split_once('-') {
            None => (rest, PoolName::default()),
            Some((lane, pool)) => (lane, PoolName::parse(pool).ok()?),
        };
        Some((Lane::ALL.into_iter().find(|known| known.as_str() == lane)?, pool))
    }

    /// One function's queue in a lane.
    pub(super) fn queue(&self, queue: &QueueName) -> String {
        format!("{}.{}", self.lane(queue.lane, &queue.pool), queue.function)
    }

    /// Messages for functions that have no queue: an exchange, and its queue.
    pub(super) fn unrouted(&self) -> String {
        self.below("unrouted")
    }

    /// Messages that Flux cannot take, with the reason: an exchange, and its queue.
    pub(super) fn refused(&self) -> String {
        self.below("refused")
    }

    pub(super) fn signals(&self) -> String {
        self.below("signals")
    }

    /// The status log: an exchange, and its queue.
    pub(super) fn statuses(&self) -> String {
        self.below("statuses")
    }

    /// Where records of the logs are published, by the log's name and whose they are.
    pub(super) fn logs(&self) -> String {
        self.below("logs")
    }

    pub(super) fn log(&self, log: &str) -> String {
        self.below(&format!("log.{log}"))
    }

    /// Where parts of blobs are published, by the name of their stream: whoever may publish to a queue by its name may to any.
    pub(super) fn blobs(&self) -> String {
        self.below("blobs")
    }

    /// What every stream of a blob begins with.
    pub(super) fn all_blobs(&self) -> String {
        self.below("blob.")
    }

    pub(super) fn blob(&self, bucket: &str, nonce: u128) -> String {
        self.below(&format!("blob.{bucket}.{nonce:032x}"))
    }

    /// Its loss says that the server restarted, and with it what lay in its memory.
    pub(super) fn alive(&self, pool: &PoolName) -> String {
        self.below(&format!("alive.{pool}"))
    }

    /// A connection's own queue.
    pub(super) fn inbox(&self) -> String {
        format!("{}{:032x}", self.inbox_prefix(), rand::random::<u128>())
    }

    pub(super) fn inbox_prefix(&self) -> String {
        self.below("inbox.")
    }

    pub(super) fn group(&self, group: &str, pattern: &str) -> String {
        self.below(&format!("group.{group}.{pattern}"))
    }
}

/// A pattern of subjects as a topic exchange has it.
pub(super) fn binding(pattern: &str) -> String {
    pattern.replace('>', "#")
}

#[cfg(test)]
mod tests {
    use flux_protocol::FunctionName;

    use super::*;

    #[test]
    fn names_tell_what_they_are_of() {
        let names = Names::new("flux");
        let gpu = PoolName::parse("gpu").expect("a valid name");
        for (lane, pool, name) in
            [(Lane::Invoke, PoolName::default(), "flux.invoke"), (Lane::Call, gpu, "flux.call-gpu")]
        {
            assert_eq!(names.lane(lane, &pool), name);
            assert_eq!(names.lane_of(name), Some((lane, pool.clone())));
            let queue = QueueName::new(lane, pool, FunctionName::parse("f").expect("a valid name"));
            assert_eq!(names.queue(&queue), queue.subject());
        }
        assert_eq!(names.lane_of("flux.signals"), None);
        assert_eq!(names.lane_of("fluxx.invoke"), None);
        assert_eq!(binding("flux.ring.>"), "flux.ring.#");
    }
}
