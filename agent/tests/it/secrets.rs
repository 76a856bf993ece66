//! How an attempt comes by its secrets. A gateway's part is played as a gateway plays it: one answer for an attempt, another
//! only to the same question again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use flux_agent::Runtimes;
use flux_protocol::{
    AgentId, ExecutionId, OutcomeStatus, Phase,
    secret::{Base64, SecretsReply, SecretsRequest},
    subject,
};
use flux_runtime::settings::AgentSettings;
use futures::StreamExt as _;
use parking_lot::Mutex;

use crate::{
    fake::{End, FakeCode, FakeExecutor, Launch},
    world::{World, invocation},
};

/// Who has the secrets of which attempt, by the nonce.
type Claims = HashMap<(ExecutionId, u32), Vec<u8>>;

/// The value of `DB` is `hunter2`.
#[derive(Clone, Default)]
pub(crate) struct Giver {
    claims: Arc<Mutex<Claims>>,
    given: Arc<AtomicU32>,
}

impl Giver {
    pub(crate) async fn listen(&self, world: &World) {
        let mut asked = world.broker.listen(subject::secrets_all()).await.expect("a subscription");
        let (giver, broker) = (self.clone(), Arc::clone(&world.broker));
        world.tasks.spawn("giver", async move {
            while let Some(question) = asked.next().await {
                let agent =
                    subject::sender(&question.subject).and_then(|id| AgentId::parse(id).ok()).expect("a sender");
                let request: SecretsRequest = serde_json::from_slice(&question.body).expect("a request");
                let reply = serde_json::to_vec(&giver.answer(&agent, &request)).expect("JSON");
                broker.signal(question.reply_to.expect("a question"), reply.into()).await.expect("sent");
            }
        });
    }

    fn answer(&self, agent: &AgentId, request: &SecretsRequest) -> SecretsReply {
        let nonce = request.nonce.0.clone();
        let holder =
            self.claims.lock().entry((request.execution_id, request.attempt)).or_insert_with(|| nonce.clone()).clone();
        if holder != nonce {
            return SecretsReply::Claimed { reason: "given already".to_owned() };
        }
        self.given.fetch_add(1, Ordering::SeqCst);
        let values = serde_json::to_vec(&BTreeMap::from([("DB", "hunter2")])).expect("JSON");
        let sealed = flux_secrets::seal(&request.public_key.0, &request.purpose(agent), &values).expect("sealed");
        SecretsReply::Sealed {
            encapsulated: Base64(sealed.encapsulated),
            ciphertext: Base64(sealed.ciphertext),
            stamps: BTreeMap::new(),
        }
    }
}

#[tokio::test]
async fn an_attempt_that_is_anothers_is_counted_on_as_often_as_losses_are_allowed() {
    let world = World::new().await;
    let giver = Giver::default();
    giver.listen(&world).await;
    world.deploy("name: f\nhandler: f\nsecrets: [DB]").await;
    let executor = FakeExecutor::new();
    executor.program("f", |call| async move {
        End::Exit(i32::from((call.env("DB"), call.env("FLUX_ATTEMPT")) != (Some("hunter2"), Some("3"))))
    });
    let _agent = world.agent(&executor, AgentSettings { max_losses: 2, ..World::settings() }).await;
    // Agents had them, and died; then the queue forgot that it had delivered.
    let invoked = |lost: u32| {
        let invocation = invocation("");
        let id = invocation.execution_id.expect("given");
        giver.claims.lock().extend((1..=lost).map(|attempt| ((id, attempt), vec![0])));
        invocation
    };
    let ended = world.call_with("f", invoked(2)).await;
    assert_eq!((ended.phase, ended.attempt), (Phase::Ended, 3));
    assert_eq!(ended.outcome.expect("an outcome").status, OutcomeStatus::Success);
    let error = world.call_with("f", invoked(3)).await.outcome.expect("an outcome").error.expect("an error");
    assert!(error.message.contains("given already"), "{}", error.message);
    assert_eq!(executor.started(), 1);
}

#[tokio::test]
async fn a_worker_that_is_not_started_at_once_has_the_secrets_when_it_is() {
    let world = World::new().await;
    let giver = Giver::default();
    giver.listen(&world).await;
    world.deploy("name: f\nhandler: f\nruntime: lambda\nsecrets: [DB]").await;
    let executor = FakeExecutor::new();
    executor.launch("flux runtimes", |_| Launch::Unavailable);
    let had = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&had);
    executor.launch("f", move |call| {
        let mut had = seen.lock();
        had.push(call.env("DB").map(str::to_owned));
        if had.len() < 3 { Launch::Unavailable } else { Launch::Refuse { step: "exec", message: "enough was seen" } }
    });
    let runtimes = Runtimes::find(executor.clone()).await;
    let code = FakeCode { folder: "/".into(), error: None };
    let _agent = world.agent_with_runtimes(executor.clone(), Arc::new(code), World::settings(), runtimes).await;
    let error = world.call("f", "").await.outcome.expect("an outcome").error.expect("an error");
    assert!(error.message.contains("enough was seen"), "{}", error.message);
    assert_eq!(*had.lock(), vec![Some("hunter2".to_owned()); 3]);
    assert_eq!(giver.given.load(Ordering::SeqCst), 1);
}
