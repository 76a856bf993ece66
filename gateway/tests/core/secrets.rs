//! What an agent is given of secrets, and what an agent that is not what it says is not.

use std::time::Duration;

use bytes::Bytes;
use flux_broker::Signals as _;
use flux_gateway::Gateway;
use flux_pki::{Certs, Credential};
use flux_protocol::{
    AgentId, ExecutionId, PoolName, SecretName,
    agent::{AgentStatus, Budget, Capabilities, Heartbeat, NodeStatus},
    secret::{
        Base64, FunctionStamps, KeyProof, SecretsReply, SecretsRequest, StampsReply, StampsRequest, VersionedFunction,
        key_statement,
    },
    subject,
    time::now,
};
use flux_secrets::{Recipient, Sealed};
use futures::FutureExt as _;

use crate::world::{World, deploy, eventually, name, payload, recorded};

struct Asker {
    id: AgentId,
    key: Recipient,
}

impl Asker {
    fn new(id: &str) -> Self {
        Self { id: AgentId::parse(id).unwrap(), key: Recipient::generate().unwrap() }
    }

    /// Says that it is there, in a pool, with its key or another's.
    async fn beat(&self, world: &World, pool: &str, key: &Recipient) {
        let heartbeat = Heartbeat {
            agent_id: self.id.clone(),
            pool: PoolName::parse(pool).unwrap(),
            address: "here".to_owned(),
            status: AgentStatus::Online,
            release: "0".to_owned(),
            started_at: now(),
            at: now(),
            node: NodeStatus {
                cpu_percent: 0.0,
                memory_percent: 0.0,
                memory_total_mb: 1,
                memory_used_mb: 0,
                active_tasks: 0,
                uptime_seconds: 1,
                collected_at: now(),
            },
            total: Budget::default(),
            free: Budget::default(),
            running: Vec::new(),
            capabilities: Capabilities::default(),
            cached_digests: 0,
            secrets_key: Some(Base64(key.public_key().to_vec())),
            finished: 0,
        };
        let body = Bytes::from(serde_json::to_vec(&heartbeat).unwrap());
        world.broker.signal(subject::heartbeat(&heartbeat.pool, &self.id), body).await.unwrap();
    }

    async fn known(&self, world: &World, gateway: &Gateway, pool: &str) {
        eventually("the gateway knows the agent's key", || async {
            self.beat(world, pool, &self.key).await;
            gateway.agents().iter().any(|view| {
                view.heartbeat.agent_id == self.id
                    && view.heartbeat.pool.as_str() == pool
                    && view.heartbeat.secrets_key.as_ref().is_some_and(|key| key.0 == self.key.public_key())
            })
        })
        .await;
    }

    fn question(&self, execution_id: ExecutionId, attempt: u32, nonce: u8) -> SecretsRequest {
        SecretsRequest {
            execution_id,
            attempt,
            function: name("uses"),
            version: 1,
            nonce: Base64(vec![nonce; 16]),
            public_key: Base64(self.key.public_key().to_vec()),
            proof: None,
        }
    }

    async fn ask(&self, world: &World, request: &SecretsRequest) -> SecretsReply {
        let body = Bytes::from(serde_json::to_vec(request).unwrap());
        let answer = world.broker.ask(subject::secrets(&self.id), body, Duration::from_secs(10)).await.unwrap();
        serde_json::from_slice(&answer.expect("a gateway answers").body).unwrap()
    }

    /// What was sealed to it, if it was.
    fn opened(&self, request: &SecretsRequest, reply: &SecretsReply) -> Option<String> {
        let SecretsReply::Sealed { encapsulated, ciphertext, .. } = reply else { return None };
        let sealed = Sealed { encapsulated: encapsulated.0.clone(), ciphertext: ciphertext.0.clone() };
        let opened = self.key.open(&sealed, &request.purpose(&self.id)).ok()?;
        Some(String::from_utf8(opened).unwrap())
    }
}

fn secret(text: &str) -> SecretName {
    SecretName::parse(text).unwrap()
}

#[track_caller]
fn refused(reply: SecretsReply, words: &str) {
    let SecretsReply::Refused { reason } = &reply else { panic!("not refused: {reply:?}") };
    assert!(reason.contains(words), "{reason}");
}

#[track_caller]
fn claimed(reply: SecretsReply, words: &str) {
    let SecretsReply::Claimed { reason } = &reply else { panic!("not claimed: {reply:?}") };
    assert!(reason.contains(words), "{reason}");
}

const OPENED: &str = r#"{"DB":"hunter2"}"#;

#[tokio::test]
async fn one_agent_is_given_an_attempts_secrets_once() {
    let world = World::new().await;
    let (gateway, other_gateway) = (world.gateway().await, world.gateway().await);
    deploy(&gateway, "uses", "secrets: [DB]\n").await;
    let (holder, thief) = (Asker::new("holder"), Asker::new("thief"));
    for gateway in [&gateway, &other_gateway] {
        holder.known(&world, gateway, "default").await;
        thief.known(&world, gateway, "default").await;
    }
    let id = ExecutionId::new();
    let question = holder.question(id, 1, 1);
    // What could not be answered can be asked again.
    assert_eq!(holder.ask(&world, &question).await, SecretsReply::Missing { names: vec![secret("DB")] });
    assert_eq!(gateway.put_secret(&secret("DB"), b"hunter2").await.unwrap(), 1);

    let reply = holder.ask(&world, &question).await;
    assert_eq!(holder.opened(&question, &reply).as_deref(), Some(OPENED));
    assert_eq!(thief.opened(&question, &reply), None, "sealed to another");
    assert!(!format!("{reply:?}").contains("hunter2"));
    // Lost on its way: the same question again, by whichever gateway hears it.
    for _ in 0..4 {
        let again = holder.ask(&world, &question).await;
        assert_eq!(holder.opened(&question, &again).as_deref(), Some(OPENED));
    }
    claimed(holder.ask(&world, &holder.question(id, 1, 2)).await, "given already");
    for _ in 0..4 {
        claimed(thief.ask(&world, &thief.question(id, 1, 1)).await, "given already");
    }
    let next = holder.question(id, 2, 3);
    assert_eq!(holder.opened(&next, &holder.ask(&world, &next).await).as_deref(), Some(OPENED), "the next attempt");
}

#[tokio::test]
async fn who_is_not_what_it_says_is_given_nothing() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "uses", "secrets: [DB]\n").await;
    deploy(&gateway, "plain", "").await;
    gateway.put_secret(&secret("DB"), b"hunter2").await.unwrap();
    let (holder, thief) = (Asker::new("holder"), Asker::new("thief"));
    let id = ExecutionId::new();

    // Nobody has heard of it.
    let reply = thief.ask(&world, &thief.question(id, 1, 1)).await;
    assert!(matches!(&reply, SecretsReply::NotNow { .. }), "{reply:?}");
    // Another's heartbeat, with a key of its own in the question, and the other way round.
    holder.known(&world, &gateway, "default").await;
    let forged = SecretsRequest { public_key: Base64(thief.key.public_key().to_vec()), ..holder.question(id, 1, 1) };
    let reply = holder.ask(&world, &forged).await;
    assert!(matches!(&reply, SecretsReply::NotNow { .. }), "{reply:?}");
    // Of another pool.
    thief.known(&world, &gateway, "gpu").await;
    refused(thief.ask(&world, &thief.question(id, 1, 1)).await, "another pool");
    thief.known(&world, &gateway, "default").await;
    // A function that names none, a version that is none, a function that is none.
    let plain = SecretsRequest { function: name("plain"), ..thief.question(id, 1, 1) };
    refused(thief.ask(&world, &plain).await, "declares no secrets");
    refused(thief.ask(&world, &SecretsRequest { version: 9, ..thief.question(id, 1, 1) }).await, "no version 9");
    refused(
        thief.ask(&world, &SecretsRequest { function: name("none"), ..thief.question(id, 1, 1) }).await,
        "no function",
    );
    // A nonce of another length.
    refused(
        thief.ask(&world, &SecretsRequest { nonce: Base64(vec![1]), ..thief.question(id, 1, 1) }).await,
        "16 bytes",
    );

    // An execution that another agent is known to run, is over, or is another function's.
    let (agent, end) = world.agent_that_holds(2).await;
    let running = gateway.invoke(&name("uses"), payload("1")).await.unwrap().execution_id;
    let other = gateway.invoke(&name("plain"), payload("1")).await.unwrap().execution_id;
    eventually("both run", || async {
        let record = recorded(&world, running).await;
        record.agent_id.as_ref() == Some(agent.id()) && agent.running().len() == 2
    })
    .await;
    claimed(thief.ask(&world, &thief.question(running, 1, 1)).await, "another agent holds");
    refused(thief.ask(&world, &thief.question(other, 1, 1)).await, "another function's");
    end.notify_one();
    end.notify_one();
    crate::world::ended(&world, running).await;
    refused(thief.ask(&world, &thief.question(running, 2, 1)).await, "is over");
    // What is no question is not answered at all, and the honest one still is.
    world.broker.signal(subject::secrets(&thief.id), Bytes::from_static(b"nonsense")).await.unwrap();
    let fresh = ExecutionId::new();
    let question = holder.question(fresh, 1, 9);
    holder.known(&world, &gateway, "default").await;
    assert_eq!(holder.opened(&question, &holder.ask(&world, &question).await).as_deref(), Some(OPENED));
}

#[tokio::test]
async fn a_key_that_its_agent_did_not_sign_gets_nothing() {
    let mut world = World::new().await;
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (certs, other) = (Certs::at(dir.path()), Certs::at(other_dir.path()));
    let (holder, thief) = (Asker::new("holder"), Asker::new("thief"));
    for certs in [&certs, &other] {
        certs.init(&[]).unwrap();
        certs.mint_agent(&holder.id, vec![PoolName::default()]).unwrap();
    }
    certs.mint_agent(&thief.id, vec![PoolName::default()]).unwrap();
    world.certs = Some(certs.clone());
    let gateway = world.gateway().await;
    deploy(&gateway, "uses", "secrets: [DB]\n").await;
    gateway.put_secret(&secret("DB"), b"hunter2").await.unwrap();
    let signed = |by: &Credential, statement: &[u8]| {
        let (certificate, signature) = by.sign(statement).unwrap();
        Some(KeyProof { certificate, signature: Base64(signature) })
    };
    // Who may publish everywhere says a heartbeat in the holder's name that has a key of its own.
    let forged = Asker { id: holder.id.clone(), key: Recipient::generate().unwrap() };
    let statement = key_statement(&holder.id, forged.key.public_key());
    let (holders, thiefs) = (certs.agent(&holder.id).unwrap(), certs.agent(&thief.id).unwrap());
    let honest = signed(&holders, &key_statement(&holder.id, holder.key.public_key()));
    let garbled = honest.clone().map(|proof| KeyProof { signature: Base64(vec![0; 70]), ..proof });
    let nobodys = honest.clone().map(|proof| KeyProof { certificate: "-----".to_owned(), ..proof });
    let proofs = [
        ("of the holder's own key", honest.clone()),
        ("by another agent", signed(&thiefs, &statement)),
        ("of another agent's key", signed(&thiefs, &key_statement(&thief.id, forged.key.public_key()))),
        ("by a gateway", signed(&certs.gateway().unwrap(), &statement)),
        ("by another CA's agent of the name", signed(&other.agent(&holder.id).unwrap(), &statement)),
        ("by the holder, of something else", signed(&holders, forged.key.public_key())),
        ("garbled", garbled),
        ("without a certificate", nobodys),
    ];
    forged.known(&world, &gateway, "default").await;
    let id = ExecutionId::new();
    // One that knows of no proofs waits until it is brought up to date, and its executions with it.
    let reply = forged.ask(&world, &forged.question(id, 1, 1)).await;
    let SecretsReply::NotNow { reason } = &reply else { panic!("{reply:?}") };
    assert!(reason.contains("did not sign"), "{reason}");
    for (what, proof) in proofs {
        let reply = forged.ask(&world, &SecretsRequest { proof, ..forged.question(id, 1, 1) }).await;
        let SecretsReply::Refused { reason } = &reply else { panic!("{what}: {reply:?}") };
        assert!(reason.contains("sign"), "{what}: {reason}");
    }
    // None of it used the attempt up for who it is.
    holder.known(&world, &gateway, "default").await;
    let question = SecretsRequest { proof: honest.clone(), ..holder.question(id, 1, 1) };
    assert_eq!(holder.opened(&question, &holder.ask(&world, &question).await).as_deref(), Some(OPENED));
    // Who was shut out stays so, also when its name is let in again.
    certs.revoke_agent(&holder.id).unwrap();
    let question = SecretsRequest { proof: honest, ..holder.question(id, 2, 2) };
    refused(holder.ask(&world, &question).await, "not signed by the agent");
    certs.mint_agent(&holder.id, vec![PoolName::default()]).unwrap();
    refused(holder.ask(&world, &question).await, "not signed by the agent");
    let proof = signed(&certs.agent(&holder.id).unwrap(), &key_statement(&holder.id, holder.key.public_key()));
    let question = SecretsRequest { proof, ..question };
    assert_eq!(holder.opened(&question, &holder.ask(&world, &question).await).as_deref(), Some(OPENED));
}

#[tokio::test]
async fn an_agent_hears_which_values_the_secrets_of_its_pool_have() {
    let mut world = World::new().await;
    world.pools = vec![PoolName::parse("gpu").unwrap()];
    let gateway = world.gateway().await;
    deploy(&gateway, "uses", "secrets: [DB]\n").await;
    deploy(&gateway, "foreign", "secrets: [DB]\npool: gpu\n").await;
    let asker = Asker::new("asker");
    asker.known(&world, &gateway, "default").await;
    let of = |function: &str, version: u32| VersionedFunction { function: name(function), version };
    let ask = async || {
        let functions = vec![of("uses", 1), of("foreign", 1), of("uses", 7), of("none", 1)];
        let body = Bytes::from(serde_json::to_vec(&StampsRequest { functions }).unwrap());
        let question = subject::question(&asker.id, subject::SECRET_STAMPS);
        let answer = world.broker.ask(question, body, Duration::from_secs(10)).await.unwrap();
        let reply: StampsReply = serde_json::from_slice(&answer.expect("a gateway answers").body).unwrap();
        let [FunctionStamps { of: about, stamps }] = &reply.functions[..] else { panic!("{reply:?}") };
        assert_eq!(*about, of("uses", 1), "of another pool's and of what is not there it says nothing");
        stamps.clone()
    };
    assert!(ask().await.is_empty(), "not set");
    gateway.put_secret(&secret("DB"), b"one").await.unwrap();
    let first = ask().await;
    let given = |reply: SecretsReply| match reply {
        SecretsReply::Sealed { stamps, .. } => stamps,
        other => panic!("{other:?}"),
    };
    assert_eq!(given(asker.ask(&world, &asker.question(ExecutionId::new(), 1, 1)).await), first);
    gateway.rotate_secrets_key().await.unwrap();
    assert_eq!(ask().await, first, "the value is the same");
    gateway.put_secret(&secret("DB"), b"two").await.unwrap();
    assert_ne!(ask().await, first);
}

#[tokio::test]
async fn what_a_secret_can_be() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let put = async |value: &[u8]| gateway.put_secret(&secret("S"), value).await;
    assert_eq!(put(b"one").await.unwrap(), 1);
    assert_eq!(put("zwei\n€".as_bytes()).await.unwrap(), 2);
    assert_eq!(put(b"").await.unwrap(), 3);
    assert_eq!(put(&[b'x'; 64 * 1024]).await.unwrap(), 4);
    for wrong in [&b"a\0b"[..], b"\xff", &[b'x'; 64 * 1024 + 1]] {
        assert_eq!(put(wrong).await.unwrap_err().details["field"], "value");
    }
    let stored = world.store.secrets().await.unwrap();
    assert_eq!((stored.len(), stored[0].version), (1, 4));
    assert_eq!(gateway.rotate_secrets_key().await.unwrap(), 1);
    let resealed = world.store.secrets().await.unwrap();
    assert_ne!(resealed[0].key, stored[0].key);
    assert_eq!(resealed[0].version, 4, "the value is the same");
    gateway.delete_secret(&secret("S")).await.unwrap();
    assert!(gateway.delete_secret(&secret("S")).await.is_err());
}

#[tokio::test]
async fn no_secret_is_lost_around_a_rotation() {
    let world = World::new().await;
    let (one, two) = (world.gateway().await, world.gateway().await);
    // A gateway that read the keys, and no secret by which it could see that they are others now.
    two.put_secret(&secret("GONE"), b"x").await.unwrap();
    two.delete_secret(&secret("GONE")).await.unwrap();
    one.rotate_secrets_key().await.unwrap();
    one.rotate_secrets_key().await.unwrap();
    two.put_secret(&secret("LATER"), b"x").await.unwrap();
    assert_eq!(world.gateway().await.rotate_secrets_key().await.unwrap(), 1);

    // Many at once, on both.
    let names: Vec<_> = (0..20).map(|number| secret(&format!("S{number}"))).collect();
    let mut work = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let (gateway, other) = if number % 2 == 0 { (&one, &two) } else { (&two, &one) };
        work.push(async move { gateway.put_secret(name, b"value").await.map(drop) }.boxed());
        if number % 5 == 0 {
            work.push(async move { other.rotate_secrets_key().await.map(drop) }.boxed());
        }
    }
    let done = tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(work)).await;
    for ended in done.expect("none goes on without end") {
        ended.unwrap();
    }
    assert_eq!(world.gateway().await.rotate_secrets_key().await.unwrap(), names.len() + 1, "each opens");
}
