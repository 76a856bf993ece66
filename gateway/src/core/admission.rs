//! Whether a sync call can start now: decided before anything is published, from what heartbeats say and from the
//! calls that this gateway has in flight.
//!
//! Heartbeats are up to a second old, in which a short function starts and ends many times. So there are two kinds
//! of evidence. This gateway's own calls are known exactly: where they alone fill every agent, the call is refused at
//! once. Heartbeats may be out of date: where only they say that there is no room, the call is published and
//! taken back after a short grace unless an agent picked it up, which settles it ([`Admission::Probe`]).
//!
//! Everything here is pure. [`summarize`] reads all agents, once per change of the fleet and function; [`decide`] costs
//! the same for every number of agents and functions.

use std::{fmt::Write as _, time::Duration};

use flux_protocol::{
    ErrorCode, FunctionName, FunctionSpec, PoolName,
    agent::{AgentStatus, Budget, Capabilities},
    function::{Isolation, PressureBehavior, Runtime},
};

use crate::refusal::Refusal;

/// What one agent contributes, as it last said.
#[derive(Debug, Clone)]
pub(super) struct AgentRoom<'a> {
    pub pool: &'a PoolName,
    pub status: AgentStatus,
    pub capabilities: &'a Capabilities,
    pub total: Budget,
    pub free: Budget,
    /// Of the function in question.
    pub calls: u32,
    pub invokes: u32,
    /// Of all functions.
    pub all_invokes: u32,
    /// It was heard of lately enough to still run something of ours, though it takes nothing new.
    pub may_hold: bool,
}

/// The fleet as one function sees it. *Now*: agents that take work. *Known*: those and the ones that may still run
/// calls of ours while they drain or after they were last heard of; what is certain counts these too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Summary {
    /// Agents of the pool that take work.
    pub online: u64,
    /// Of those, the ones that have the function's tier, and what its network asks for.
    pub with_tier: u64,
    /// Of those, the ones that have its runtime.
    pub capable: u64,
    /// Of those, the ones whose whole budget could hold one execution.
    pub able: u64,
    /// Executions of the function that fit at once by `max_concurrency`.
    pub concurrency_now: u64,
    pub concurrency_known: u64,
    /// Executions of the function that idle agents could run at once, by both.
    pub capacity_known: u64,
    /// Executions of the function that fit into what was free.
    pub slots_free: u64,
    /// Executions of the function running, by heartbeats, and of those the asynchronous ones.
    pub running: u64,
    pub invokes: u64,
    pub tasks_now: u64,
    pub all_invokes: u64,
    pub tasks_known: u64,
    pub cpu_known: u64,
    pub memory_known: u64,
    pub largest: Budget,
}

impl Summary {
    /// A fleet that nothing was heard of yet: as if there were room.
    pub(super) fn unknown() -> Self {
        const MUCH: u64 = u32::MAX as u64;
        Self {
            online: 1,
            with_tier: 1,
            capable: 1,
            able: 1,
            concurrency_now: MUCH,
            concurrency_known: MUCH,
            capacity_known: MUCH,
            slots_free: MUCH,
            tasks_now: MUCH,
            tasks_known: MUCH,
            cpu_known: MUCH * 1000,
            memory_known: MUCH * 1000,
            ..Self::default()
        }
    }
}

/// This gateway's own calls that are expected to run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mine {
    pub of_function: u64,
    /// Of all functions in the pool.
    pub tasks: u64,
    pub cpu_millicores: u64,
    pub memory_mb: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shortage {
    NoAgents,
    NoCapability,
    NoRuntime,
    /// No agent's whole budget could hold it.
    NeverFits,
    Concurrency,
    Resources,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// There is room as far as anyone knows.
    Admit,
    /// There is none, and the function's behaviour is to wait for it.
    Wait(Shortage),
    /// Heartbeats say that there is none: publish, and take back what nobody picks up at once.
    Probe(Shortage),
    /// There is none.
    Refuse(Shortage),
}

/// The isolation tier as agents name it among their capabilities.
pub(super) fn tier_of(spec: &FunctionSpec) -> &'static str {
    match spec.isolation {
        Isolation::Process => "process",
    }
}

/// Whether an idle agent could run one.
pub(super) fn can_run(spec: &FunctionSpec, capabilities: &Capabilities, total: Budget) -> bool {
    isolates(spec, capabilities) && capabilities.gives(spec.runtime) && slots(total, spec) > 0
}

/// Whether it has the tier, and gives the network.
fn isolates(spec: &FunctionSpec, capabilities: &Capabilities) -> bool {
    let (tier, tiers) = (tier_of(spec), &capabilities.tiers);
    (tiers.is_empty() || tiers.iter().any(|has| has == tier)) && !capabilities.refuses.contains(&spec.network)
}

/// What most distributions call the package of a runtime.
fn package_of(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Python => "python3",
        Runtime::Node => "nodejs",
        Runtime::Native | Runtime::Bash | Runtime::Lambda => "bash",
    }
}

/// How many executions that need `spec`'s resources fit into a budget.
pub(super) fn slots(budget: Budget, spec: &FunctionSpec) -> u64 {
    let by = |have: u32, need: u32| have.checked_div(need).unwrap_or(u32::MAX);
    u64::from(
        budget
            .tasks
            .min(by(budget.cpu_millicores, spec.resources.cpu))
            .min(by(budget.memory_mb, spec.resources.memory)),
    )
}

/// Reads every agent of the fleet for one function.
pub(super) fn summarize<'a>(spec: &FunctionSpec, agents: impl IntoIterator<Item = AgentRoom<'a>>) -> Summary {
    let most = spec.max_concurrency.map_or(u64::MAX, u64::from);
    let mut sum = Summary::default();
    for agent in agents.into_iter().filter(|agent| *agent.pool == spec.pool) {
        let takes_work = matches!(agent.status, AgentStatus::Online | AgentStatus::Busy);
        if !takes_work && !agent.may_hold {
            continue;
        }
        let fits = slots(agent.total, spec);
        sum.concurrency_known = sum.concurrency_known.saturating_add(most);
        sum.capacity_known = sum.capacity_known.saturating_add(fits.min(most));
        sum.tasks_known += u64::from(agent.total.tasks);
        sum.cpu_known += u64::from(agent.total.cpu_millicores);
        sum.memory_known += u64::from(agent.total.memory_mb);
        if !takes_work {
            continue;
        }
        sum.online += 1;
        if !isolates(spec, agent.capabilities) {
            continue;
        }
        sum.with_tier += 1;
        if !agent.capabilities.gives(spec.runtime) {
            continue;
        }
        sum.capable += 1;
        sum.largest = Budget {
            tasks: sum.largest.tasks.max(agent.total.tasks),
            cpu_millicores: sum.largest.cpu_millicores.max(agent.total.cpu_millicores),
            memory_mb: sum.largest.memory_mb.max(agent.total.memory_mb),
        };
        if fits == 0 {
            continue;
        }
        sum.able += 1;
        sum.concurrency_now = sum.concurrency_now.saturating_add(most);
        let running = u64::from(agent.calls) + u64::from(agent.invokes);
        sum.running += running.min(most);
        sum.invokes += u64::from(agent.invokes).min(most);
        if running < most {
            sum.slots_free += slots(agent.free, spec);
        }
        sum.tasks_now += u64::from(agent.total.tasks);
        sum.all_invokes += u64::from(agent.all_invokes);
    }
    sum
}

/// Decides about one more call.
pub(super) fn decide(spec: &FunctionSpec, fleet: &Summary, mine: &Mine) -> Admission {
    let wait_or = |behavior: PressureBehavior, shortage: Shortage, else_: fn(Shortage) -> Admission| match behavior {
        PressureBehavior::Wait => Admission::Wait(shortage),
        PressureBehavior::Exit => else_(shortage),
    };
    let by_pressure = |shortage, else_| wait_or(spec.resource_pressure_behavior, shortage, else_);
    let by_concurrency = |else_| wait_or(spec.max_concurrency_behavior, Shortage::Concurrency, else_);
    if fleet.online == 0 {
        return by_pressure(Shortage::NoAgents, Admission::Refuse);
    }
    if fleet.capable == 0 {
        let shortage = if fleet.with_tier == 0 { Shortage::NoCapability } else { Shortage::NoRuntime };
        return by_pressure(shortage, Admission::Refuse);
    }
    if fleet.able == 0 {
        return by_pressure(Shortage::NeverFits, Admission::Refuse);
    }
    if mine.of_function >= fleet.concurrency_known {
        return by_concurrency(Admission::Refuse);
    }
    let no_budget = mine.of_function >= fleet.capacity_known
        || mine.tasks >= fleet.tasks_known
        || mine.cpu_millicores + u64::from(spec.resources.cpu) > fleet.cpu_known
        || mine.memory_mb + u64::from(spec.resources.memory) > fleet.memory_known;
    if no_budget {
        return by_pressure(Shortage::Resources, Admission::Refuse);
    }
    if at_concurrency(fleet, mine) {
        return by_concurrency(Admission::Probe);
    }
    if fleet.slots_free == 0 || mine.tasks + fleet.all_invokes >= fleet.tasks_now {
        return by_pressure(Shortage::Resources, Admission::Probe);
    }
    Admission::Admit
}

fn at_concurrency(fleet: &Summary, mine: &Mine) -> bool {
    fleet.running.max(mine.of_function + fleet.invokes) >= fleet.concurrency_now
}

/// What to say of a call that nobody picked up although there seemed to be room; `None`: it goes on waiting, since
/// what it waits for is what its function waits for.
pub(super) fn not_picked_up(spec: &FunctionSpec, fleet: &Summary, mine_without_it: &Mine) -> Option<Shortage> {
    match decide(spec, fleet, mine_without_it) {
        Admission::Refuse(shortage) | Admission::Probe(shortage) => Some(shortage),
        Admission::Wait(_) => None,
        Admission::Admit => match (spec.max_concurrency_behavior, spec.resource_pressure_behavior) {
            (_, PressureBehavior::Exit) => Some(Shortage::Resources),
            (PressureBehavior::Exit, PressureBehavior::Wait) if at_concurrency(fleet, mine_without_it) => {
                Some(Shortage::Concurrency)
            }
            _ => None,
        },
    }
}

/// The answer to the caller: what there is, in numbers, and what to do.
pub(super) fn refusal(spec: &FunctionSpec, fleet: &Summary, mine: &Mine, shortage: Shortage) -> Refusal {
    let code = match shortage {
        Shortage::NoAgents | Shortage::NoCapability | Shortage::NoRuntime => ErrorCode::NoAgents,
        Shortage::Concurrency => ErrorCode::AtConcurrency,
        Shortage::NeverFits | Shortage::Resources => ErrorCode::NoResources,
    };
    let mut refusal = Refusal::new(code, explain(&spec.name, spec, fleet, mine, shortage, Told::Refused));
    // What only another machine can change is not worth asking for again at once.
    if matches!(shortage, Shortage::NeverFits | Shortage::NoCapability | Shortage::NoRuntime) {
        refusal.retry_after = Some(Duration::from_secs(30));
    }
    refusal
}

/// Who is told of a shortage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// A caller who was refused.
    Refused,
    /// Whoever asks why an execution still waits.
    Waiting,
}

/// One sentence or two for people, with numbers and the remedy.
pub(super) fn explain(
    name: &FunctionName,
    spec: &FunctionSpec,
    fleet: &Summary,
    mine: &Mine,
    shortage: Shortage,
    told: Told,
) -> String {
    let mut text = String::new();
    let (concurrency_remedy, resources_remedy) = match told {
        Told::Refused => (
            "try again, raise it, add agents, or set `max_concurrency_behavior: wait`",
            "try again, add agents, or set `resource_pressure_behavior: wait`",
        ),
        Told::Waiting => (
            "it starts in its turn; raise it or add agents to run more at once",
            "it starts in its turn; add agents to run more at once",
        ),
    };
    let need = spec.resources;
    let written = match shortage {
        Shortage::NoAgents => write!(
            text,
            "no agent of pool `{}` is online, so nothing can run `{name}`; start a flux-agent that joins this queue",
            spec.pool
        ),
        Shortage::NoCapability => write!(
            text,
            "none of the {} agents online can give what `{name}` asks for (isolation `{}`, network `{}`); `flux agents` shows what each lacks",
            fleet.online,
            tier_of(spec),
            spec.network.as_str()
        ),
        Shortage::NoRuntime => write!(
            text,
            "none of the {} agents online has the runtime `{}` that `{name}` asks for: install it where an agent runs (for example the package `{}`) and start that agent again; `flux agents` shows what each has",
            fleet.with_tier,
            spec.runtime,
            package_of(spec.runtime)
        ),
        Shortage::NeverFits => write!(
            text,
            "`{name}` asks for {} millicores and {} MB, more than any of the {} agents has in all (the largest: {} millicores, {} MB, {} tasks); lower `resources` or add a larger machine",
            need.cpu,
            need.memory,
            fleet.capable,
            fleet.largest.cpu_millicores,
            fleet.largest.memory_mb,
            fleet.largest.tasks
        ),
        Shortage::Concurrency => write!(
            text,
            "`{name}` runs {} times at once on {} agent(s) with a `max_concurrency` of {} each; {concurrency_remedy}",
            fleet.running.max(mine.of_function + fleet.invokes),
            fleet.able,
            spec.max_concurrency.unwrap_or_default()
        ),
        Shortage::Resources => write!(
            text,
            "none of {} agent(s) has a free task slot with {} millicores and {} MB for `{name}` ({} executions fit when they are idle); {resources_remedy}",
            fleet.able, need.cpu, need.memory, fleet.capacity_known
        ),
    };
    debug_assert!(written.is_ok(), "writing to a String cannot fail");
    text
}

#[cfg(test)]
mod tests;
