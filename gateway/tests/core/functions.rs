//! Functions: registered, deployed, rolled back, deleted, and put back into a queue that lost them.

use std::sync::Arc;

use bytes::Bytes;
use flux_broker::{Blobs as _, Table, Tables as _, memory::MemoryBroker};
use flux_gateway::core::InvokeRequest;
use flux_protocol::{ErrorCode, FunctionVersion, function::parse_yaml, subject};
use flux_testkit::{File, archive};

use crate::{
    fake_agent::Act,
    world::{World, code, deploy, ended, eventually, knows, name, payload},
};

async fn table(world: &World, function: &str) -> Option<FunctionVersion> {
    let entry = world.broker.get(Table::Functions, function).await.unwrap()?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_counted_and_agents_can_read_them() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let spec = |timeout: u32| parse_yaml(&format!("name: f\nhandler: run\ntimeout: {timeout}")).unwrap();
    let registered = gateway.register(spec(1)).await.unwrap();
    assert_eq!((registered.version.version, registered.changed), (1, true));
    assert!(!gateway.register(spec(1)).await.unwrap().changed);
    let deployed = gateway.deploy(&name("f"), code()).await.unwrap();
    assert_eq!((deployed.version.version, deployed.changed), (1, true));
    assert!(!gateway.deploy(&name("f"), code()).await.unwrap().changed, "the same archive is the same version");
    assert_eq!(gateway.register(spec(2)).await.unwrap().version.version, 2);
    assert_eq!(table(&world, "f").await.unwrap().version, 2);
    let digest = deployed.version.digest.unwrap();
    assert!(world.broker.has_blob(subject::CODE_BUCKET, &digest.hex()).await.unwrap());

    let back = gateway.rollback(&name("f"), 1).await.unwrap();
    assert_eq!((back.version.version, back.changed), (1, true));
    assert_eq!(table(&world, "f").await.unwrap().version, 1);
    assert_eq!(gateway.rollback(&name("f"), 9).await.unwrap_err().code, ErrorCode::VersionNotFound);
    assert_eq!(gateway.rollback(&name("g"), 1).await.unwrap_err().code, ErrorCode::FunctionNotFound);
    let function = gateway.function(&name("f")).await.unwrap();
    assert_eq!(function.versions.len(), 2);
    assert_eq!(gateway.functions("f", None, 10).await.unwrap().len(), 1);

    gateway.delete_function(&name("f")).await.unwrap();
    assert!(table(&world, "f").await.is_none());
    assert!(world.broker.get(Table::Versions, "f.1").await.unwrap().is_none());
    assert_eq!(gateway.delete_function(&name("f")).await.unwrap_err().code, ErrorCode::FunctionNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_judged_before_anything_is_stored() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let deploy = async |function: &str, files: &[File]| gateway.deploy(&name(function), archive(files).into()).await;
    let not_zip = gateway.deploy(&name("f"), Bytes::from_static(b"not a zip")).await.unwrap_err();
    assert_eq!(not_zip.code, ErrorCode::InvalidArchive);
    let unknown = deploy("f", &[File::executable("run", "#!/bin/sh")]).await.unwrap_err();
    assert_eq!(unknown.code, ErrorCode::FunctionNotFound);
    assert!(unknown.message.contains("flux.yaml"), "{}", unknown.message);
    let yaml = |text: &str| File::plain("flux.yaml", text);
    let other = deploy("f", &[yaml("name: g\nhandler: run"), File::executable("run", "#!/bin/sh")]).await.unwrap_err();
    assert_eq!(other.code, ErrorCode::InvalidFunction);
    let missing =
        deploy("f", &[yaml("name: f\nhandler: runn"), File::executable("run", "#!/bin/sh")]).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::InvalidArchive);
    assert!(missing.message.contains("did you mean `run`"), "{}", missing.message);
    let dull = deploy("f", &[yaml("name: f\nhandler: run"), File::plain("run", "just text")]).await.unwrap_err();
    assert_eq!(dull.code, ErrorCode::InvalidArchive);
    assert!(dull.message.contains("chmod +x"), "{}", dull.message);
    assert!(table(&world, "f").await.is_none());

    let made = deploy("f", &[yaml("name: f\nhandler: run"), File::executable("run", "#!/bin/sh")]).await.unwrap();
    assert_eq!((made.version.version, made.version.digest.is_some()), (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_gateway_sees_a_change_within_a_second() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    deploy(&gateway, "f", "").await;
    let agent = world.agent("a", |job| Act::Succeed(job.invocation.version.unwrap().to_string())).await;
    knows(&other, &[&agent]).await;
    let version = async || other.call(&name("f"), payload("")).await.unwrap().version;
    assert_eq!(version().await, 1);
    deploy(&gateway, "f", "timeout: 5").await;
    eventually("the other gateway calls version 2", || async { version().await == 2 }).await;
    gateway.rollback(&name("f"), 1).await.unwrap();
    eventually("the other gateway calls version 1", || async { version().await == 1 }).await;
    gateway.delete_function(&name("f")).await.unwrap();
    eventually("the other gateway knows it is gone", || async {
        other
            .call(&name("f"), payload(""))
            .await
            .err()
            .is_some_and(|refusal| refusal.code == ErrorCode::FunctionNotFound)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_lost_everything_is_filled_again_from_the_store() {
    let mut world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    deploy(&gateway, "f", "timeout: 5").await;
    let digest = gateway.function(&name("f")).await.unwrap().current.digest.unwrap();
    // Its whole storage is new.
    world.broker = Arc::new(MemoryBroker::default());
    let gateway = world.gateway().await;
    eventually("the function is back", || async { table(&world, "f").await.is_some() }).await;
    assert_eq!(table(&world, "f").await.unwrap().version, 2);
    assert!(world.broker.get(Table::Versions, "f.1").await.unwrap().is_some());
    assert!(world.broker.has_blob(subject::CODE_BUCKET, &digest.hex()).await.unwrap());
    let _agent = world.agent("a", |_| Act::Succeed("runs".to_owned())).await;
    let accepted = gateway.invoke(&name("f"), payload("")).await.unwrap();
    ended(&world, accepted.execution_id).await;
}

/// Who deploys into a queue that was wiped, or rolls back, is quicker than who puts everything back.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_in_a_new_queue_already_gets_its_older_versions_back() {
    let mut world = World::new().await;
    let gateway = world.gateway().await;
    deploy(&gateway, "f", "").await;
    let first = gateway.function(&name("f")).await.unwrap().current.digest.unwrap();
    let another = archive(&[File::executable("run", "#!/bin/sh\necho another\n")]);
    gateway.deploy(&name("f"), another.into()).await.unwrap();
    let current = world.broker.get(Table::Functions, "f").await.unwrap().unwrap().value;
    world.broker = Arc::new(MemoryBroker::default());
    world.broker.say_tables_are_new();
    world.broker.put(Table::Versions, "f.2", current.clone()).await.unwrap();
    world.broker.put(Table::Functions, "f", current).await.unwrap();
    let gateway = world.gateway().await;
    let has_code = async |world: &World| world.broker.has_blob(subject::CODE_BUCKET, &first.hex()).await.unwrap();
    eventually("the older version and its code are back", || async {
        world.broker.get(Table::Versions, "f.1").await.unwrap().is_some() && has_code(&world).await
    })
    .await;
    // Whoever rolls back does not wait for that.
    world.broker.delete_blob(subject::CODE_BUCKET, &first.hex()).await.unwrap();
    gateway.rollback(&name("f"), 1).await.unwrap();
    assert!(has_code(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_not_served_is_refused() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let refusal = gateway.register(parse_yaml("name: f\nhandler: run\npool: gpu").unwrap()).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::InvalidFunction);
    assert_eq!(refusal.details["field"], "pool");
}

/// A deployment that the queue did not take is in the store, and from then on what gateways name; agents must find it.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_the_queue_missed_is_there_before_it_is_named() {
    let world = World::new().await;
    let (gateway, other) = (world.gateway().await, world.gateway().await);
    deploy(&gateway, "f", "").await;
    for (version, gateway) in [(2, &gateway), (3, &other)] {
        world.broker.fail_table_puts(1);
        let another = archive(&[File::executable("run", format!("#!/bin/sh\necho {version}\n"))]);
        let refusal = gateway.deploy(&name("f"), another.into()).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::QueueUnavailable);
    }
    let said = |version: u32| {
        let broker = Arc::clone(&world.broker);
        async move { broker.get(Table::Versions, &format!("f.{version}")).await.unwrap().is_some() }
    };
    assert!(!said(2).await && !said(3).await);
    // Which gateway is asked makes no difference, nor whether it is the current version.
    other.invoke(&name("f"), InvokeRequest { version: Some(2), ..payload("") }).await.unwrap();
    assert!(said(2).await);
    gateway.invoke(&name("f"), payload("")).await.unwrap();
    assert!(said(3).await);
    let current = world.broker.get(Table::Functions, "f").await.unwrap().unwrap();
    let current: FunctionVersion = serde_json::from_slice(&current.value).unwrap();
    assert_eq!(current.version, 3, "direct publishes mean it too");
}
