//! The client against a launcher that does exactly what a test says, and against a real one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use flux_launcher::wire::{
    Control, ControlReply, EndedReport, ExitStatus, LauncherWish, MAX_REPLY, RefusedReport, Reply, SpawnRequest,
};
use flux_launcher::{Capabilities, LauncherConfig, socket};

use super::*;

/// The launcher's ends of the two sockets, in the test's own hands.
struct Fake {
    spawn: OwnedFd,
    control: OwnedFd,
}

impl Fake {
    async fn connected() -> (Fake, Launcher, Driver) {
        let (spawn, its_spawn) = socket::pair().unwrap();
        let (control, its_control) = socket::pair().unwrap();
        let fake = Fake { spawn: its_spawn, control: its_control };
        let hello = ControlReply::Hello(Box::new(Capabilities { root: true, ..Capabilities::default() }));
        socket::send(fake.control.as_fd(), &hello.encode(), &[]).unwrap();
        let (launcher, driver) = Launcher::connect(spawn, control).await.unwrap();
        assert!(launcher.capabilities().root);
        (fake, launcher, driver)
    }

    fn say(&self, reply: &Reply) {
        socket::send(self.spawn.as_fd(), &reply.encode(), &[]).unwrap();
    }

    fn started(&self, id: u64) {
        self.say(&Reply::Started { id, pid: 42, started_at_us: 7 });
    }

    /// The next request's id. It is sent in the first poll of `spawn`, so it is there.
    fn requested(&self) -> u64 {
        let mut buffer = vec![0; MAX_REPLY];
        let packet = socket::recv(self.spawn.as_fd(), &mut buffer).unwrap();
        assert_eq!(packet.fds.len(), 3);
        SpawnRequest::decode(&buffer[..packet.len]).unwrap().id
    }

    /// The next control packet, as soon as there is one.
    async fn controlled(&self) -> Control {
        socket::set_nonblocking(self.control.as_fd()).unwrap();
        let mut buffer = vec![0; MAX_REPLY];
        loop {
            match socket::recv(self.control.as_fd(), &mut buffer) {
                Ok(packet) => return Control::decode(&buffer[..packet.len]).unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

fn null() -> OwnedFd {
    std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

fn stdio() -> [OwnedFd; 3] {
    [null(), null(), null()]
}

fn report(id: u64) -> EndedReport {
    EndedReport {
        id,
        status: ExitStatus::Exited(3),
        oom_killed: false,
        cpu_us: 1,
        memory_peak_bytes: 2,
        ended_at_us: 9,
    }
}

/// Runs `work` with the driver beside it.
async fn beside<T>(driver: &mut Driver, work: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        out = work => out,
        () = driver => panic!("the launcher's driver ended"),
    }
}

/// Starts one execution on the fake.
async fn running(fake: &Fake, launcher: &Launcher, driver: &mut Driver) -> (Running, u64) {
    let spawning = launcher.spawn(SpawnRequest::default(), stdio());
    tokio::pin!(spawning);
    assert!(futures::poll!(&mut spawning).is_pending());
    let id = fake.requested();
    fake.started(id);
    (beside(driver, spawning).await.unwrap(), id)
}

#[tokio::test]
async fn a_process_is_started_and_waited_for() {
    let (fake, launcher, mut driver) = Fake::connected().await;
    let (mut run, id) = running(&fake, &launcher, &mut driver).await;
    assert_eq!((run.pid(), run.started_at_us()), (42, 7));
    run.kill(nix::libc::SIGTERM);
    assert_eq!(fake.controlled().await, Control::Kill { id, signal: nix::libc::SIGTERM });
    fake.say(&Reply::Ended(report(id)));
    assert_eq!(beside(&mut driver, run.wait()).await, Ended::Finished(report(id)));
    assert_eq!(run.wait().await, Ended::Finished(report(id)));
}

#[tokio::test]
async fn the_start_and_end_of_a_short_process_come_together() {
    let (fake, launcher, mut driver) = Fake::connected().await;
    let spawning = launcher.spawn(SpawnRequest::default(), stdio());
    tokio::pin!(spawning);
    assert!(futures::poll!(&mut spawning).is_pending());
    let id = fake.requested();
    fake.say(&Reply::Ran { pid: 42, started_at_us: 7, ended: report(id) });
    let mut run = beside(&mut driver, spawning).await.unwrap();
    assert_eq!((run.pid(), run.started_at_us()), (42, 7));
    assert_eq!(beside(&mut driver, run.wait()).await, Ended::Finished(report(id)));
}

#[tokio::test]
async fn a_refusal_is_an_error_with_its_reason() {
    let (fake, launcher, mut driver) = Fake::connected().await;
    let spawning = launcher.spawn(SpawnRequest::default(), stdio());
    tokio::pin!(spawning);
    assert!(futures::poll!(&mut spawning).is_pending());
    let id = fake.requested();
    fake.say(&Reply::Refused(RefusedReport { id, step: "exec".to_owned(), errno: 2, message: "why".to_owned() }));
    let error = beside(&mut driver, spawning).await.unwrap_err();
    assert_eq!(error.to_string(), "why");
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn what_is_dropped_is_killed() {
    let (fake, launcher, mut driver) = Fake::connected().await;
    let (run, id) = running(&fake, &launcher, &mut driver).await;
    drop(run);
    assert_eq!(fake.controlled().await, Control::Kill { id, signal: nix::libc::SIGKILL });
    // Given up before it started: killed as soon as it did.
    {
        let spawning = launcher.spawn(SpawnRequest::default(), stdio());
        tokio::pin!(spawning);
        assert!(futures::poll!(&mut spawning).is_pending());
    }
    let id = fake.requested();
    fake.started(id);
    let killed = beside(&mut driver, fake.controlled()).await;
    assert_eq!(killed, Control::Kill { id, signal: nix::libc::SIGKILL });
}

#[tokio::test]
async fn a_dead_launcher_resolves_everything() {
    let (fake, launcher, mut driver) = Fake::connected().await;
    let (mut lost, _) = running(&fake, &launcher, &mut driver).await;
    let (mut ended, id) = running(&fake, &launcher, &mut driver).await;
    let spawning = launcher.spawn(SpawnRequest::default(), stdio());
    tokio::pin!(spawning);
    assert!(futures::poll!(&mut spawning).is_pending());
    // What it said before it died still counts.
    fake.say(&Reply::Ended(report(id)));
    drop(fake);
    driver.await;
    launcher.closed().await;
    assert_eq!(lost.wait().await, Ended::LauncherLost);
    assert_eq!(ended.wait().await, Ended::Finished(report(id)));
    assert!(matches!(spawning.await, Err(LaunchError::LauncherLost)));
    // What it never had is not lost with it.
    let later = launcher.spawn(SpawnRequest::default(), stdio()).await;
    assert!(matches!(later, Err(LaunchError::Unavailable { .. })), "{later:?}");
    assert!(launcher.ping().await.is_err());
}

#[tokio::test]
async fn a_dropped_driver_ends_the_launcher() {
    let (fake, launcher, driver) = Fake::connected().await;
    drop(driver);
    launcher.closed().await;
    let packet = socket::recv(fake.control.as_fd(), &mut [0; 64]).unwrap();
    assert_eq!(packet.len, 0);
}

/// The probe of the launcher's own crate, which a build of the whole workspace makes.
fn probe() -> Option<PathBuf> {
    let tests = std::env::current_exe().ok()?;
    let path = tests.parent()?.parent()?.join("flux-launcher-probe");
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is not built; `cargo build --workspace` makes it", path.display());
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "CI must run this test");
    None
}

#[tokio::test]
async fn a_pool_replaces_a_launcher_that_was_killed() {
    let Some(program) = probe() else { return };
    let directory = tempfile::tempdir().unwrap();
    let config = LauncherConfig::new(directory.path().join("launcher"), 2);
    let (pool, mut driver) = LauncherPool::connect(Source::Direct { program, config }).await.unwrap();
    let request = |program: &str, args: &[&str]| SpawnRequest {
        slot_key: "f@1".to_owned(),
        program: program.to_owned(),
        args: args.iter().map(|&a| a.to_owned()).collect(),
        code_dir: directory.path().to_owned(),
        ..SpawnRequest::default()
    };
    for _ in 0..3 {
        let mut run = beside(&mut driver, pool.spawn(request("/bin/sh", &["-c", "exit 5"]), stdio())).await.unwrap();
        let Ended::Finished(report) = beside(&mut driver, run.wait()).await else { panic!("lost") };
        assert_eq!(report.status, ExitStatus::Exited(5));

        let mut run = beside(&mut driver, pool.spawn(request("/bin/sleep", &["1000"]), stdio())).await.unwrap();
        let launcher = pool.launcher().await.unwrap();
        beside(&mut driver, launcher.ping()).await.unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", run.pid())).unwrap();
        let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::SIGKILL).unwrap();
        assert_eq!(beside(&mut driver, run.wait()).await, Ended::LauncherLost);
        beside(&mut driver, launcher.closed()).await;
    }
    let refused = beside(&mut driver, pool.spawn(request("missing", &[]), stdio())).await.unwrap_err();
    assert!(refused.to_string().contains("not in the archive"), "{refused}");
}

#[tokio::test]
async fn the_tree_hands_out_launchers() {
    use flux_launcher::wire::LauncherAnswer;
    let (ours, theirs) = socket::pair().unwrap();
    let link = TreeLink::new_from(ours).unwrap();
    let wish = LauncherWish { tasks: Some(4), ..LauncherWish::default() };
    let asking = link.request_launcher(&wish);
    tokio::pin!(asking);
    assert!(futures::poll!(&mut asking).is_pending());
    let mut buffer = vec![0; MAX_REPLY];
    let packet = socket::recv(theirs.as_fd(), &mut buffer).unwrap();
    assert_eq!(&buffer[..packet.len], br#"{"tasks":4}"#);
    let answer = serde_json::to_vec(&LauncherAnswer::Failed { message: "no room".to_owned() }).unwrap();
    socket::send(theirs.as_fd(), &answer, &[]).unwrap();
    let waited = tokio::time::timeout(Duration::from_secs(5), asking).await.unwrap();
    let Err(error) = waited else { panic!("there was a launcher") };
    assert!(error.to_string().contains("no room"));
}

#[tokio::test]
async fn signals_wait_for_a_launcher_that_is_slow_to_read_them() {
    let (fake, launcher, mut driver) = Fake::connected().await;
    let (run, id) = running(&fake, &launcher, &mut driver).await;
    // Far more than the socket has room for.
    let signals: Vec<i32> = (1..=4000).collect();
    for signal in &signals {
        run.kill(*signal);
    }
    beside(&mut driver, async {
        for signal in signals {
            assert_eq!(fake.controlled().await, Control::Kill { id, signal });
        }
    })
    .await;
}
