//! What goes wrong, and that it is said and leaves nothing.

use std::{fs, time::Duration};

use flux_firecracker::{DriverError, api::ApiError, vsock::VsockError};
use flux_testkit::firecracker::{Fault, StandIn};

use crate::harness::{Place, meet};

const WITHIN: Duration = Duration::from_secs(5);

async fn start_fails(faults: &[Fault], api_within: Duration) -> DriverError {
    let mut place = Place::new(faults);
    place.settings.api_within = api_within;
    let driver = place.driver().await;
    let error = match driver.start(&place.wish()).await {
        Ok(mut guest) => guest.connect(Duration::from_millis(300)).await.map(drop).unwrap_err(),
        Err(error) => error,
    };
    assert!(place.guests().is_empty(), "nothing is left after {error}");
    error
}

#[tokio::test]
async fn a_refusal_says_which_request_and_why() {
    for request in [
        "PUT /machine-config",
        "PUT /boot-source",
        "PUT /drives/rootfs",
        "PUT /drives/code",
        "PUT /vsock",
        "PUT /entropy",
        "PUT /actions",
    ] {
        let error = start_fails(&[Fault::Refuse(request)], WITHIN).await;
        let DriverError::Api(ApiError::Refused { request: said, status: 400, fault }) = &error else {
            panic!("{request}: {error:?}");
        };
        assert_eq!((said.as_str(), fault.as_str()), (request, "it was told to refuse this"));
        assert!(!error.is_retryable());
    }
}

#[tokio::test]
async fn what_does_not_answer_is_not_waited_for() {
    let error = start_fails(&[Fault::Hang("PUT /actions")], Duration::from_millis(400)).await;
    assert!(
        matches!(&error, DriverError::Api(ApiError::TimedOut { request, .. }) if request == "PUT /actions"),
        "{error:?}"
    );
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_crash_in_the_midst_of_a_start_is_noticed() {
    let error = start_fails(&[Fault::Crash("PUT /vsock")], WITHIN).await;
    let DriverError::Api(ApiError::Broken { request, .. } | ApiError::Nonsense { request, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(request, "PUT /vsock");
}

#[tokio::test]
async fn one_that_ends_before_it_listens_tells_what_it_said() {
    let error = start_fails(&[Fault::Useless], WITHIN).await;
    let DriverError::Ended { log, .. } = &error else { panic!("{error:?}") };
    assert_eq!(log, "RunWithApi error: it was told to end");
}

#[tokio::test]
async fn a_guest_that_never_listens_or_dies_is_said() {
    let error = start_fails(&[Fault::Deaf], WITHIN).await;
    assert!(matches!(error, DriverError::Vsock(VsockError::Silent { .. })), "{error:?}");
    // It ends in the midst of the last request, or right after it.
    let error = start_fails(&[Fault::Dies], WITHIN).await;
    assert!(matches!(error, DriverError::Ended { .. } | DriverError::Api(_)), "{error:?}");
}

#[tokio::test]
async fn one_that_is_killed_while_it_serves_is_noticed_and_does_no_harm_to_others() {
    let place = Place::new(&[]);
    let driver = place.driver().await;
    let mut killed = driver.start(&place.wish()).await.unwrap();
    let owner = fs::read_to_string(place.guests()[0].join("owner")).unwrap();
    let pid: i32 = owner.split(' ').next().unwrap().parse().unwrap();
    meet(&mut killed, WITHIN).await;
    let mut other = driver.start(&place.wish()).await.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = tokio::time::timeout(WITHIN, killed.ended()).await.unwrap().unwrap();
    assert!(!status.success());
    let error = killed.connect(WITHIN).await.unwrap_err();
    assert!(matches!(error, DriverError::Ended { .. }), "{error:?}");
    meet(&mut other, WITHIN).await;
    killed.end().await;
    assert_eq!(place.guests().len(), 1);
}

#[tokio::test]
async fn a_snapshot_that_is_not_made_leaves_the_guest() {
    let place = Place::new(&[Fault::Refuse("PUT /snapshot/create")]);
    let driver = place.driver().await;
    let mut guest = driver.start(&place.wish()).await.unwrap();
    meet(&mut guest, WITHIN).await;
    let error = driver.snapshot(&mut guest).await.unwrap_err();
    assert!(matches!(error, DriverError::Api(ApiError::Refused { .. })), "{error:?}");
    assert_eq!(driver.snapshot_count(), 0);
    meet(&mut guest, WITHIN).await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_loaded_is_removed_and_a_guest_is_booted() {
    let place = Place::new(&[]);
    let driver = place.driver().await;
    let mut guest = driver.start(&place.wish()).await.unwrap();
    meet(&mut guest, WITHIN).await;
    driver.snapshot(&mut guest).await.unwrap();
    for fault in [Fault::Refuse("PUT /snapshot/load"), Fault::Crash("PUT /snapshot/load")] {
        StandIn::make(place.folder.path(), std::slice::from_ref(&fault), None);
        let mut booted = driver.start(&place.wish()).await.unwrap();
        assert!(!booted.is_restored(), "{fault:?}");
        assert_eq!(driver.snapshot_count(), 0);
        meet(&mut booted, WITHIN).await;
        driver.snapshot(&mut booted).await.unwrap();
        assert_eq!(driver.snapshot_count(), 1);
    }
    // A broken file is refused by Firecracker, which then ends.
    StandIn::make(place.folder.path(), &[], None);
    for key in fs::read_dir(place.settings.directory.join("snapshots")).unwrap() {
        fs::write(key.unwrap().path().join("state"), "nonsense").unwrap();
    }
    assert!(!driver.start(&place.wish()).await.unwrap().is_restored());
}
