//! Whom a gateway tells of a call that nobody takes.

use std::time::Duration;

use flux_broker::{Change, Signals as _, Table, Tables as _};
use flux_protocol::{agent::ControlRequest, limits, subject};
use futures::StreamExt as _;
use tokio::time::timeout;

use crate::{
    fake_agent::Act,
    world::{World, deploy, knows, name, payload},
};

const WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_told_by_name_of_a_call_that_it_does_not_take() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed("done".to_owned())).await;
    agent.hold_off(true);
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let mut told = world.broker.listen(&subject::control(agent.id())).await.unwrap();
    let function = name("f");
    let listening = async {
        let signal = timeout(WITHIN, told.next()).await.expect("told").expect("a signal");
        assert!(signal.reply_to.is_none(), "nobody waits for an answer");
        agent.hold_off(false);
        serde_json::from_slice::<ControlRequest>(&signal.body).unwrap()
    };
    let (called, request) = tokio::join!(gateway.call(&function, payload("")), listening);
    assert_eq!(request, ControlRequest::Ring { queue: "call.default.f".to_owned() });
    called.expect("taken once it was told");
}

/// Was refused after one grace as if there were no room, beside an agent that had all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_not_refused_while_an_agent_says_that_it_has_room() {
    let world = World::new().await;
    let gateway = world.gateway().await;
    let agent = world.agent("a", |_| Act::Succeed("done".to_owned())).await;
    agent.hold_off(true);
    knows(&gateway, &[&agent]).await;
    deploy(&gateway, "f", "").await;
    let mut hot = world.broker.watch(Table::Hot, false).await.unwrap();
    let began = tokio::time::Instant::now();
    let function = name("f");
    let late = async {
        // Made hot; rung for after 100 ms; and once more after the grace.
        let mut puts = 0;
        while puts < 3 {
            let change = timeout(WITHIN, hot.next()).await.expect("all agents are called again").expect("the table");
            puts += usize::from(matches!(change, Ok(Change::Put(_))));
        }
        assert!(began.elapsed() >= limits::PICKUP_GRACE, "{:?}", began.elapsed());
        agent.hold_off(false);
    };
    let (called, ()) = tokio::join!(gateway.call(&function, payload("")), late);
    called.expect("an agent with room had it in the end");
}

/// Was answered with `cancelled`, which nobody had asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_not_all_agents_could_be_asked_to_give_back_is_refused_by_those_that_were() {
    is_refused_by_those_that_were_asked(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_it_is_refused_also_where_their_reply_is_lost() {
    is_refused_by_those_that_were_asked(true).await;
}

async fn is_refused_by_those_that_were_asked(replies_are_lost: bool) {
    let world = World::with_less().await;
    let gateway = world.gateway().await;
    let agents = [
        world.agent("a", |_| Act::Succeed("done".to_owned())).await,
        world.agent("b", |_| Act::Succeed("done".to_owned())).await,
    ];
    let [asked, deaf] = &agents;
    agents.iter().for_each(|agent| agent.hold_off(true));
    knows(&gateway, &[asked, deaf]).await;
    deploy(&gateway, "f", "").await;
    deaf.set_deaf(true);
    asked.lose_replies(replies_are_lost);
    let mut control = world.broker.listen(subject::control_all()).await.unwrap();
    let function = name("f");
    let late = async {
        let id = loop {
            let signal = timeout(WITHIN, control.next()).await.expect("agents are asked").expect("a signal");
            if let Ok(ControlRequest::Withdrawn { execution_id, .. }) = serde_json::from_slice(&signal.body) {
                break execution_id;
            }
        };
        asked.until("it was asked", |agent| agent.refuses(id)).await;
        asked.hold_off(false);
    };
    let (called, ()) = tokio::join!(gateway.call(&function, payload("")), late);
    let refusal = called.expect_err("nothing ran");
    assert!(refusal.retry_after.is_some(), "{refusal:?}");
}
