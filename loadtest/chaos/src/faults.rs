//! Doing to a topology what the plan says, and waiting until it is well again.

use std::time::{Duration, Instant};

use flux_testkit::{Api, Process, eventually};
use reqwest::Method;
use serde_json::json;

use crate::{
    function,
    history::{Event, FaultKind, History},
    plan::{Fault, Step},
    strike::Topology,
};

/// The promise is seconds; beyond this it is not coming back.
pub(crate) const RECOVERS_WITHIN: Duration = Duration::from_secs(60);
/// Less than any deadline of the load, more than any lease.
const CLOCK_STEP_SECONDS: i64 = 20;
const BETWEEN_PROBES: Duration = Duration::from_millis(50);
/// One try of the call that tells that it is well again.
const PROBE: Duration = Duration::from_secs(3);

/// Strikes once. Whether there was anything to strike: a process may be on its way to be started again.
pub(crate) async fn strike<T: Topology>(topology: &mut T, step: Step, fault: u64, history: &History) -> bool {
    let struck = || Event::Struck { fault, kind: step.fault.kind(), target: step.fault.target().to_owned() };
    let hold = Duration::from_millis(step.hold_ms);
    match step.fault {
        Fault::Kill(victim) => {
            let processes = topology.processes(victim);
            if processes.is_empty() {
                return false;
            }
            history.note(struck());
            processes.iter().for_each(Process::kill9);
            eventually(RECOVERS_WITHIN, format!("{} to be dead", victim.role()), || async {
                !processes.iter().any(Process::is_alive)
            })
            .await;
            topology.mend().await;
        }
        Fault::Pause(victim) => {
            let processes = topology.processes(victim);
            if processes.is_empty() {
                return false;
            }
            history.note(struck());
            processes.iter().for_each(Process::pause);
            tokio::time::sleep(hold).await;
            processes.iter().for_each(Process::resume);
            history.note(Event::Lifted { fault });
        }
        Fault::DiskFull => {
            let Some(disk) = topology.disk() else { return false };
            history.note(struck());
            disk.fill();
            tokio::time::sleep(hold).await;
            disk.free();
            history.note(Event::Lifted { fault });
        }
        Fault::Wipe(_) => {
            history.note(struck());
            topology.wipe().await;
            topology.mend().await;
            history.note(Event::Lifted { fault });
        }
        Fault::Cut(cut) => {
            let Some(target) = topology.describe(cut).await else { return false };
            history.note(Event::Struck { fault, kind: step.fault.kind(), target });
            topology.cut(cut);
            tokio::time::sleep(hold).await;
            topology.clear_links();
            history.note(Event::Lifted { fault });
        }
        Fault::Clock(victim) => {
            // The seed's, as the time it holds for.
            let seconds = if step.hold_ms.is_multiple_of(2) { CLOCK_STEP_SECONDS } else { -CLOCK_STEP_SECONDS };
            if !topology.set_clock(victim, seconds) {
                return false;
            }
            history.note(struck());
            tokio::time::sleep(hold).await;
            topology.set_clock(victim, 0);
            history.note(Event::Lifted { fault });
        }
        Fault::Link(victim, far, kind) => {
            history.note(struck());
            let bad = topology.set_links(victim, far, kind);
            // A reset is over at once.
            if bad && kind != FaultKind::BrokenLink {
                tokio::time::sleep(hold).await;
            }
            topology.clear_links();
            history.note(Event::Lifted { fault });
        }
    }
    if !step.hasty {
        if step.fault == Fault::DiskFull {
            stores(topology).await;
        }
        recovered(topology, fault, history).await;
        if matches!(step.fault, Fault::Wipe(_)) {
            topology.remembers().await;
        }
        tokio::time::sleep(Duration::from_millis(step.calm_ms)).await;
    }
    true
}

/// Waits until calls succeed again on every gateway.
async fn recovered<T: Topology>(topology: &mut T, fault: u64, history: &History) {
    for api in topology.apis() {
        let until = Instant::now() + RECOVERS_WITHIN;
        while !probe(&api).await {
            assert!(Instant::now() < until, "no call succeeded within {RECOVERS_WITHIN:?} of {}", api.base());
            for program in topology.supervise() {
                history.note(Event::Restarted { program: program.to_owned() });
            }
            tokio::time::sleep(BETWEEN_PROBES).await;
        }
    }
    history.note(Event::Recovered { fault });
}

/// Waits until the queue stores what it is sent: a call needs none of its disk, and what is only in memory until then would go
/// with the next fault.
async fn stores<T: Topology>(topology: &T) {
    for api in topology.apis() {
        eventually(RECOVERS_WITHIN, "an invocation to be accepted", || async {
            let path = format!("/execute/{}/async", function::PROBE);
            let request = api.request(Method::POST, &path).json(&json!({})).timeout(PROBE * 3);
            Api::try_send(request).await.is_ok_and(|reply| reply.status == 202)
        })
        .await;
        eventually(RECOVERS_WITHIN, "the queue to store everything again", || async {
            Api::try_send(api.request(Method::GET, "/ready")).await.is_ok_and(|reply| reply.status == 200)
        })
        .await;
    }
}

pub(crate) async fn probe(api: &Api) -> bool {
    let path = format!("/execute/{}", function::PROBE);
    let request = api.request(Method::POST, &path).json(&json!({})).timeout(PROBE);
    Api::try_send(request).await.is_ok_and(|reply| reply.status == 200)
}
