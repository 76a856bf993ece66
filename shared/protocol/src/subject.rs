//! Every subject, stream, bucket and consumer name. Nothing else in Flux writes one out.

use rand::RngCore as _;

use crate::{
    id::{AgentId, ExecutionId, FunctionName, GatewayId, PoolName},
    invocation::Lane,
};

pub const STATUS_STREAM: &str = "FLUX_STATUS";
pub const DLQ_STREAM: &str = "FLUX_DLQ";
/// The consumer that gateways share to record statuses.
pub const RECORDER: &str = "recorder";
pub const FUNCTIONS_BUCKET: &str = "flux_functions";
pub const VERSIONS_BUCKET: &str = "flux_versions";
pub const AGENTS_BUCKET: &str = "flux_agents";
/// Which queues are hot: what agents with room pull on.
pub const HOT_BUCKET: &str = "flux_hot";
pub const CODE_BUCKET: &str = "flux_code";
/// Payloads; and outputs that releases without identities stored.
pub const BLOB_BUCKET: &str = "flux_blobs";
pub const OUTPUT_BUCKET: &str = "flux_outputs";
/// Queue group in which gateways hear rings.
pub const GATEWAYS_GROUP: &str = "flux_gateways";

/// Said by a gateway that changed an API key, to all gateways.
pub const KEYS_CHANGED: &str = "flux.keys.changed";

/// One function's queue in one lane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueName {
    pub lane: Lane,
    pub pool: PoolName,
    pub function: FunctionName,
}

impl QueueName {
    pub fn new(lane: Lane, pool: PoolName, function: FunctionName) -> Self {
        Self { lane, pool, function }
    }

    /// Where its messages are published.
    pub fn subject(&self) -> String {
        format!("{}.{}", lane_prefix(self.lane, &self.pool), self.function)
    }

    pub fn stream(&self) -> String {
        stream(self.lane, &self.pool)
    }

    /// The durable consumer that all agents share; also its key in [`HOT_BUCKET`] together with lane and pool.
    pub fn consumer(&self) -> String {
        self.function.to_string()
    }

    /// `<lane>.<pool>.<function>`, a key.
    pub fn key(&self) -> String {
        format!("{}.{}.{}", self.lane.as_str(), self.pool, self.function)
    }

    pub fn from_key(key: &str) -> Option<Self> {
        let mut parts = key.split('.');
        let lane = parts.next().and_then(lane_from)?;
        let pool = PoolName::parse(parts.next()?).ok()?;
        let function = FunctionName::parse(parts.next()?).ok()?;
        parts.next().is_none().then_some(Self { lane, pool, function })
    }

    /// The queue that a message on `subject` belongs to.
    pub fn from_subject(subject: &str) -> Option<Self> {
        let (prefix, function) = subject.strip_prefix("flux.")?.split_once('.')?;
        let (lane, pool) = match prefix.split_once('-') {
            None => (lane_from(prefix)?, PoolName::default()),
            Some((lane, pool)) => (lane_from(lane)?, PoolName::parse(pool).ok()?),
        };
        Some(Self { lane, pool, function: FunctionName::parse(function).ok()? })
    }
}

fn lane_from(text: &str) -> Option<Lane> {
    Lane::ALL.into_iter().find(|lane| lane.as_str() == text)
}

fn lane_prefix(lane: Lane, pool: &PoolName) -> String {
    if pool.is_default() { format!("flux.{}", lane.as_str()) } else { format!("flux.{}-{pool}", lane.as_str()) }
}

/// `FLUX_INVOKE`, `FLUX_CALL`, or with `-<pool>` behind it.
pub fn stream(lane: Lane, pool: &PoolName) -> String {
    let name = match lane {
        Lane::Invoke => "FLUX_INVOKE",
        Lane::Call => "FLUX_CALL",
    };
    if pool.is_default() { name.to_owned() } else { format!("{name}-{pool}") }
}

/// All subjects of a lane's stream.
pub fn stream_subjects(lane: Lane, pool: &PoolName) -> String {
    format!("{}.*", lane_prefix(lane, pool))
}

/// Where a stored invocation is said again, headers only, so that gateways notice work for a cold function.
pub fn ring(queue: &QueueName) -> String {
    format!("flux.ring.{}", queue.key())
}

pub fn rings() -> &'static str {
    "flux.ring.>"
}

/// Republish mapping of a lane's stream: source and destination.
pub fn ring_mapping(lane: Lane, pool: &PoolName) -> (String, String) {
    (stream_subjects(lane, pool), format!("flux.ring.{}.{pool}.{{{{wildcard(1)}}}}", lane.as_str()))
}

pub fn queue_of_ring(subject: &str) -> Option<QueueName> {
    QueueName::from_key(subject.strip_prefix("flux.ring.")?)
}

/// Where a delayed attempt waits until it is due (`Nats-Schedule`), within the invoke stream.
pub fn delayed(pool: &PoolName, execution: ExecutionId) -> String {
    format!("{}.{execution}", delayed_prefix(pool))
}

fn delayed_prefix(pool: &PoolName) -> String {
    if pool.is_default() { "flux.delayed".to_owned() } else { format!("flux.delayed-{pool}") }
}

pub fn delayed_subjects(pool: &PoolName) -> String {
    format!("{}.*", delayed_prefix(pool))
}

/// A reply subject that cannot be guessed: knowing it is the permission.
pub fn reply(gateway: &GatewayId) -> String {
    let mut nonce = [0_u8; 16];
    rand::rng().fill_bytes(&mut nonce);
    format!("flux.reply.{gateway}.{:032x}", u128::from_be_bytes(nonce))
}

pub fn replies(gateway: &GatewayId) -> String {
    format!("flux.reply.{gateway}.*")
}

/// Agents publish replies only where a producer cannot point them at something of Flux's own.
pub fn may_reply_to(subject: &str) -> bool {
    let below = subject.starts_with("flux.reply.") || subject.starts_with("_INBOX.");
    below
        && subject.len() <= 256
        && !subject.ends_with('.')
        && !subject.contains("..")
        && subject.bytes().all(|b| b.is_ascii_graphic() && b != b'*' && b != b'>')
}

/// Whether a gateway waits there (it takes interim statuses; a producer's inbox gets the outcome alone).
pub fn is_gateway_reply(subject: &str) -> bool {
    subject.starts_with("flux.reply.")
}

pub fn output(agent: &AgentId, execution: ExecutionId) -> String {
    format!("flux.output.{agent}.{execution}")
}

pub fn outputs_of(execution: ExecutionId) -> String {
    format!("flux.output.*.{execution}")
}

pub fn outputs_all() -> &'static str {
    "flux.output.>"
}

/// The log of transitions, from which they are recorded: one or more of them a message, all of one pool. `sender` is an
/// agent's or gateway's id. Both are in the subject, so that the broker can hold an agent to its own name and its own pools.
pub fn status_log(pool: &PoolName, sender: &str) -> String {
    format!("flux.statuses.{pool}.{sender}")
}

pub fn status_logs() -> &'static str {
    "flux.statuses.*.*"
}

/// The pool and the sender of what lies in the log. No pool: it was stored by a release before, in a stream whose subjects
/// were others, and none such is stored any more.
pub fn of_status_log(subject: &str) -> Option<(Option<&str>, &str)> {
    let rest = subject.strip_prefix("flux.statuses.")?;
    Some(rest.split_once('.').map_or((None, rest), |(pool, sender)| (Some(pool), sender)))
}

/// Who said something on a subject whose third part is its sender: a status, an output.
pub fn sender(subject: &str) -> Option<&str> {
    subject.split('.').nth(2)
}

/// A transition that the log holds, for whoever waits for that execution.
pub fn status(sender: &str, execution: ExecutionId) -> String {
    format!("flux.status.{sender}.{execution}")
}

pub fn statuses_of(execution: ExecutionId) -> String {
    format!("flux.status.*.{execution}")
}

pub fn control(agent: &AgentId) -> String {
    format!("flux.control.{agent}")
}

/// The same request to every agent.
pub fn control_all() -> &'static str {
    "flux.control"
}

pub fn cancel(execution: ExecutionId) -> String {
    format!("flux.cancel.{execution}")
}

pub fn cancels() -> &'static str {
    "flux.cancel.*"
}

pub fn execution_of_cancel(subject: &str) -> Option<ExecutionId> {
    subject.strip_prefix("flux.cancel.")?.parse().ok()
}

/// Where an agent asks for the secrets of an attempt; one gateway hears it.
pub fn secrets(agent: &AgentId) -> String {
    format!("flux.ask.{agent}.secrets")
}

pub fn secrets_all() -> &'static str {
    "flux.ask.*.secrets"
}

/// Where an agent asks the others of its pool who holds what was delivered to it again.
pub fn holders(pool: &PoolName, agent: &AgentId) -> String {
    format!("flux.holders.{pool}.{agent}")
}

pub fn holders_of(pool: &PoolName) -> String {
    format!("flux.holders.{pool}.*")
}

/// Who asks.
pub fn agent_of_holders(subject: &str) -> Option<AgentId> {
    AgentId::parse(subject.strip_prefix("flux.holders.")?.split_once('.')?.1).ok()
}

/// With the pool, so that the broker can hold an agent to its own.
pub fn heartbeat(pool: &PoolName, agent: &AgentId) -> String {
    format!("flux.agent.{pool}.{agent}")
}

pub fn heartbeats() -> &'static str {
    "flux.agent.*.*"
}

/// The agent's row in the agents' table.
pub fn agents_key(pool: &PoolName, agent: &AgentId) -> String {
    format!("{pool}.{agent}")
}

pub fn dlq(function: &FunctionName) -> String {
    format!("flux.dlq.{function}")
}

pub fn dlqs() -> &'static str {
    "flux.dlq.*"
}

/// Below it agents of other accounts answer this agent's questions.
pub fn answers_of_agent(agent: &AgentId) -> String {
    format!("flux.reply.agent-{agent}")
}

/// Below it one gateway's questions are answered, by agents and the autoscaler. The number is random: to know it is to have been asked.
pub fn answers_of_gateway(nonce: u128) -> String {
    format!("flux.reply.gateway.{nonce:032x}")
}

/// The answers to all gateways' questions.
pub fn answers_of_gateways() -> &'static str {
    "flux.reply.gateway.>"
}

/// What an agent asks gateways: the sender is part of the subject, so that the broker can hold it to its own.
pub fn question(agent: &AgentId, what: &str) -> String {
    format!("flux.ask.{agent}.{what}")
}

/// All agents' questions of that kind.
pub fn questions(what: &str) -> String {
    format!("flux.ask.*.{what}")
}

/// Gateways ask the autoscaler.
pub const AUTOSCALER: &str = "flux.autoscaler";

/// An agent asks for a new certificate.
pub const RENEWAL: &str = "renewal";

/// An agent asks whether the secrets of its warm workers were changed.
pub const SECRET_STAMPS: &str = "secret-stamps";

/// Where a table that agents follow is said again, once it is stored.
pub fn table_changes(bucket: &str) -> String {
    format!("flux.table.{bucket}.>")
}

/// Whether a subject is one of those that a pattern with wildcards stands for.
pub fn matches(pattern: &str, subject: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('.'), subject.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(given)) if wanted == given => {}
            _ => return false,
        }
    }
}

/// Keys of blobs.
pub fn payload_blob(execution: ExecutionId) -> String {
    format!("payload-{execution}")
}

/// Before the point: who may write it.
pub fn output_blob(agent: &AgentId, execution: ExecutionId, attempt: u32) -> String {
    format!("{agent}.output-{execution}-{attempt}")
}

/// Where a payload or an output is: agents write to a bucket of their own, each below its id.
pub fn blob_bucket(key: &str) -> &'static str {
    if key.contains('.') { OUTPUT_BUCKET } else { BLOB_BUCKET }
}

#[cfg(test)]
mod tests {
    use super::{matches, may_reply_to};

    #[test]
    fn patterns() {
        let cases = [
            ("flux.control", "flux.control", true),
            ("flux.control", "flux.control.a", false),
            ("flux.cancel.*", "flux.cancel.x", true),
            ("flux.cancel.*", "flux.cancel", false),
            ("flux.cancel.*", "flux.cancel.x.y", false),
            ("flux.ring.>", "flux.ring.call.default.f", true),
            ("flux.ring.>", "flux.ring", false),
            ("flux.ask.*.renewal", "flux.ask.a.renewal", true),
            ("flux.ask.*.renewal", "flux.invoke.a", false),
        ];
        for (pattern, subject, expected) in cases {
            assert_eq!(matches(pattern, subject), expected, "{pattern} {subject}");
        }
        assert!(may_reply_to("flux.reply.producer-shop.1"));
    }
}
