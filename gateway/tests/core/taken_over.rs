//! A gateway dies between the queue and the store, and the request is made again with its key: one execution, that runs once.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use flux_broker::{Queue as _, Table, Tables as _};
use flux_gateway::{
    core::{Called, Gateway, InvokeRequest},
    refusal::Refusal,
};
use flux_protocol::{
    Digest, ErrorCode, ExecutionId, Lane, PoolName, Timestamp, function::parse_yaml, subject::QueueName, time::now,
};
use flux_store::{Claim, ExecutionFilter, SharedStore};
use flux_testkit::{File, archive};
use tokio::{runtime::Runtime, sync::Notify};

use crate::{
    fake_agent::{Act, FakeAgent},
    flaky_store::FlakyStore,
    world::{World, code, deploy, ended, eventually, keyed, knows, name},
};

/// Longer ago than a gateway is waited for that has claimed a key and recorded nothing.
const LONG_AGO: Duration = Duration::from_secs(12);
/// Longer ago than all that the tests do, and well within what is kept.
const BEFORE: Duration = Duration::from_secs(600);
const OTHER_POOL: &str = "gpu";
/// So long ago that the queue may have forgotten the message's id.
const FORGOTTEN: Duration = Duration::from_secs(90);

fn queue() -> QueueName {
    QueueName::new(Lane::Invoke, PoolName::default(), name("f"))
}

/// What lives on: a gateway, and an agent of which the store hears nothing until it is let.
struct Scene {
    world: World,
    store: Arc<FlakyStore>,
    gateway: Gateway,
}

impl Scene {
    async fn new() -> Self {
        let mut world = World::new().await;
        world.pools.push(PoolName::parse(OTHER_POOL).unwrap());
        let store = FlakyStore::over(&world.store);
        let gateway = world.gateway_over(store.clone()).await;
        // Its version is older than every claim.
        let spec = parse_yaml("name: f\nhandler: run").unwrap();
        world.store.register(&spec, ago(BEFORE)).await.unwrap();
        world.store.deploy(&spec.name, Digest::of(&code()), None, ago(BEFORE)).await.unwrap();
        deploy(&gateway, "f", "").await;
        store.set_records_nothing(true);
        Self { world, store, gateway }
    }

    async fn queued(&self) -> u64 {
        self.world.broker.depth(&queue()).await.unwrap()
    }

    /// Publishes `x` with the key `k`, and dies before it is recorded, once `until` is over.
    async fn a_gateway_dies(&self, until: impl Future<Output = ()>) -> ExecutionId {
        let doomed = Doomed::invokes(&self.world, keyed("x", "k")).await;
        until.await;
        doomed.dies();
        let id = claimed_at(&self.world.store, now(), None).await;
        assert!(self.world.store.execution(id).await.unwrap().is_none(), "it has a record");
        claimed_at(&self.world.store, ago(LONG_AGO), Some(id)).await
    }

    async fn deploys_another(&self) {
        let code = archive(&[File::executable("run", "#!/bin/sh\necho 2\n")]);
        assert_eq!(self.gateway.deploy(&name("f"), code.into()).await.unwrap().version.version, 2);
    }

    async fn again(&self) -> ExecutionId {
        let accepted = self.gateway.invoke(&name("f"), keyed("x", "k")).await.unwrap();
        assert!(accepted.replayed);
        accepted.execution_id
    }

    /// It ends, as the only one, with all that is left of it.
    async fn ends_once(&self, id: ExecutionId, agent: &FakeAgent) {
        self.store.set_records_nothing(false);
        let record = ended(&self.world, id).await;
        assert_eq!((record.status_text(), record.version), ("success", 1));
        eventually("nothing is queued", || async { self.queued().await == 0 }).await;
        assert_eq!(agent.taken(), [(id, 1)]);
        assert_eq!(self.again().await, id);
        let all = ExecutionFilter { limit: 9, ..ExecutionFilter::default() };
        assert_eq!(self.world.store.executions(&all).await.unwrap().len(), 1);
    }
}

/// A gateway in a runtime of its own, whose tasks end where they are when that does.
struct Doomed(Runtime);

impl Doomed {
    async fn invokes(world: &World, request: InvokeRequest) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store = FlakyStore::over(&world.store);
        store.set_records_nothing(true);
        // Never.
        store.accept_nothing_after(Some(Arc::new(Notify::new())));
        let parts = world.parts(store);
        runtime.spawn(async move {
            let gateway = Gateway::start(parts).await.unwrap();
            gateway.invoke(&name("f"), request).await
        });
        Self(runtime)
    }

    fn dies(self) {
        self.0.shutdown_background();
    }
}

fn ago(ago: Duration) -> Timestamp {
    Timestamp::from_micros(now().as_micros() - i64::try_from(ago.as_micros()).unwrap())
}

/// Makes it so that the key was claimed then, and says for whom.
async fn claimed_at(store: &SharedStore, at: Timestamp, whose: Option<ExecutionId>) -> ExecutionId {
    let function = name("f");
    let claim =
        async |body, id, at, window| store.claim_idempotency(&function, "k", body, id, at, window).await.unwrap();
    let held = claim(Digest::of(b""), ExecutionId::new(), now(), Duration::ZERO).await;
    let Claim::Held { execution_id, body, .. } = held else { panic!("nobody has it: {held:?}") };
    store.release_idempotency(&function, "k", execution_id).await.unwrap();
    let id = whose.unwrap_or(execution_id);
    assert_eq!(claim(body, id, at, Duration::from_secs(600)).await, Claim::Claimed);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_queued_is_not_queued_again() {
    let scene = Scene::new().await;
    let id = scene.a_gateway_dies(eventually("it is queued", || async { scene.queued().await == 1 })).await;
    // What it was published with is what runs.
    scene.deploys_another().await;
    assert_eq!(scene.again().await, id);
    assert_eq!(scene.queued().await, 1);
    assert_eq!(scene.world.store.execution(id).await.unwrap().unwrap().version, 0, "not known yet");
    let agent = scene.world.agent("a", |_| Act::Succeed(String::new())).await;
    scene.ends_once(id, &agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_not_started_again() {
    let scene = Scene::new().await;
    let (agent, end) = scene.world.agent_that_holds(4).await;
    knows(&scene.gateway, &[&agent]).await;
    let id = scene.a_gateway_dies(agent.until("it runs", |agent| agent.running().len() == 1)).await;
    assert_eq!(scene.again().await, id);
    end.notify_one();
    scene.ends_once(id, &agent).await;
}

/// Who took over does not know the version that runs. Where the queue is lost after that, it is not mixed with the current one.
#[tokio::test(flavor = "multi_thread")]
async fn what_ran_and_was_lost_goes_on_with_its_version() {
    let scene = Scene::new().await;
    let (agent, _end) = scene.world.agent_that_holds(4).await;
    knows(&scene.gateway, &[&agent]).await;
    let id = scene.a_gateway_dies(agent.until("it runs", |agent| agent.running().len() == 1)).await;
    scene.deploys_another().await;
    assert_eq!(scene.again().await, id);
    scene.store.set_records_nothing(false);
    eventually("its version is known", || async {
        scene.world.store.execution(id).await.unwrap().unwrap().version == 1
    })
    .await;
    agent.kill();
    scene.world.broker.set_connected(false);
    scene.world.broker.lose_lane(Lane::Invoke, &PoolName::default());
    scene.world.broker.set_connected(true);
    let versions = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&versions);
    let _other = scene
        .world
        .agent_with("b", 4, 1, move |job| {
            seen.lock().unwrap().push((job.attempt, job.invocation.version));
            Act::Succeed(String::new())
        })
        .await;
    assert_eq!(ended(&scene.world, id).await.attempt, 2);
    assert_eq!(*versions.lock().unwrap(), [(2, Some(1))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_is_not_started_again() {
    let scene = Scene::new().await;
    let agent = scene.world.agent("a", |_| Act::Succeed(String::new())).await;
    knows(&scene.gateway, &[&agent]).await;
    let id = scene
        .a_gateway_dies(eventually("it ended", || async { !agent.taken().is_empty() && scene.queued().await == 0 }))
        .await;
    assert_eq!(scene.again().await, id);
    scene.ends_once(id, &agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_with_the_key_takes_over_too() {
    let scene = Scene::new().await;
    let id = scene.a_gateway_dies(eventually("it is queued", || async { scene.queued().await == 1 })).await;
    scene.store.set_records_nothing(false);
    let agent = scene.world.agent("a", |_| Act::Succeed("called".to_owned())).await;
    let called = scene.gateway.call(&name("f"), keyed("x", "k")).await.unwrap();
    assert_eq!((called.execution_id, called.replayed), (id, true));
    assert_eq!(called.outcome.output.to_text(), "called");
    scene.ends_once(id, &agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_take_over_at_once_make_one_execution() {
    let scene = Scene::new().await;
    let other = scene.world.gateway().await;
    let id = scene.a_gateway_dies(eventually("it is queued", || async { scene.queued().await == 1 })).await;
    let function = name("f");
    let (one, two) = tokio::join!(scene.again(), other.invoke(&function, keyed("x", "k")));
    assert_eq!((one, two.unwrap().execution_id), (id, id));
    assert_eq!(scene.queued().await, 1);
    let agent = scene.world.agent("a", |_| Act::Succeed(String::new())).await;
    scene.ends_once(id, &agent).await;
}

/// A gateway as it dies that claimed, and published nothing.
async fn claimed_alone(world: &World, gateway: &Gateway, at: Timestamp) -> ExecutionId {
    gateway.invoke(&name("f"), keyed("x", "k")).await.unwrap();
    claimed_at(&world.store, at, Some(ExecutionId::new())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_never_published_is() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed("ran".to_owned())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let id = claimed_alone(&world, &gateway, ago(LONG_AGO)).await;
    let accepted = gateway.invoke(&name("f"), keyed("x", "k")).await.unwrap();
    assert_eq!(accepted.execution_id, id);
    let record = ended(&world, id).await;
    assert_eq!((record.version, record.outcome.unwrap().output.to_text().as_str()), (1, "ran"));
}

/// Once the queue may have forgotten an id, the reconciler alone publishes: when the message is nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_while_only_what_is_nowhere_is_published() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed("ran".to_owned())).await;
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let id = claimed_alone(&world, &gateway, ago(FORGOTTEN)).await;
    eventually("the queue is empty", || async { world.broker.depth(&queue()).await.unwrap() == 0 }).await;
    let accepted = gateway.invoke(&name("f"), keyed("x", "k")).await.unwrap();
    assert_eq!(accepted.execution_id, id);
    assert_eq!(world.broker.depth(&queue()).await.unwrap(), 0, "it was published beside what may be there");
    let record = ended(&world, id).await;
    assert_eq!((record.attempt, record.outcome.unwrap().output.to_text().as_str()), (2, "ran"));
}

/// A claim whose execution nobody can know of any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_long_forgotten_is_another_execution() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let id = claimed_alone(&world, &gateway, ago(Duration::from_secs(2 * 3600))).await;
    let accepted = gateway.invoke(&name("f"), keyed("x", "k")).await.unwrap();
    assert!(!accepted.replayed && accepted.execution_id != id, "{accepted:?}");
}

/// Its place is not known, so it cannot be taken back. Agents read the table before they start what is as old.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_where_nobody_knows_its_place_is_in_the_table_of_cancels() {
    let scene = Scene::new().await;
    let id = scene.a_gateway_dies(eventually("it is queued", || async { scene.queued().await == 1 })).await;
    scene.store.set_records_nothing(false);
    claimed_at(&scene.world.store, ago(FORGOTTEN), Some(id)).await;
    assert_eq!(scene.again().await, id);
    assert_eq!(scene.world.store.execution(id).await.unwrap().unwrap().position, None);
    scene.gateway.cancel(id).await.unwrap();
    assert_eq!(scene.gateway.execution(id).await.unwrap().status_text(), "cancelled");
    assert_eq!(scene.queued().await, 1, "it can still be delivered");
    assert!(scene.world.broker.get(Table::Cancelled, &id.to_string()).await.unwrap().is_some());
}

/// Of a call with the key, made again elsewhere while the gateway that claimed it stands before its record: by that one's clock
/// the claim is old. It has ended when the first goes on.
struct Overtaken {
    world: World,
    store: Arc<FlakyStore>,
    gateway: Gateway,
    other: Gateway,
    agent: FakeAgent,
}

impl Overtaken {
    async fn new() -> Self {
        let world = World::new().await;
        let store = FlakyStore::over(&world.store);
        let (gateway, other) = (world.gateway_over(store.clone()).await, world.gateway().await);
        let agent = world.agent("a", |_| Act::Succeed("once".to_owned())).await;
        knows(&gateway, &[&agent]).await;
        deploy(&gateway, "f", "").await;
        Self { world, store, gateway, other, agent }
    }

    /// What the first is answered, and whose the key is.
    async fn calls(&self, before_it_goes_on: impl Future<Output = ()>) -> (Result<Called, Refusal>, ExecutionId) {
        let (held, go) = self.store.stop_next_accept();
        let function = name("f");
        let overtakes = async {
            held.notified().await;
            claimed_at(&self.world.store, ago(LONG_AGO), None).await;
            let id = self.other.invoke(&function, keyed("x", "k")).await.unwrap().execution_id;
            ended(&self.world, id).await;
            before_it_goes_on.await;
            go.notify_one();
            id
        };
        tokio::join!(self.gateway.call(&function, keyed("x", "k")), overtakes)
    }

    /// It ran once, that is recorded, and the key stands for it.
    async fn ran_once(&self, id: ExecutionId) {
        let again = self.other.invoke(&name("f"), keyed("x", "k")).await.unwrap();
        assert_eq!((again.execution_id, again.replayed), (id, true));
        let record = self.world.store.execution(id).await.unwrap().unwrap();
        assert_eq!((record.status_text(), record.lane), ("success", Lane::Invoke));
        assert_eq!(self.agent.taken(), [(id, 1)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_taken_over_before_it_was_recorded_waits_for_that() {
    let scene = Overtaken::new().await;
    let (called, id) = scene.calls(async {}).await;
    let called = called.unwrap();
    assert_eq!((called.execution_id, called.replayed), (id, true));
    assert_eq!(called.outcome.output.to_text(), "once");
    scene.ran_once(id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_may_have_been_taken_over_and_is_refused_does_not_free_its_key() {
    let scene = Overtaken::new().await;
    let claimed = Instant::now();
    let refused = async {
        // However long that takes.
        eventually("it is long ago", || async { claimed.elapsed() > LONG_AGO / 2 }).await;
        let refuse = Arc::new(Notify::new());
        refuse.notify_one();
        scene.store.accept_nothing_after(Some(refuse));
    };
    let (called, id) = scene.calls(refused).await;
    assert_eq!(called.unwrap_err().code, ErrorCode::StoreUnavailable);
    scene.ran_once(id).await;
}

/// Its message is where it was published, and so it is there that a second one is none.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_in_the_pool_that_the_function_had_is_not_queued_in_the_one_that_it_has() {
    let scene = Scene::new().await;
    let id = scene.a_gateway_dies(eventually("it is queued", || async { scene.queued().await == 1 })).await;
    let spec = parse_yaml("name: f\nhandler: run\npool: gpu").unwrap();
    assert_eq!(scene.gateway.register(spec).await.unwrap().version.version, 2);
    assert_eq!(scene.again().await, id);
    let elsewhere = QueueName { pool: PoolName::parse(OTHER_POOL).unwrap(), ..queue() };
    assert_eq!((scene.queued().await, scene.world.broker.depth(&elsewhere).await.unwrap_or(0)), (1, 0));
    let agent = scene.world.agent("a", |_| Act::Succeed(String::new())).await;
    scene.ends_once(id, &agent).await;
}
