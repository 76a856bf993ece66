//! Who may do what on the server, as definitions that RabbitMQ reads (`load_definitions`, `rabbitmqctl import_definitions`).
//!
//! Permissions of RabbitMQ are three patterns for names, and patterns for the routing keys of topic exchanges. That is less than
//! NATS has accounts for: what an agent can do with it that it could not there is in `docs/rabbitmq.md`.

use std::fmt::Write as _;

use flux_protocol::{
    AgentId, PoolName,
    identity::{Grant, Identity},
    subject::{self, OUTPUT_BUCKET},
};
use serde_json::{Value, json};

use super::names::Names;

/// Users without passwords, by the URI in their certificates, for gateways and each grant. `vhost` is where Flux is, `namespace` what
/// its names begin with.
pub fn definitions(grants: &[Grant], vhost: &str, namespace: &str) -> String {
    let names = Names::new(namespace);
    let mut all = Definitions { vhost, users: Vec::new(), permissions: Vec::new(), topics: Vec::new() };
    let own = format!("^{}\\..*", escaped(namespace));
    all.user(&Identity::Gateway, &own, &own, &own);
    for grant in grants {
        match grant {
            Grant::Agent { id, pools, .. } => all.agent(&grant.identity(), id, pools, &names),
            Grant::Producer { name, invoke, .. } => {
                let globs: Vec<_> = invoke.iter().map(|glob| glob_pattern(&glob.to_string())).collect();
                let replies = format!("flux\\.reply\\.producer-{}\\..*", escaped(name.as_str()));
                let user = grant.identity();
                let inboxes = format!("^{}\\.inbox\\..*$", escaped(namespace));
                let invoke = format!(
                    "^{}(-[A-Za-z0-9_-]+)?$",
                    escaped(&names.lane(flux_protocol::Lane::Invoke, &PoolName::default()))
                );
                let write = format!("{inboxes}|{invoke}");
                let read = format!("{inboxes}|^{}$", escaped(&names.signals()));
                all.user(&user, &inboxes, &write, &read);
                let mut pools: Vec<_> = grants
                    .iter()
                    .flat_map(|grant| match grant {
                        Grant::Agent { pools, .. } => pools.clone(),
                        Grant::Producer { .. } => Vec::new(),
                    })
                    .chain([PoolName::default()])
                    .collect();
                pools.sort();
                pools.dedup();
                for pool in pools {
                    let exchange = names.lane(flux_protocol::Lane::Invoke, &pool);
                    all.topic(&user, &exchange, &one_of(&globs), NOTHING);
                }
                all.topic(&user, &names.signals(), NOTHING, &one_of(&[replies]));
            }
        }
    }
    all.write()
}

const NOTHING: &str = "^$";

struct Definitions<'a> {
    vhost: &'a str,
    users: Vec<Value>,
    permissions: Vec<Value>,
    topics: Vec<Value>,
}

impl Definitions<'_> {
    fn user(&mut self, who: &Identity, configure: &str, write: &str, read: &str) {
        let (user, vhost) = (who.uri(), self.vhost);
        let hashing = "rabbit_password_hashing_sha256";
        self.users.push(json!({ "name": user, "password_hash": "", "hashing_algorithm": hashing, "tags": [] }));
        self.permissions
            .push(json!({ "user": user, "vhost": vhost, "configure": configure, "write": write, "read": read }));
    }

    fn topic(&mut self, who: &Identity, exchange: &str, write: &str, read: &str) {
        let (user, vhost) = (who.uri(), self.vhost);
        self.topics.push(json!({ "user": user, "vhost": vhost, "exchange": exchange, "write": write, "read": read }));
    }

    /// Pull what is queued in its pools, say what became of it under its own id, read functions and code.
    fn agent(&mut self, who: &Identity, id: &AgentId, pools: &[PoolName], names: &Names) {
        let outputs = names.all_blobs() + OUTPUT_BUCKET + ".";
        let inboxes = escaped(&names.inbox_prefix()) + ".*";
        let own_queues = format!("{inboxes}|{}.*", escaped(&outputs));
        let exchanges = [names.signals(), names.statuses(), names.logs(), names.blobs()].map(|name| escaped(&name));
        let mut reads =
            vec![own_queues.clone(), escaped(&names.all_blobs()) + ".*", exchanges[0].clone(), exchanges[3].clone()];
        reads.extend(["kept", "passing"].map(|log| escaped(&names.log(log))));
        for pool in pools {
            for lane in flux_protocol::Lane::ALL {
                reads.push(format!("{}\\.[A-Za-z0-9_-]+", escaped(&names.lane(lane, pool))));
            }
        }
        let writes = format!("{own_queues}|{}", exchanges.join("|"));
        self.user(who, &one_of(&[own_queues]), &one_of(&[writes]), &one_of(&reads));

        let me = escaped(id.as_str());
        let mut says = vec![
            format!("flux\\.(output|status)\\.{me}\\..*"),
            format!("flux\\.ask\\.{me}\\..*"),
            "flux\\.reply\\..*".to_owned(),
            "_INBOX\\..*".to_owned(),
        ];
        let mut hears = vec![
            escaped(&subject::control(id)),
            escaped(subject::control_all()),
            escaped(subject::cancels()),
            escaped(&format!("{}.*", subject::answers_of_agent(id))),
        ];
        let mut records = vec![
            "(kept|passing)\\.mark\\.mark".to_owned(),
            format!("passing\\.blobs\\.{OUTPUT_BUCKET}\\.{me}\\..*"),
            format!("passing\\.garbage\\.{}.*", escaped(&outputs)),
        ];
        for pool in pools {
            says.push(escaped(&subject::holders(pool, id)));
            says.push(escaped(&subject::heartbeat(pool, id)));
            says.push(format!("flux\\.ring\\.(invoke|call)\\.{}\\..*", escaped(pool.as_str())));
            hears.push(escaped(&subject::holders_of(pool)));
            records.push(escaped(&format!("agents.agents.{}", subject::agents_key(pool, id))));
        }
        self.topic(who, &names.signals(), &one_of(&says), &one_of(&hears));
        self.topic(who, &names.statuses(), &one_of(&[format!("flux\\.status\\.{me}\\..*")]), NOTHING);
        self.topic(who, &names.logs(), &one_of(&records), NOTHING);
        let parts = one_of(&[escaped(&outputs) + ".*"]);
        self.topic(who, &names.blobs(), &parts, &parts);
    }

    fn write(self) -> String {
        let all = json!({
            "vhosts": [{ "name": self.vhost }],
            "users": self.users,
            "permissions": self.permissions,
            "topic_permissions": self.topics,
        });
        format!("{all:#}\n")
    }
}

/// The name and nothing else.
fn escaped(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for letter in name.chars() {
        if letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-') {
            pattern.push(letter);
        } else {
            let _ = write!(pattern, "\\{letter}");
        }
    }
    pattern
}

fn glob_pattern(glob: &str) -> String {
    glob.split('*').map(escaped).collect::<Vec<_>>().join("[A-Za-z0-9_-]*")
}

fn one_of(patterns: &[String]) -> String {
    format!("^({})$", patterns.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_pattern() {
        assert_eq!(escaped("flux.invoke-gpu.*"), "flux\\.invoke-gpu\\.\\*");
        assert_eq!(glob_pattern("resize*"), "resize[A-Za-z0-9_-]*");
        assert_eq!(one_of(&["a".to_owned(), "b".to_owned()]), "^(a|b)$");
    }

    #[test]
    fn nobody_has_a_password() {
        let id = AgentId::parse("agent-1").expect("an id");
        let grants = [Grant::Agent { id, grant: 3, pools: vec![PoolName::default()] }];
        let all: Value = serde_json::from_str(&definitions(&grants, "/", "flux")).expect("JSON");
        let users = all["users"].as_array().expect("users");
        assert!(users.iter().all(|user| user["password_hash"] == ""));
        let names: Vec<_> = users.iter().map(|user| user["name"].as_str().unwrap_or_default()).collect();
        assert_eq!(names, ["spiffe://flux/gateway", "spiffe://flux/agent/agent-1/3"]);
    }
}
