//! Executions, nodes and time.

use std::{cmp::Reverse, collections::BinaryHeap, collections::VecDeque, time::Duration};

use flux_plan::{Action, Load, Node, Phase, Snapshot, Wait};
use flux_protocol::{FunctionName, Timestamp};

use crate::{
    Scaler, Setting, Traffic,
    setting::{FUNCTION, NODE_TYPE, PROVIDER},
};

/// A simulated machine.
#[derive(Debug, Clone)]
struct Machine {
    name: String,
    ordered: f64,
    ready: f64,
    draining: Option<f64>,
    gone: Option<f64>,
    running: u32,
}

/// What was at one poll, for charts.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Moment {
    pub second: f64,
    /// Slots that executions take or would take.
    pub demand: f64,
    pub nodes: u32,
    pub ready: u32,
    /// The longest that an invocation waits now, in seconds.
    pub wait: f64,
}

/// How a policy did.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub policy: String,
    /// Of each invocation that counts, in seconds, sorted.
    pub waits: Vec<f64>,
    pub node_hours: f64,
    pub launches: u32,
    pub moments: Vec<Moment>,
}

impl Run {
    /// The wait that so many of a hundred have at most.
    pub fn wait(&self, percent: usize) -> f64 {
        let index = (self.waits.len() * percent).div_ceil(100).saturating_sub(1);
        self.waits.get(index).copied().unwrap_or(0.0)
    }
}

/// Seconds in units that sort.
#[derive(Debug, Clone, Copy, PartialEq)]
struct At(f64);
impl Eq for At {}
impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct World<'a> {
    setting: &'a Setting,
    machines: Vec<Machine>,
    /// Those that are not gone, by index.
    there: Vec<usize>,
    /// When an execution ends, and where.
    ends: BinaryHeap<Reverse<(At, usize)>>,
    /// Arrivals that wait.
    waiting: VecDeque<(f64, f64)>,
    waits: Vec<f64>,
    finished: u64,
    launched: u32,
}

/// Runs the traffic under a policy, and until all of it has ended.
pub fn run(traffic: &Traffic, setting: &Setting, scaler: &mut dyn Scaler) -> Run {
    let mut world = World {
        setting,
        machines: Vec::new(),
        there: Vec::new(),
        ends: BinaryHeap::new(),
        waiting: VecDeque::new(),
        waits: Vec::with_capacity(traffic.arrivals.len()),
        finished: 0,
        launched: 0,
    };
    let (poll, lasts) = (setting.poll.as_secs_f64(), f64::from(traffic.lasts));
    let mut moments = Vec::new();
    let mut arrivals = traffic.arrivals.iter().peekable();
    let mut now = 0.0;
    // What a policy never gets done is given up after as long again.
    while now < lasts || (world.is_busy() && now < 2.0 * lasts + 3600.0) {
        let snapshot = world.snapshot(now);
        let actions = scaler.decide(&snapshot);
        for action in &actions {
            world.act(action, now);
        }
        moments.push(world.moment(now));
        let next = now + poll;
        while let Some(arrival) = arrivals.peek().filter(|arrival| arrival.at < next) {
            world.until(arrival.at);
            world.waiting.push_back((arrival.at, arrival.takes));
            world.start(arrival.at);
            arrivals.next();
        }
        world.until(next);
        now = next;
    }
    // What never started waited till the end.
    let left: Vec<f64> = world.waiting.iter().map(|(at, _)| now - at).collect();
    world.waits.extend(left);
    let counted = setting.warm_up.as_secs_f64().min(lasts / 2.0);
    let node_seconds: f64 = world
        .machines
        .iter()
        .map(|machine| (machine.gone.unwrap_or(now).min(lasts) - machine.ordered.max(counted)).max(0.0))
        .sum();
    let early = traffic.arrivals.partition_point(|arrival| arrival.at < counted);
    // First come, first started: the early ones are the first.
    let mut waits = world.waits.split_off(early.min(world.waits.len()));
    waits.sort_by(f64::total_cmp);
    Run { policy: scaler.name(), waits, node_hours: node_seconds / 3600.0, launches: world.launched, moments }
}

impl World<'_> {
    fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.ends.is_empty()
    }

    /// Executions end, nodes become ready, and what waits starts, until then.
    fn until(&mut self, until: f64) {
        loop {
            let end = self.ends.peek().map(|Reverse((at, _))| at.0).filter(|at| *at <= until);
            // A node that becomes ready matters while something waits.
            let ready = self.there.iter().map(|index| self.machines[*index].ready);
            let ready = ready
                .filter(|at| *at <= until && !self.waiting.is_empty() && self.is_unseen(*at))
                .fold(f64::INFINITY, f64::min);
            match end {
                Some(at) if at <= ready => {
                    if let Some(Reverse((_, index))) = self.ends.pop() {
                        self.machines[index].running -= 1;
                        self.finished += 1;
                    }
                    self.start(at);
                }
                _ if ready.is_finite() => self.start(ready),
                _ => return,
            }
        }
    }

    /// Whether a node became ready at that time and has not been given anything, though something waits.
    fn is_unseen(&self, ready: f64) -> bool {
        self.there.iter().any(|index| {
            let machine = &self.machines[*index];
            machine.ready == ready && machine.draining.is_none() && machine.running < self.setting.slots
        })
    }

    /// Gives what waits to nodes with room: the emptiest first.
    fn start(&mut self, now: f64) {
        while let Some((came, takes)) = self.waiting.front().copied() {
            let slots = self.setting.slots;
            let free = self.there.iter().copied().filter(|index| {
                let machine = &self.machines[*index];
                machine.draining.is_none() && machine.ready <= now && machine.running < slots
            });
            let Some(index) = free.min_by_key(|index| self.machines[*index].running) else { return };
            self.waiting.pop_front();
            self.waits.push(now - came);
            self.machines[index].running += 1;
            self.ends.push(Reverse((At(now + takes), index)));
        }
    }

    fn act(&mut self, action: &Action, now: f64) {
        match action {
            Action::Launch { .. } => {
                let name = format!("node-{}", self.machines.len());
                let ready = now + self.setting.boot.as_secs_f64();
                self.there.push(self.machines.len());
                self.machines.push(Machine { name, ordered: now, ready, draining: None, gone: None, running: 0 });
                self.launched += 1;
            }
            Action::Drain { node, .. } => self.with(node, |machine| machine.draining = Some(now)),
            Action::Undrain { node } => {
                self.with(node, |machine| machine.draining = None);
                self.start(now);
            }
            Action::Terminate { node } => {
                self.with(node, |machine| machine.gone = Some(now));
                let machines = &self.machines;
                self.there.retain(|index| machines[*index].gone.is_none());
            }
        }
    }

    fn with(&mut self, node: &str, change: impl FnOnce(&mut Machine)) {
        if let Some(index) = self.there.iter().find(|index| self.machines[**index].name == node) {
            change(&mut self.machines[*index]);
        }
    }

    fn snapshot(&self, now: f64) -> Snapshot {
        let nodes = self.there.iter().map(|index| {
            let machine = &self.machines[*index];
            let booting = machine.ready > now;
            let (phase, since) = match machine.draining {
                Some(since) => (Phase::Draining { replaced_by: None }, since),
                None if booting => (Phase::Booting, machine.ordered),
                None => (Phase::Ready, machine.ready),
            };
            let used = f64::from(machine.running) / f64::from(self.setting.slots);
            let load = Load {
                cpu_percent: 2.0 + 93.0 * used,
                memory_percent: 20.0 + 50.0 * used,
                running: machine.running,
                slots: self.setting.slots,
                used,
                draining: machine.draining.is_some(),
            };
            Node {
                name: machine.name.clone(),
                provider: PROVIDER.to_owned(),
                node_type: NODE_TYPE.to_owned(),
                managed: true,
                phase,
                since: at(since),
                load: (!booting).then_some(load),
            }
        });
        Snapshot {
            at: at(now),
            nodes: nodes.collect(),
            waiting: u64::try_from(self.waiting.len()).unwrap_or(u64::MAX),
            waits: self.waits_now(now),
            finished: self.finished,
            ..Snapshot::default()
        }
    }

    /// All traffic is of one function.
    fn waits_now(&self, now: f64) -> Vec<Wait> {
        let running: u32 = self.there.iter().map(|index| self.machines[*index].running).sum();
        let wait = |came: f64| {
            let waiting = u64::try_from(self.waiting.len()).unwrap_or(u64::MAX);
            let oldest = Duration::from_secs_f64((now - came).max(0.0));
            Some(Wait { function: FunctionName::parse(FUNCTION).ok()?, waiting, running: running.into(), oldest })
        };
        self.waiting.front().and_then(|(came, _)| wait(*came)).into_iter().collect()
    }

    fn moment(&self, now: f64) -> Moment {
        let running: u32 = self.there.iter().map(|index| self.machines[*index].running).sum();
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        let ready = self.there.iter().filter(|index| self.machines[**index].ready <= now).count();
        Moment {
            second: now,
            demand: f64::from(running) + f64::from(waiting),
            nodes: u32::try_from(self.there.len()).unwrap_or(u32::MAX),
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
            wait: self.waiting.front().map_or(0.0, |(came, _)| now - came),
        }
    }
}

pub(crate) fn at(second: f64) -> Timestamp {
    // From one day on: what lies before a window's start is a time too.
    Timestamp::from_micros(86_400_000_000).plus(Duration::from_secs_f64(second))
}
