//! The seam's clauses, and what is special to Compute Engine.

use axum::http::Method;
use flux_provider::{ErrorKind, NodeId, NodeState, Provider as _, Zone, conformance::Subject};

use crate::{
    Google,
    compute::{FINGERPRINT, Trouble, ZONES},
    name, node_type, request,
};

async fn subject() -> Subject {
    let google = Google::start().await;
    Subject {
        provider: google.provider("here").await,
        other_cluster: google.provider("there").await,
        cluster: name("here"),
        small: node_type("e2-small"),
        large: node_type("e2-standard-4"),
        no_such_node: NodeId::parse("europe-west3-a/here-0").expect("an id"),
        guard: Box::new(google),
    }
}

mod every_clause {
    flux_provider::conformance_tests!(super::subject().await);
}

#[tokio::test]
async fn a_launch_whose_answer_was_lost_is_found_by_another_process_in_whatever_zone_it_is_asked_for() {
    let google = Google::start().await;
    google.compute.world(|world| world.trouble(Method::POST, "/instances", Trouble::LoseAnswer));
    let mut asked = request("lost-1");
    // A look shows that it is there, whatever became of the answer.
    let before = google.provider("lost").await.launch(&asked).await.expect("launched");
    asked.zone = Some(Zone::parse(ZONES[1]).expect("a zone"));
    let after = google.provider("lost").await.launch(&asked).await.expect("found");
    assert_eq!((before.id, before.zone.as_str()), (after.id, ZONES[0]));
    assert_eq!(google.compute.inserts().len(), 1);
}

#[tokio::test]
async fn two_processes_that_launch_the_same_at_once_get_one_machine() {
    let google = Google::start().await;
    google.compute.world(|world| world.operations_take = 2);
    let (one, other) = (google.provider("here").await, google.provider("here").await);
    let asked = request("here-1");
    let (one, other) = tokio::join!(one.launch(&asked), other.launch(&asked));
    assert_eq!(one.expect("launched").id, other.expect("launched").id);
    assert_eq!(google.compute.world(|world| world.alive()), ["europe-west3-a/here-1"]);
    let ids: Vec<_> = google.compute.inserts().iter().map(|insert| insert.query["requestId"].clone()).collect();
    assert!(ids.windows(2).all(|ids| ids[0] == ids[1]), "of one request: {ids:?}");
}

#[tokio::test]
async fn a_machine_whose_operation_takes_long_is_returned_as_it_is() {
    let google = Google::start().await;
    google.compute.world(|world| world.operations_take = u32::MAX);
    let node = google.provider("here").await.launch(&request("here-1")).await.expect("it is there");
    assert_eq!((node.id.as_str(), node.state), ("europe-west3-a/here-1", NodeState::Pending));
}

#[tokio::test]
async fn a_zone_without_room_leaves_nothing_and_the_next_takes_the_same_token() {
    let google = Google::start().await;
    let failed = crate::refusals::operation_error("ZONE_RESOURCE_POOL_EXHAUSTED", "does not have enough resources");
    google.compute.world(|world| world.inserts_fail = vec![failed]);
    let provider = google.provider("here").await;
    let mut asked = request("here-1");
    let full = provider.launch(&asked).await.expect_err("the zone is full");
    assert_eq!(full.kind(), ErrorKind::Capacity, "{full:?}");
    assert_eq!(google.compute.world(|world| world.alive()), [""; 0]);
    asked.zone = Some(Zone::parse(ZONES[1]).expect("a zone"));
    let node = provider.launch(&asked).await.expect("the next zone has room");
    assert_eq!(node.id.as_str(), "europe-west3-b/here-1");
    let [one, other] = &google.compute.inserts()[..] else { panic!("two inserts") };
    assert_ne!(one.query["requestId"], other.query["requestId"], "another zone is another request");
}

#[tokio::test]
async fn what_failed_at_google_is_asked_for_anew_and_not_answered_from_memory() {
    let google = Google::start().await;
    google.compute.world(|world| {
        world.inserts_fail =
            vec![crate::refusals::operation_error("INTERNAL_ERROR", "Internal error. Please try again.")];
    });
    let provider = google.provider("here").await;
    let asked = request("here-1");
    let failed = provider.launch(&asked).await.expect_err("its operation fails");
    assert_eq!(failed.kind(), ErrorKind::Unavailable, "{failed:?}");
    assert_eq!(provider.launch(&asked).await.expect("launched").id.as_str(), "europe-west3-a/here-1");
}

#[tokio::test]
async fn what_went_since_is_launched_anew_though_google_remembers_the_request() {
    let google = Google::start().await;
    google.provider("here").await.launch(&request("here-1")).await.expect("launched");
    google.compute.world(|world| world.delete_elsewhere("europe-west3-a", "here-1"));
    let after = google.provider("here").await;
    let went = after.launch(&request("here-1")).await.expect_err("Google answers with the operation of then");
    assert_eq!(went.kind(), ErrorKind::Unavailable, "{went:?}");
    after.launch(&request("here-1")).await.expect("launched anew");
    assert_eq!(google.compute.world(|world| world.alive()), ["europe-west3-a/here-1"]);
}

#[tokio::test]
async fn a_type_that_one_zone_has_is_no_wrong_setting_in_another() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    let mut asked = request("here-1");
    asked.node_type = node_type("c4-standard-8");
    let error = provider.launch(&asked).await.expect_err("the first zone does not have it");
    assert_eq!(error.kind(), ErrorKind::Capacity, "{error:?}");
    asked.zone = Some(Zone::parse(ZONES[1]).expect("a zone"));
    provider.launch(&asked).await.expect("the second has it");
    let described = provider.describe_types(&[node_type("c4-standard-8")]).await.expect("described");
    assert_eq!((described[0].cpu_millicores, described[0].memory_mb), (8_000, 30_720));
    // What is wrong with a type that the zone has, another zone does not mend.
    let wrong = "Invalid value for field 'resource.machineType': 'c4-standard-8'. It does not go with the image's architecture.";
    let wrong = crate::compute::refusal(400, "invalid", wrong);
    google.compute.world(|world| world.trouble(Method::POST, "/instances", Trouble::Answer(wrong)));
    asked.client_token = request("here-2").client_token;
    let error = provider.launch(&asked).await.expect_err("it is refused");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
}

#[tokio::test]
async fn all_pages_of_all_zones_are_listed_and_a_zone_out_of_reach_is_an_error() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    for number in 0..7 {
        let mut asked = request(&format!("here-{number}"));
        asked.zone = Some(Zone::parse(ZONES[number % 2]).expect("a zone"));
        provider.launch(&asked).await.expect("launched");
    }
    // A zone that is not configured any more still has its nodes.
    let mut settings = google.settings();
    settings.zones = vec![ZONES[1].to_owned()];
    let narrow = google.provider_with("here", settings).await;
    narrow.list().await.expect("the first list is late");
    let nodes = narrow.list().await.expect("listed");
    let mut ids: Vec<_> = nodes.iter().map(|node| node.id.to_string()).collect();
    ids.sort();
    assert_eq!(ids, google.compute.world(|world| world.alive()));
    assert_eq!(ids.len(), 7);
    google.compute.world(|world| world.unreachable = vec![ZONES[0].to_owned()]);
    let error = provider.list().await.expect_err("a shorter list is none");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn an_instance_of_the_tokens_name_that_is_not_ours_is_neither_taken_nor_ended() {
    let google = Google::start().await;
    let (here, there) = (google.provider("here").await, google.provider("there").await);
    let theirs = there.launch(&request("same-1")).await.expect("launched");
    let error = here.launch(&request("same-1")).await.expect_err("the name is taken");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    here.terminate(&theirs.id).await.expect("not seen");
    assert_eq!(google.compute.world(|world| world.alive()), [theirs.id.as_str()]);
}

#[tokio::test]
async fn host_keys_come_from_the_console_or_else_from_the_guest_attributes() {
    for on_console in [true, false] {
        let google = Google::start().await;
        google.compute.world(|world| world.keys_on_console = on_console);
        let provider = google.provider("here").await;
        let node = provider.launch(&request("here-1")).await.expect("launched");
        let console = provider.console_output(&node.id).await.expect("a console");
        assert!(console.host_keys.is_empty() && console.text.contains("Linux version"), "{console:?}");
        let mut nodes = Vec::new();
        while !nodes.iter().any(|node: &flux_provider::Node| node.state == NodeState::Running) {
            nodes = provider.list().await.expect("listed");
        }
        let console = provider.console_output(&node.id).await.expect("a console");
        let keys: Vec<_> = console.host_keys.iter().map(|key| key.as_str()).collect();
        assert_eq!(keys, [FINGERPRINT], "on the console: {on_console}");
    }
}

#[tokio::test]
async fn guest_attributes_that_may_not_be_read_are_said_in_the_console() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    let node = provider.launch(&request("here-1")).await.expect("launched");
    let message = "Required 'compute.instances.getGuestAttributes' permission for 'projects/crew-1/zones/europe-west3-a/instances/here-1'";
    let refused = crate::compute::refusal(403, "forbidden", message);
    google.compute.world(|world| world.trouble(Method::GET, "/getGuestAttributes", Trouble::Answer(refused)));
    let console = provider.console_output(&node.id).await.expect("a console");
    assert!(
        console.host_keys.is_empty() && console.text.contains("the guest attributes cannot be read"),
        "{console:?}"
    );
}

#[tokio::test]
async fn a_machine_that_shut_itself_down_is_not_taken_for_one_that_goes() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    let node = provider.launch(&request("here-1")).await.expect("launched");
    google.compute.world(|world| world.stop("europe-west3-a", "here-1"));
    provider.list().await.expect("the first list is late");
    let listed = provider.list().await.expect("listed");
    assert!(listed[0].state.is_alive(), "its disk is paid for: {listed:?}");
    provider.terminate(&node.id).await.expect("terminated");
    assert_eq!(google.compute.world(|world| world.alive()), [""; 0]);
}

#[tokio::test]
async fn a_node_that_went_by_itself_is_terminated_without_an_error() {
    let google = Google::start().await;
    let provider = google.provider("here").await;
    let node = provider.launch(&request("here-1")).await.expect("launched");
    // Between our look and our word, somebody else was quicker.
    let gone = crate::compute::refusal(404, "notFound", "The resource was not found");
    google.compute.world(|world| world.trouble(Method::DELETE, "/instances/here-1", Trouble::Answer(gone)));
    provider.terminate(&node.id).await.expect("it is gone");
    google.compute.world(|world| world.delete_elsewhere("europe-west3-a", "here-1"));
    provider.terminate(&node.id).await.expect("it is gone");
}
