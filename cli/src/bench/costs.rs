//! What a call costs in CPU time and context switches, process by process, read from `/proc` around a load.
//!
//! On a machine that others use too this says more than a latency: it is what we took, not how long we waited for it.
//! How much CPU time a process had comes from its clock, in nanoseconds; how it falls to user and system from the
//! kernel's ticks of 10 ms, so that a short load gives a rough division of an exact sum.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use super::figures::summary;

/// Which part of Flux a process is, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Gateway,
    Agent,
    /// Both of them, under `flux up`.
    Worker,
    Launcher,
    /// The holders of the slots.
    Slots,
    /// Processes of functions that have ended: what their launcher waited for.
    Functions,
    Nats,
    /// The small parent that starts the others again.
    Tree,
    /// Ours, over the programs that we start: no part of Flux.
    Guard,
    /// What made the load: not ours, on the same cores.
    Generator,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Agent => "agent",
            Self::Worker => "worker (gateway and agent)",
            Self::Launcher => "launcher",
            Self::Slots => "slots' holders",
            Self::Functions => "functions",
            Self::Nats => "nats-server",
            Self::Tree => "tree root",
            Self::Guard => "guard",
            Self::Generator => "load generator",
        }
    }

    /// By the command line, and by the parent's where that says nothing.
    fn of(command: &str, name: &str, parent: Option<Self>) -> Self {
        let mut words = command.split('\0');
        let program = words.next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        match (program, words.next().unwrap_or_default()) {
            ("yardstick", "guard") => Self::Guard,
            ("nats-server", _) => Self::Nats,
            ("flux-gateway", _) => Self::Gateway,
            (_, "__launcher") | ("flux-launcher", _) => Self::Launcher,
            (_, "__serve") => Self::Worker,
            _ if name == "nats-server" => Self::Nats,
            // The tree of `flux up` has no others; that of `flux-agent` starts itself again.
            _ if parent == Some(Self::Tree) => Self::Agent,
            _ if matches!(parent, Some(Self::Launcher | Self::Slots)) => Self::Slots,
            _ => parent.filter(|parent| *parent != Self::Guard).unwrap_or(Self::Tree),
        }
    }
}

/// One process at one time.
#[derive(Debug, Clone, PartialEq)]
struct Process {
    role: Role,
    cpu: Duration,
    /// Of the kernel's ticks: user and system, its own and those of the children that it waited for.
    ticks: Ticks,
    /// By thread, since threads come and go.
    switches: BTreeMap<u32, u64>,
    resident_kb: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Ticks {
    user: f64,
    system: f64,
    waited_user: f64,
    waited_system: f64,
}

/// All processes of a Flux at one time.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    processes: BTreeMap<u32, Process>,
}

/// What one call costs one part.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Deserialize)]
pub(super) struct Cost {
    pub(super) user_us: f64,
    pub(super) system_us: f64,
    pub(super) switches: f64,
}

impl Cost {
    fn per(self, calls: f64) -> Self {
        Self { user_us: self.user_us / calls, system_us: self.system_us / calls, switches: self.switches / calls }
    }

    pub(super) fn cpu_us(self) -> f64 {
        self.user_us + self.system_us
    }
}

impl Snapshot {
    /// `root` and everything below it.
    pub(super) fn of(root: u32) -> Self {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut stats = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Some(stat) = read(pid, "stat").as_deref().and_then(parse_stat) else { continue };
            children.entry(stat.parent).or_default().push(pid);
            stats.insert(pid, stat.ticks);
        }
        let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
        let mut next = vec![(root, None)];
        while let Some((pid, parent)) = next.pop() {
            let Some(ticks) = stats.get(&pid) else { continue };
            let status = read(pid, "status").unwrap_or_default();
            let role = Role::of(&read(pid, "cmdline").unwrap_or_default(), field(&status, "Name:"), parent);
            let resident_kb = field(&status, "VmRSS:").trim_end_matches(" kB").parse().unwrap_or(0);
            let (cpu, switches) = (cpu_time(pid), switches(pid));
            if role != Role::Guard {
                processes.insert(pid, Process { role, cpu, ticks: *ticks, switches, resident_kb });
            }
            next.extend(children.get(&pid).into_iter().flatten().map(|child| (*child, Some(role))));
        }
        Self { processes }
    }

    /// Resident memory in MB, by part.
    pub(super) fn resident_mb(&self) -> BTreeMap<Role, f64> {
        let mut by_role = BTreeMap::new();
        for process in self.processes.values() {
            #[allow(clippy::cast_precision_loss)] // kilobytes of a machine
            let mb = process.resident_kb as f64 / 1024.0;
            *by_role.entry(process.role).or_default() += mb;
        }
        by_role
    }

    /// CPU time of all of them together.
    pub(super) fn cpu(&self) -> Duration {
        self.processes.values().map(|process| process.cpu).sum()
    }

    /// What was used between `earlier` and now. A process that ended in between is what its parent waited for.
    pub(super) fn since(&self, earlier: &Self) -> BTreeMap<Role, Cost> {
        let mut used: BTreeMap<Role, Cost> = BTreeMap::new();
        for (pid, now) in &self.processes {
            let before = earlier.processes.get(pid);
            let was = before.map_or_else(Ticks::default, |process| process.ticks);
            let cpu_us =
                now.cpu.saturating_sub(before.map_or(Duration::ZERO, |process| process.cpu)).as_secs_f64() * 1e6;
            let (user, system) = (now.ticks.user - was.user, now.ticks.system - was.system);
            let user_share = if user + system > 0.0 { user / (user + system) } else { 0.5 };
            let cost = used.entry(now.role).or_default();
            cost.user_us += cpu_us * user_share;
            cost.system_us += cpu_us * (1.0 - user_share);
            cost.switches += switches_since(&now.switches, before.map(|process| &process.switches));
            if now.role == Role::Launcher {
                let functions = used.entry(Role::Functions).or_default();
                functions.user_us += (now.ticks.waited_user - was.waited_user) * TICK_US;
                functions.system_us += (now.ticks.waited_system - was.waited_system) * TICK_US;
            }
        }
        used
    }
}

/// `USER_HZ` is 100 on every Linux that Flux runs on.
const TICK_US: f64 = 10_000.0;

/// Costs per call, by load, one set for each round.
#[derive(Debug, Default)]
pub(super) struct Costs {
    rounds: BTreeMap<&'static str, Vec<BTreeMap<Role, Cost>>>,
}

impl Costs {
    pub(super) fn add(&mut self, load: &'static str, used: BTreeMap<Role, Cost>, calls: f64) {
        let per_call = used.into_iter().map(|(role, cost)| (role, cost.per(calls.max(1.0)))).collect();
        self.rounds.entry(load).or_default().push(per_call);
    }

    /// For each load the medians over all rounds, and in the last place their sum without the generator.
    pub(super) fn medians(&self) -> Vec<(&'static str, Vec<(&'static str, Cost)>)> {
        let median = |rounds: &[BTreeMap<Role, Cost>], role: Role, of: fn(&Cost) -> f64| {
            summary(&rounds.iter().map(|round| round.get(&role).map_or(0.0, of)).collect::<Vec<_>>()).median
        };
        let mut all = Vec::new();
        for (load, rounds) in &self.rounds {
            let mut roles: Vec<Role> = rounds.iter().flat_map(|round| round.keys().copied()).collect();
            roles.sort_unstable();
            roles.dedup();
            let mut rows = Vec::new();
            let mut sum = Cost::default();
            for role in roles {
                let cost = Cost {
                    user_us: median(rounds, role, |cost| cost.user_us),
                    system_us: median(rounds, role, |cost| cost.system_us),
                    switches: median(rounds, role, |cost| cost.switches),
                };
                if role != Role::Generator {
                    sum.user_us += cost.user_us;
                    sum.system_us += cost.system_us;
                    sum.switches += cost.switches;
                }
                rows.push((role.name(), cost));
            }
            rows.push(("Flux, together", sum));
            all.push((*load, rows));
        }
        all
    }
}

struct Stat {
    parent: u32,
    ticks: Ticks,
}

/// proc(5): the name is in parentheses and may contain anything; what follows is in fixed places.
fn parse_stat(stat: &str) -> Option<Stat> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place)?.parse::<f64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        ticks: Ticks { user: ticks(11)?, system: ticks(12)?, waited_user: ticks(13)?, waited_system: ticks(14)? },
    })
}

fn read(pid: u32, file: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join(file)).ok()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim()
}

fn cpu_time(pid: u32) -> Duration {
    let clock = i32::try_from(pid).ok().and_then(|pid| clock_getcpuclockid(Pid::from_raw(pid)).ok());
    clock.and_then(|clock| clock_gettime(clock).ok()).map_or(Duration::ZERO, Duration::from)
}

fn switches(pid: u32) -> BTreeMap<u32, u64> {
    let mut by_thread = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let count = |name: &str| field(&status, name).parse::<u64>().unwrap_or(0);
        by_thread.insert(thread, count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:"));
    }
    by_thread
}

#[allow(clippy::cast_precision_loss)] // of one run
fn switches_since(now: &BTreeMap<u32, u64>, before: Option<&BTreeMap<u32, u64>>) -> f64 {
    now.iter()
        .map(|(thread, count)| count.saturating_sub(before.and_then(|before| before.get(thread)).copied().unwrap_or(0)))
        .sum::<u64>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(role: Role, cpu_ms: u64, ticks: [f64; 4], switches: &[(u32, u64)]) -> Process {
        let [user, system, waited_user, waited_system] = ticks;
        let ticks = Ticks { user, system, waited_user, waited_system };
        let switches = switches.iter().copied().collect();
        Process { role, cpu: Duration::from_millis(cpu_ms), ticks, switches, resident_kb: 1024 }
    }

    #[test]
    fn what_a_process_is_called_may_contain_anything() {
        let stat = "12 (a) b (c) S 7 1 1 0 -1 4194560 1 2 3 4 50 60 70 80 20 0 1 0";
        let parsed = parse_stat(stat).expect("a stat line");
        assert_eq!(parsed.parent, 7);
        assert_eq!(parsed.ticks, Ticks { user: 50.0, system: 60.0, waited_user: 70.0, waited_system: 80.0 });
        assert!(parse_stat("12 (a) S 7").is_none());
    }

    #[test]
    fn parts_are_told_by_their_command_lines() {
        let role = |command: &str, parent| Role::of(command, "flux", parent);
        assert_eq!(role("/x/flux\0up\0--listen\0", None), Role::Tree);
        assert_eq!(role("/proc/self/exe\0__serve\0", Some(Role::Tree)), Role::Worker);
        assert_eq!(role("/proc/self/exe\0__launcher\0", Some(Role::Tree)), Role::Launcher);
        assert_eq!(role("", Some(Role::Launcher)), Role::Slots);
        assert_eq!(role("./echo\0", Some(Role::Slots)), Role::Slots);
        assert_eq!(role("/usr/local/bin/nats-server\0-c\0", Some(Role::Tree)), Role::Nats);
        assert_eq!(role("/x/yardstick\0guard\0--\0/x/flux\0up\0", None), Role::Guard);
        assert_eq!(role("/x/flux\0up\0", Some(Role::Guard)), Role::Tree);
        assert_eq!(role("/x/flux-agent\0--id\0", Some(Role::Guard)), Role::Tree);
        assert_eq!(role("/proc/self/exe\0--queue-url\0", Some(Role::Tree)), Role::Agent);
    }

    #[test]
    fn a_cost_is_what_was_used_in_between_over_the_calls() {
        let before = Snapshot {
            processes: [(1, process(Role::Launcher, 100, [4.0, 6.0, 10.0, 20.0], &[(1, 5), (2, 5)]))].into(),
        };
        let after = Snapshot {
            processes: [
                (1, process(Role::Launcher, 200, [7.0, 13.0, 11.0, 23.0], &[(1, 15), (3, 10)])),
                (9, process(Role::Slots, 10, [0.0, 1.0, 0.0, 0.0], &[(9, 40)])),
            ]
            .into(),
        };
        let mut costs = Costs::default();
        costs.add("load", after.since(&before), 10.0);
        let medians = costs.medians();
        let [("load", rows)] = medians.as_slice() else { panic!("one load: {medians:?}") };
        let cost = |user_us, system_us, switches| Cost { user_us, system_us, switches };
        let wanted = [
            ("launcher", cost(3_000.0, 7_000.0, 2.0)),
            ("slots' holders", cost(0.0, 1_000.0, 4.0)),
            ("functions", cost(1_000.0, 3_000.0, 0.0)),
            ("Flux, together", cost(4_000.0, 11_000.0, 6.0)),
        ];
        for ((name, found), (wanted_name, wanted)) in rows.iter().zip(wanted) {
            assert_eq!(*name, wanted_name);
            let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
            assert!(
                near(found.user_us, wanted.user_us) && near(found.system_us, wanted.system_us),
                "{name}: {found:?}"
            );
            assert!(near(found.switches, wanted.switches), "{name}: {found:?}");
        }
        assert_eq!(rows.len(), 4);
    }
}
