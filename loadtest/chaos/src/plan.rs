//! What is done to a Flux, and when: decided by the seed alone, before anything happens.

use flux_testkit::Seed;

use crate::history::FaultKind;

/// What a process is to Flux. The second part tells several of one role apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Victim {
    /// Gateway and agent of a `flux up`.
    Worker,
    Launcher(usize),
    Nats(usize),
    /// Of a `flux up`: the root of its processes.
    Root,
    Gateway(usize),
    Agent(usize),
    /// The root of an agent's processes.
    AgentRoot(usize),
    Rabbit,
    Redis,
    Postgres,
}

/// A `nats-server` asks for a new leader after 4 to 9 s without the old one, and an old one that hears of no majority steps down after 10 s.
const LONGEST_CUT_MS: u64 = 16_000;

/// What a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Far {
    Queue,
    Store,
}

/// What is done to the ways between the servers of the queue's cluster. Clients reach all of them meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// This one from all others.
    Apart(usize),
    /// These two from each other: the third hears both.
    Between(usize, usize),
    /// What this one says comes to nobody.
    Mute(usize),
    /// What others say does not come to this one.
    Deaf(usize),
    /// All that goes between this one and others is late.
    Slow(usize),
}

impl Cut {
    fn outlasts_elections(self) -> bool {
        !matches!(self, Self::Slow(_))
    }
}

impl Victim {
    pub fn role(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Launcher(_) => "launcher",
            Self::Nats(_) => "nats-server",
            Self::Root => "root",
            Self::Gateway(_) => "gateway",
            Self::Agent(_) => "agent",
            Self::AgentRoot(_) => "agent root",
            Self::Rabbit => "rabbitmq-server",
            Self::Redis => "redis-server",
            Self::Postgres => "postgres",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill(Victim),
    Pause(Victim),
    /// The connections of this gateway or agent.
    Link(Victim, Far, FaultKind),
    DiskFull,
    /// All that this queue's servers stored.
    Wipe(Victim),
    Cut(Cut),
    /// The wall clock of this gateway or agent.
    Clock(Victim),
}

impl Fault {
    pub fn kind(self) -> FaultKind {
        match self {
            Self::Kill(_) => FaultKind::Kill,
            Self::Pause(_) => FaultKind::Pause,
            Self::Link(_, _, kind) => kind,
            Self::DiskFull => FaultKind::DiskFull,
            Self::Wipe(_) => FaultKind::Wipe,
            Self::Cut(Cut::Apart(_) | Cut::Between(..)) => FaultKind::Partition,
            Self::Cut(Cut::Mute(_) | Cut::Deaf(_)) => FaultKind::OneWayLoss,
            Self::Cut(Cut::Slow(_)) => FaultKind::SlowLink,
            Self::Clock(_) => FaultKind::ClockStep,
        }
    }

    /// The process that it is done to, or whose connection.
    pub fn victim(self) -> Option<Victim> {
        match self {
            Self::Kill(victim)
            | Self::Pause(victim)
            | Self::Link(victim, _, _)
            | Self::Clock(victim)
            | Self::Wipe(victim) => Some(victim),
            Self::DiskFull | Self::Cut(_) => None,
        }
    }

    pub fn target(self) -> &'static str {
        match self {
            Self::Link(_, Far::Store, _) => "gateway to store",
            Self::Kill(victim)
            | Self::Pause(victim)
            | Self::Link(victim, _, _)
            | Self::Clock(victim)
            | Self::Wipe(victim) => victim.role(),
            Self::DiskFull => "data directory",
            Self::Cut(_) => "nats-servers",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub fault: Fault,
    /// How long a fault that holds something holds it.
    pub hold_ms: u64,
    /// How long work goes on after the recovery, until the next.
    pub calm_ms: u64,
    /// The next one strikes while this one has not been recovered from.
    pub hasty: bool,
}

/// What can be done to a topology: faults and how often each is chosen, against the others.
#[derive(Debug, Clone)]
pub struct Menu {
    pub faults: Vec<(Fault, u64)>,
    /// Of the time that faults hold.
    pub longest_hold_ms: u64,
    pub longest_calm_ms: u64,
}

/// The steps of a seed, without end.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: Seed,
    menu: Menu,
}

impl Plan {
    /// # Panics
    /// The menu is empty.
    pub fn new(seed: Seed, menu: Menu) -> Self {
        assert!(menu.faults.iter().any(|(_, weight)| *weight > 0), "there is nothing to do");
        Self { seed, menu }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let all: u64 = self.menu.faults.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.seed.below(all);
        let chosen = self.menu.faults.iter().find(|(_, weight)| {
            let here = drawn < *weight;
            drawn = drawn.saturating_sub(*weight);
            here
        });
        let (fault, _) = *chosen?;
        let longest_ms = match fault {
            Fault::Cut(cut) if cut.outlasts_elections() => LONGEST_CUT_MS,
            _ => self.menu.longest_hold_ms,
        };
        let hold_ms = 300 + self.seed.below(longest_ms.saturating_sub(300).max(1));
        let calm_ms = self.seed.below(self.menu.longest_calm_ms.max(1));
        // Only of deaths: two stalls at a time say little more than one.
        let hasty = self.seed.chance(15) && matches!(fault, Fault::Kill(_));
        Some(Step { fault, hold_ms, calm_ms, hasty })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn menu() -> Menu {
        let faults = vec![
            (Fault::Kill(Victim::Worker), 3),
            (Fault::Pause(Victim::Nats(0)), 1),
            (Fault::Wipe(Victim::Nats(0)), 0),
        ];
        Menu { faults, longest_hold_ms: 2_000, longest_calm_ms: 500 }
    }

    #[test]
    fn a_seed_repeats_its_plan_and_another_has_its_own() {
        let steps = |seed| Plan::new(Seed::new(seed), menu()).take(50).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
    }

    #[test]
    fn weights_and_limits_are_kept() {
        let mut drawn: BTreeMap<&str, usize> = BTreeMap::new();
        for step in Plan::new(Seed::new(1), menu()).take(1_000) {
            *drawn.entry(step.fault.kind().as_str()).or_default() += 1;
            assert!((300..2_000).contains(&step.hold_ms) && step.calm_ms < 500, "{step:?}");
        }
        assert!((650..850).contains(&drawn["kill -9"]), "{drawn:?}");
        assert_eq!(drawn.values().sum::<usize>(), 1_000);
        assert!(!drawn.contains_key("wiped queue"));
    }
}
