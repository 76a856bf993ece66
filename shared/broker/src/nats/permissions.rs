//! What an agent's identity must be allowed on the server, subject by subject: this engine's wire, said once.
//!
//! A server that is told less leaves the agent waiting for answers that never come (then `Denied`); one that is
//! told more lets an agent act for others. Gateways may do everything.

use flux_protocol::{
    AgentId, PoolName,
    invocation::Lane,
    subject::{self, BLOB_BUCKET, CODE_BUCKET},
};

use super::tables::bucket;
use crate::Table;

/// Subjects for the `publish` and `subscribe` permissions of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
}

/// An agent's: pull what is queued in its pools, say what became of it under its own id, read functions and code.
/// `inbox_prefix` is the one it connects with.
pub fn agent_permissions(agent: &AgentId, pools: &[PoolName], inbox_prefix: &str) -> Permissions {
    let mut publish = vec![
        // Its own round trips and answers.
        format!("{inbox_prefix}.>"),
        subject::status_log(agent.as_str()),
        format!("flux.status.{agent}.*"),
        format!("flux.output.{agent}.*"),
        subject::heartbeat(agent),
        subject::secrets(agent),
        format!("{}{agent}", bucket(Table::Agents).prefix),
        // Replies: to gateways and to producers. Who knows the subject may be answered.
        "flux.reply.>".to_owned(),
        "_INBOX.>".to_owned(),
    ];
    for pool in pools {
        for lane in Lane::ALL {
            let stream = subject::stream(lane, pool);
            publish.push(format!("$JS.API.STREAM.INFO.{stream}"));
            publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"));
            // The second form is that of servers with a domain.
            publish.push(format!("$JS.ACK.{stream}.>"));
            publish.push(format!("$JS.ACK.*.*.{stream}.>"));
            publish.push(format!("flux.ring.{}.{pool}.*", lane.as_str()));
        }
        publish.push(subject::holders(pool, agent));
    }
    for table in [Table::Functions, Table::Versions, Table::Hot] {
        let stream = bucket(table).stream;
        publish.push(format!("$JS.API.STREAM.INFO.{stream}"));
        publish.push(format!("$JS.API.DIRECT.GET.{stream}.>"));
        publish.push(format!("$JS.API.STREAM.MSG.GET.{stream}"));
        publish.push(format!("$JS.API.CONSUMER.CREATE.{stream}.*.>"));
        publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"));
        publish.push(format!("$JS.API.CONSUMER.DELETE.{stream}.*"));
    }
    publish.push(format!("$JS.API.DIRECT.GET.{}.>", bucket(Table::Cancelled).stream));
    publish.push(format!("$JS.API.STREAM.MSG.GET.{}", bucket(Table::Cancelled).stream));
    for objects in [CODE_BUCKET, BLOB_BUCKET] {
        publish.push(format!("$JS.API.DIRECT.GET.OBJ_{objects}"));
        publish.push(format!("$JS.API.DIRECT.GET.OBJ_{objects}.>"));
        publish.push(format!("$JS.API.STREAM.MSG.GET.OBJ_{objects}"));
    }
    // Outputs that do not fit a status.
    publish.push(format!("$O.{BLOB_BUCKET}.>"));
    publish.push(format!("$JS.API.STREAM.PURGE.OBJ_{BLOB_BUCKET}"));
    let mut subscribe = vec![
        format!("{inbox_prefix}.>"),
        subject::control(agent),
        subject::control_all().to_owned(),
        subject::cancels().to_owned(),
    ];
    subscribe.extend(pools.iter().map(subject::holders_of));
    Permissions { publish, subscribe }
}
