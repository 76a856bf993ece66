//! Processes: their end, their output, their descendants, and what they leave.

use std::time::Duration;

use flux_testkit::{FluxCommand, Process, assert_no_processes_left, eventually, is_alive, processes_matching};

const DEADLINE: Duration = Duration::from_secs(10);

fn shell(script: &str) -> FluxCommand {
    FluxCommand::of_program("/bin/sh").arg("-c").arg(script)
}

#[tokio::test]
async fn its_exit_status_and_output_are_kept() {
    let mut process = shell("echo out; echo err >&2; exit 7").spawn();
    assert_eq!(process.wait_exit(DEADLINE).await.code(), Some(7));
    assert_eq!(process.log(), "out\nerr\n");
    assert!(!process.is_running());
}

#[tokio::test]
async fn it_is_given_its_own_environment_and_none_of_our_settings() {
    let output = shell("echo $GIVEN; cat; exit 3").env("GIVEN", "yes").stdin("input").output(DEADLINE).await;
    assert_eq!((output.status.code(), output.stdout), (Some(3), b"yes\ninput".to_vec()));
}

#[tokio::test]
async fn sigterm_is_its_to_handle() {
    let mut process = shell("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done").spawn();
    eventually(DEADLINE, "the trap to be set", || std::future::ready(process.log().contains("ready"))).await;
    process.terminate();
    assert_eq!(process.wait_exit(DEADLINE).await.code(), Some(5));
}

#[tokio::test]
async fn descendants_are_found_and_do_not_outlive_the_handle() {
    let process = shell("sh -c 'sleep 300; true'; true").spawn();
    eventually(DEADLINE, "the grandchild", || std::future::ready(process.descendants().len() == 2)).await;
    let sleep = process.descendant("sleep 300");
    assert!(sleep.is_alive());
    drop(process);
    eventually(DEADLINE, "the grandchild to go", || std::future::ready(!is_alive(sleep.pid))).await;
}

#[tokio::test]
async fn what_is_left_over_is_seen_by_its_marker() {
    let marker = format!("leftover-{}", std::process::id());
    let mut process = shell(&format!("sleep 300 & : {marker}; wait")).env("MARK", &marker).spawn();
    eventually(DEADLINE, "both processes", || std::future::ready(processes_matching(&marker).len() == 2)).await;
    let child = process.descendant("sleep 300");
    process.kill9();
    assert_eq!(processes_matching(&marker), [Process::of(child.pid).expect("alive")]);
    child.kill9();
    assert_no_processes_left(&marker).await;
}

/// As for a moment after every SIGKILL: it has its ports still, and cannot be waited for.
#[tokio::test]
async fn what_lost_its_first_thread_and_no_other_is_alive() {
    const SCRIPT: &str = "import ctypes, threading, time\n\
        threading.Thread(target=time.sleep, args=(300,)).start()\n\
        ctypes.CDLL(None).pthread_exit(None)";
    let process = FluxCommand::of_program("python3").args(["-c", SCRIPT]).spawn();
    let seen = || Process::of(process.pid()).expect("it is there");
    eventually(DEADLINE, "its first thread to go", || std::future::ready(seen().state == 'Z')).await;
    assert!(seen().is_alive(), "{}", seen());
}

#[tokio::test]
#[should_panic(expected = "left over after")]
async fn a_leftover_fails_the_test() {
    let marker = format!("stubborn-{}", std::process::id());
    let _process = shell("sleep 300; true").env("MARK", &marker).spawn();
    eventually(DEADLINE, "it to start", || std::future::ready(!processes_matching(&marker).is_empty())).await;
    assert_no_processes_left(&marker).await;
}

#[tokio::test]
#[should_panic(expected = "waited 50ms in vain for the impossible")]
async fn an_unmet_condition_fails_with_its_name() {
    eventually(Duration::from_millis(50), "the impossible", || std::future::ready(false)).await;
}
