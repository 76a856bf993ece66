//! Guests as they should be.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, time::Duration};

use flux_firecracker::{Size, Wish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Place, SIZE, WAKE, meet};

const WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_guest_is_booted_and_spoken_to_and_leaves_nothing() {
    let place = Place::new(&[]);
    let driver = place.driver().await;
    assert_eq!(driver.facts().firecracker, "1.16.1");
    let mut guest = driver.start(&place.wish()).await.unwrap();
    assert!(!guest.is_restored());
    let mut met = meet(&mut guest, WITHIN).await;
    assert_eq!(met.how, "booted");
    met.stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    met.stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
    assert_eq!(place.guests().len(), 1);
    guest.end().await;
    assert_eq!(place.guests(), [] as [std::path::PathBuf; 0]);
}

#[tokio::test]
async fn clones_of_a_snapshot_are_the_same_guest_with_other_randomness() {
    let place = Place::new(&[]);
    let driver = place.driver().await;
    let mut first = driver.start(&place.wish()).await.unwrap();
    let mut met = meet(&mut first, WITHIN).await;
    driver.snapshot(&mut first).await.unwrap();
    // Open connections end, the guest goes on.
    assert_eq!(met.stream.read(&mut [0; 16]).await.unwrap(), 0);
    let again = meet(&mut first, WITHIN).await;
    assert_eq!((again.how.as_str(), &again.boot), ("booted", &met.boot));

    // At the same time, each with a socket of its own.
    let mut clones = Vec::new();
    for _ in 0..2 {
        clones.push(driver.start(&place.wish()).await.unwrap());
    }
    let mut wakes = BTreeSet::from([met.wake, again.wake]);
    let before = flux_protocol::time::now().as_micros();
    for clone in &mut clones {
        assert!(clone.is_restored());
        assert!(!clone.may_become_snapshot());
        let met_clone = meet(clone, WITHIN).await;
        assert_eq!((met_clone.how.as_str(), &met_clone.boot), ("restored", &met.boot));
        let time = i64::from_be_bytes(met_clone.wake[5..13].try_into().unwrap());
        assert!((before..before + 60_000_000).contains(&time), "{time}");
        wakes.insert(met_clone.wake);
    }
    assert_eq!(wakes.len(), 4, "nobody is woken as another is");
    assert_eq!(wakes.iter().map(|wake| &wake[13..WAKE]).collect::<BTreeSet<_>>().len(), 4);
    for clone in clones {
        clone.end().await;
    }
    first.end().await;
    assert!(place.guests().is_empty());
}

#[tokio::test]
async fn a_snapshot_is_closed_to_others_and_for_what_it_was_made_of() {
    let place = Place::new(&[]);
    let driver = place.driver().await;
    let mut guest = driver.start(&place.wish()).await.unwrap();
    meet(&mut guest, WITHIN).await;
    driver.snapshot(&mut guest).await.unwrap();
    driver.snapshot(&mut guest).await.unwrap();
    assert_eq!(driver.snapshot_count(), 1, "once is enough");
    let snapshots = place.settings.directory.join("snapshots");
    assert_eq!(fs::metadata(&snapshots).unwrap().mode() & 0o777, 0o700);
    for key in fs::read_dir(&snapshots).unwrap() {
        for file in fs::read_dir(key.unwrap().path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
        }
    }
    let same = place.wish();
    for other in [
        Wish { function: "f@2", ..same },
        Wish { code_digest: "c2", ..same },
        Wish { size: Size { memory_mib: 256, ..SIZE }, ..same },
        Wish { size: Size { vcpus: 2, ..SIZE }, ..same },
        Wish { snapshot: false, ..same },
    ] {
        let guest = driver.start(&other).await.unwrap();
        assert!(!guest.is_restored(), "{other:?}");
        assert_eq!(guest.may_become_snapshot(), other.snapshot);
        guest.end().await;
    }
    // Another root file system is another guest.
    fs::write(place.folder.path().join("rootfs"), "newer").unwrap();
    let next = place.driver().await;
    assert!(!next.start(&same).await.unwrap().is_restored());
}

#[tokio::test]
async fn the_next_driver_ends_what_was_left_and_keeps_snapshots() {
    let place = Place::new(&[]);
    let driver = place.driver().await;
    let mut guest = driver.start(&place.wish()).await.unwrap();
    meet(&mut guest, WITHIN).await;
    driver.snapshot(&mut guest).await.unwrap();
    let owner = fs::read_to_string(place.guests()[0].join("owner")).unwrap();
    let pid: i32 = owner.split(' ').next().unwrap().parse().unwrap();
    assert!(flux_testkit::is_alive(pid));
    // As if the driver had been killed: nothing of it is cleaned up.
    std::mem::forget(guest);
    std::mem::forget(driver);
    // A number that is somebody else's now, as its start time says.
    let other = place.settings.directory.join("guests/firecracker/7-7");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("owner"), format!("{} 1", std::process::id())).unwrap();

    let next = place.driver().await;
    assert!(!flux_testkit::is_alive(pid), "it is ended");
    assert!(place.guests().is_empty());
    let mut clone = next.start(&place.wish()).await.unwrap();
    assert!(clone.is_restored());
    assert_eq!(meet(&mut clone, WITHIN).await.how, "restored");
}

#[tokio::test]
async fn a_dropped_guest_is_ended() {
    let place = Place::new(&[]);
    let driver = place.driver().await;
    let guest = driver.start(&place.wish()).await.unwrap();
    let owner = fs::read_to_string(place.guests()[0].join("owner")).unwrap();
    let pid: i32 = owner.split(' ').next().unwrap().parse().unwrap();
    drop(guest);
    flux_testkit::eventually(WITHIN, "it ends", || async { !flux_testkit::is_alive(pid) }).await;
    assert!(place.guests().is_empty());
}
