//! What an identity may do on the server, subject by subject: this engine's wire, said once (ADR 12).
//!
//! Gateways may do everything, in the account that has the streams. Everyone else has an account of its own and imports what
//! is listed here. A server that is told less leaves an agent waiting for answers that never come; one that is told more lets
//! it act for others.

use std::{collections::BTreeSet, fmt::Write as _};

use flux_protocol::{
    AgentId, FunctionGlob, FunctionName, PoolName,
    identity::{GATEWAYS_ACCOUNT, Grant, Identity, ProducerName},
    invocation::Lane,
    subject::{self, BLOB_BUCKET, CODE_BUCKET, OUTPUT_BUCKET, QueueName},
};

use super::{core::AGENTS_API, reader::Bucket, tables::bucket};
use crate::Table;

/// How long the server remembers where answers to a pull go: longer than any is open.
const ANSWERS_WITHIN: &str = "2m";

/// What an account imports: requests that it may make and messages that it may send; messages that it hears.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
}

/// What a grant allows. `functions` are those that there are, with their pools.
pub fn allowed(grant: &Grant, pools: &[PoolName], functions: &[(FunctionName, PoolName)]) -> Allowed {
    match grant {
        Grant::Agent { id, pools, .. } => agent(id, pools),
        Grant::Producer { name, invoke, .. } => producer(name, invoke, pools, functions),
    }
}

/// Pull what is queued in its pools, say what became of it under its own id, read functions and code.
fn agent(agent: &AgentId, pools: &[PoolName]) -> Allowed {
    let mut publish = vec![
        format!("flux.status.{agent}.*"),
        format!("flux.output.{agent}.*"),
        subject::secrets(agent),
        subject::question(agent, "*"),
        // To gateways and to producers. Who knows the subject may be answered.
        "flux.reply.>".to_owned(),
        // Outputs that do not fit a status.
        format!("$O.{OUTPUT_BUCKET}.M.{agent}.*"),
        format!("$O.{OUTPUT_BUCKET}.C.{agent}.>"),
    ];
    for pool in pools {
        for lane in Lane::ALL {
            let stream = subject::stream(lane, pool);
            publish.push(format!("$JS.API.STREAM.INFO.{stream}"));
            publish.push(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"));
            publish.push(format!("$JS.ACK.{stream}.>"));
            publish.push(format!("flux.ring.{}.{pool}.*", lane.as_str()));
        }
        publish.push(subject::holders(pool, agent));
        // What it says of itself and of executions, it says in a pool, and only in these: gateways take its word for no other.
        publish.push(subject::status_log(pool, agent.as_str()));
        publish.push(subject::heartbeat(pool, agent));
        publish.push(format!("{}{}", bucket(Table::Agents).prefix, subject::agents_key(pool, agent)));
    }
    for table in [Table::Functions, Table::Versions, Table::Hot, Table::Cancelled] {
        let stream = bucket(table).stream;
        publish.push(format!("$JS.API.STREAM.INFO.{stream}"));
        publish.push(format!("$JS.API.STREAM.MSG.GET.{stream}"));
        publish.push(format!("$JS.API.DIRECT.GET.{stream}"));
        publish.push(format!("$JS.API.DIRECT.GET.{stream}.>"));
    }
    publish.push(format!("$JS.API.STREAM.MSG.GET.OBJ_{CODE_BUCKET}"));
    publish.push(format!("$JS.API.DIRECT.GET.OBJ_{CODE_BUCKET}"));
    publish.push(format!("$JS.API.DIRECT.GET.OBJ_{CODE_BUCKET}.>"));
    // By the whole subject, which names the execution, and then by 128 random bits: not one after the other.
    publish.push(format!("$JS.API.DIRECT.GET.OBJ_{BLOB_BUCKET}.$O.{BLOB_BUCKET}.M.*"));
    publish.push(format!("$JS.API.DIRECT.GET.OBJ_{BLOB_BUCKET}.$O.{BLOB_BUCKET}.C.*.*"));
    publish.push(format!("$JS.API.DIRECT.GET.OBJ_{OUTPUT_BUCKET}.$O.{OUTPUT_BUCKET}.M.{agent}.*"));
    let mut subscribe = vec![subject::control(agent), subject::control_all().to_owned(), subject::cancels().to_owned()];
    subscribe.extend(pools.iter().map(subject::holders_of));
    subscribe.push(format!("{}.*", subject::answers_of_agent(agent)));
    subscribe.extend([Table::Functions, Table::Hot].iter().filter_map(|table| bucket(*table).changes()));
    Allowed { publish, subscribe }
}

/// Invoke what its globs match, and hear the outcomes.
fn producer(
    name: &ProducerName,
    invoke: &[FunctionGlob],
    pools: &[PoolName],
    functions: &[(FunctionName, PoolName)],
) -> Allowed {
    let publish = invoked(invoke, pools, functions).into_iter().map(|(subject, _)| subject).collect();
    Allowed { publish, subscribe: vec![format!("{}.>", producer_replies(name))] }
}

/// The subjects of what globs match, each with its pool.
fn invoked(
    invoke: &[FunctionGlob],
    pools: &[PoolName],
    functions: &[(FunctionName, PoolName)],
) -> BTreeSet<(String, PoolName)> {
    let queue = |function: &FunctionName, pool: &PoolName| {
        (QueueName::new(Lane::Invoke, pool.clone(), function.clone()).subject(), pool.clone())
    };
    let mut all = BTreeSet::new();
    for glob in invoke {
        if glob.is_all() {
            all.extend(pools.iter().map(|pool| (subject::stream_subjects(Lane::Invoke, pool), pool.clone())));
            continue;
        }
        let known = functions.iter().filter(|(function, _)| glob.matches(function));
        all.extend(known.map(|(function, pool)| queue(function, pool)));
        // Named outright it may come later; then to the default pool, unless it is in another.
        if let Some(function) = glob.exact().filter(|exact| functions.iter().all(|(known, _)| known != exact)) {
            all.insert(queue(&function, &PoolName::default()));
        }
    }
    all
}

/// Below it a producer hears outcomes: `Flux-Reply-To: <this>.<random>`.
fn producer_replies(name: &ProducerName) -> String {
    format!("flux.reply.producer-{name}")
}

/// The `accounts` of the server's configuration: gateways, and everyone who was let in. `pools` are all that there are.
pub fn accounts(
    grants: impl IntoIterator<Item = Grant>,
    pools: &[PoolName],
    functions: &[(FunctionName, PoolName)],
) -> String {
    let mut text =
        String::from("# Written by Flux whenever an identity comes, changes or goes; changes are lost.\naccounts {\n");
    let user = |identity: &Identity| format!("users: [ {{ user: {:?} }} ]", identity.uri());
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "  {GATEWAYS_ACCOUNT}: {{\n    jetstream: enabled\n    users: [\n      {{ user: {:?} }}\n{}    ]\n    exports: [",
        Identity::Gateway.uri(),
        autoscaler_user()
    );
    let _ = writeln!(text, "{}    ]\n  }}", exports(pools));
    let grants: Vec<Grant> = grants.into_iter().collect();
    for grant in &grants {
        let (identity, allowed) = (grant.identity(), allowed(grant, pools, functions));
        let _ = writeln!(text, "  {:?}: {{\n    {}", identity.account(), user(&identity));
        if let Grant::Agent { id, pools, .. } = grant {
            // To the others of its pool, and to producers; whose answers somebody imports is said below.
            let questions = pools.iter().map(|pool| subject::holders(pool, id));
            let said = questions.chain(["flux.reply.>".to_owned()]);
            let said: Vec<String> = said.map(|subject| format!("{{ stream: {subject:?} }}")).collect();
            let _ = writeln!(text, "    exports: [ {} ]", said.join(", "));
        }
        let _ = writeln!(text, "    imports: [");
        for (kind, subjects) in [("service", &allowed.publish), ("stream", &allowed.subscribe)] {
            for subject in subjects {
                // The account has an API of its own, which would answer too.
                let to = match subject.strip_prefix("$JS.API.STREAM.") {
                    Some(rest) => format!(", to: \"{AGENTS_API}STREAM.{rest}\""),
                    None => String::new(),
                };
                import(&mut text, kind, GATEWAYS_ACCOUNT, subject, &to);
            }
        }
        let heard = match grant {
            Grant::Agent { .. } => of_its_pools(grant, &grants),
            Grant::Producer { name, invoke, .. } => {
                let reached = invoked(invoke, pools, functions).into_iter().map(|(_, pool)| pool).collect();
                outcomes(name, &reached, &grants)
            }
        };
        for (account, subject) in heard {
            import(&mut text, "stream", &account, &subject, "");
        }
        let _ = writeln!(text, "    ]\n  }}");
    }
    text.push_str("}\n");
    text
}

/// The prefixes of the autoscaler's inbox, and of what agents answer it.
pub const AUTOSCALER_INBOX: &str = "_INBOX.autoscaler";
pub const AUTOSCALER_ANSWERS: &str = "flux.reply.autoscaler";

/// Reads what waits and what agents say, keeps its own table, drains agents, and answers gateways.
fn autoscaler() -> Allowed {
    let Bucket { stream, prefix, .. } = bucket(Table::Autoscaler);
    let publish = vec![
        // How every stream and consumer is set and how far it is, with names: of subjects, so of functions and pools too. Nothing of
        // a message.
        "$JS.API.STREAM.INFO.*".to_owned(),
        "$JS.API.CONSUMER.INFO.*.*".to_owned(),
        format!("$JS.API.STREAM.MSG.GET.{stream}"),
        format!("$JS.API.DIRECT.GET.{stream}"),
        format!("$JS.API.DIRECT.GET.{stream}.>"),
        format!("{prefix}>"),
        "flux.control.*".to_owned(),
        // Not `allow_responses`: the server forgets those whenever an identity comes or goes, as in the midst of removing every node.
        subject::answers_of_gateways().to_owned(),
        format!("{AUTOSCALER_INBOX}.>"),
    ];
    let subscribe = vec![
        subject::heartbeats().to_owned(),
        subject::AUTOSCALER.to_owned(),
        format!("{AUTOSCALER_INBOX}.>"),
        format!("{AUTOSCALER_ANSWERS}.>"),
    ];
    Allowed { publish, subscribe }
}

/// Its line in the gateways' account, where the streams are: it needs no more than some of them.
fn autoscaler_user() -> String {
    let Allowed { publish, subscribe } = autoscaler();
    let uri = Identity::Autoscaler.uri();
    format!("      {{ user: {uri:?}, permissions: {{ publish: {publish:?}, subscribe: {subscribe:?} }} }}\n")
}

fn import(text: &mut String, kind: &str, account: &str, subject: &str, to: &str) {
    let _ = writeln!(text, "      {{ {kind}: {{ account: {account:?}, subject: {subject:?} }}{to} }}");
}

/// What an agent hears of each other of its pools: its questions, and its answers to this one's. From account to account, since
/// what one imports as a service does not go on to whoever imports that as a stream.
fn of_its_pools(grant: &Grant, grants: &[Grant]) -> Vec<(String, String)> {
    let Grant::Agent { id: own, pools: own_pools, .. } = grant else { return Vec::new() };
    let mut heard = Vec::new();
    for other in grants {
        let Grant::Agent { id, pools, .. } = other else { continue };
        let shared: Vec<&PoolName> = pools.iter().filter(|pool| id != own && own_pools.contains(pool)).collect();
        let account = other.identity().account();
        heard.extend(shared.iter().map(|pool| (account.clone(), subject::holders(pool, id))));
        if !shared.is_empty() {
            heard.push((account, format!("{}.*", subject::answers_of_agent(own))));
        }
    }
    heard
}

/// Outcomes, from each agent of the pools that a producer's invocations go to: for the same reason from account to account.
fn outcomes(name: &ProducerName, reached: &BTreeSet<PoolName>, grants: &[Grant]) -> Vec<(String, String)> {
    let agents = grants.iter().filter(|grant| match grant {
        Grant::Agent { pools, .. } => pools.iter().any(|pool| reached.contains(pool)),
        Grant::Producer { .. } => false,
    });
    agents.map(|agent| (agent.identity().account(), format!("{}.>", producer_replies(name)))).collect()
}

/// The `tls` block of the server's configuration: certificates of the CA alone, whose name is the user. `files` are the
/// server's certificate, its key and the CA's certificate.
pub fn server_tls(files: &[std::path::PathBuf; 3]) -> String {
    let [certificate, key, ca] = files.each_ref().map(|path| path.display().to_string());
    format!(
        "tls {{\n  cert_file: {certificate:?}\n  key_file: {key:?}\n  ca_file: {ca:?}\n  verify_and_map: true\n  timeout: 5\n}}\n"
    )
}

/// What can be imported; what is, is said by each account's imports, which this file alone writes.
fn exports(pools: &[PoolName]) -> String {
    let answered_often = ["$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.API.DIRECT.GET.>"];
    let requests = [
        "$JS.API.STREAM.INFO.*",
        "$JS.API.STREAM.MSG.GET.*",
        "$JS.ACK.>",
        subject::status_logs(),
        "flux.status.*.*",
        "flux.output.*.*",
        subject::heartbeats(),
        "flux.ask.*.*",
        "flux.reply.>",
        "flux.ring.>",
        "flux.holders.*.*",
    ];
    let stored = [format!("{}*.*", bucket(Table::Agents).prefix), format!("$O.{OUTPUT_BUCKET}.>")];
    let queues = pools.iter().map(|pool| subject::stream_subjects(Lane::Invoke, pool));
    let heard = ["flux.control", "flux.control.*", "flux.cancel.*", "flux.table.>", "flux.holders.*.*", "flux.reply.>"];
    let mut text = String::new();
    for subject in answered_often {
        let _ = writeln!(text, "      {{ service: {subject:?}, response: stream, threshold: {ANSWERS_WITHIN:?} }}");
    }
    for subject in requests.map(str::to_owned).into_iter().chain(stored).chain(queues) {
        let _ = writeln!(text, "      {{ service: {subject:?} }}");
    }
    for subject in heard {
        let _ = writeln!(text, "      {{ stream: {subject:?} }}");
    }
    text
}
