//! Admission against a fleet whose true state is known: agents with budgets, executions placed on them as agents place
//! them (never beyond a budget or `max_concurrency`), and heartbeats that are exact, or from another moment.

use flux_protocol::{agent::RuntimeGiven, function::parse_yaml};
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
struct Running {
    /// Index into the functions.
    function: usize,
    call: bool,
}

#[derive(Debug, Clone)]
struct Agent {
    total: Budget,
    draining: bool,
    running: Vec<Running>,
}

impl Agent {
    fn free(&self, functions: &[FunctionSpec]) -> Budget {
        self.running.iter().fold(self.total, |free, running| {
            let need = functions[running.function].resources;
            Budget {
                tasks: free.tasks - 1,
                cpu_millicores: free.cpu_millicores - need.cpu,
                memory_mb: free.memory_mb - need.memory,
            }
        })
    }

    fn count(&self, function: usize, call: Option<bool>) -> u32 {
        let counts = |running: &&Running| running.function == function && call.is_none_or(|call| running.call == call);
        u32::try_from(self.running.iter().filter(counts).count()).unwrap()
    }

    fn has_room(&self, function: usize, functions: &[FunctionSpec]) -> bool {
        let spec = &functions[function];
        slots(self.free(functions), spec) > 0
            && spec.max_concurrency.is_none_or(|most| self.count(function, None) < most)
    }
}

fn functions() -> Vec<FunctionSpec> {
    let texts = [
        "name: small\nhandler: h\nresources: { cpu: 100, memory: 64 }\nmax_concurrency: 2",
        "name: large\nhandler: h\nresources: { cpu: 700, memory: 300 }",
        "name: alone\nhandler: h\nresources: { cpu: 50, memory: 16 }\nmax_concurrency: 1",
    ];
    texts.into_iter().map(|text| parse_yaml(text).unwrap()).collect()
}

fn summary(agents: &[Agent], function: usize, functions: &[FunctionSpec]) -> Summary {
    let pool = PoolName::default();
    let capabilities = capabilities(&["process"]);
    let rooms = agents.iter().map(|agent| AgentRoom {
        pool: &pool,
        status: if agent.draining { AgentStatus::Draining } else { AgentStatus::Online },
        capabilities: &capabilities,
        total: agent.total,
        free: agent.free(functions),
        calls: agent.count(function, Some(true)),
        invokes: agent.count(function, Some(false)),
        all_invokes: u32::try_from(agent.running.iter().filter(|running| !running.call).count()).unwrap(),
        may_hold: true,
    });
    summarize(&functions[function], rooms)
}

/// All calls are this gateway's.
fn mine(agents: &[Agent], function: usize, functions: &[FunctionSpec]) -> Mine {
    let mut mine = Mine::default();
    for running in agents.iter().flat_map(|agent| &agent.running).filter(|running| running.call) {
        let need = functions[running.function].resources;
        mine.of_function += u64::from(running.function == function);
        mine.tasks += 1;
        mine.cpu_millicores += u64::from(need.cpu);
        mine.memory_mb += u64::from(need.memory);
    }
    mine
}

prop_compose! {
    fn any_agent()(tasks in 1_u32..6, cpu in 50_u32..3000, memory in 16_u32..1500, draining in prop::bool::weighted(0.2))
        -> Agent {
        Agent { total: Budget { tasks, cpu_millicores: cpu, memory_mb: memory }, draining, running: Vec::new() }
    }
}

prop_compose! {
    /// A fleet with executions placed where there was room.
    fn any_fleet()(
        mut agents in prop::collection::vec(any_agent(), 1..4),
        wanted in prop::collection::vec((0_usize..4, 0_usize..3, any::<bool>()), 0..24),
    ) -> Vec<Agent> {
        let functions = functions();
        for (agent, function, call) in wanted {
            let agent_count = agents.len();
            let agent = &mut agents[agent % agent_count];
            if agent.has_room(function, &functions) {
                agent.running.push(Running { function, call });
            }
        }
        agents
    }
}

proptest! {
    #[test]
    fn with_exact_heartbeats_admits_exactly_where_there_is_room(agents in any_fleet(), function in 0_usize..3) {
        let functions = functions();
        let room = agents.iter().any(|agent| !agent.draining && agent.has_room(function, &functions));
        let decision =
            decide(&functions[function], &summary(&agents, function, &functions), &mine(&agents, function, &functions));
        if room {
            prop_assert!(!matches!(decision, Admission::Refuse(_)), "refused although there is room: {decision:?}");
        } else {
            prop_assert_ne!(decision, Admission::Admit);
        }
    }

    /// The executions of another moment on the same agents: what heartbeats say when they are old.
    #[test]
    fn old_heartbeats_never_refuse_while_an_agent_has_room(
        agents in any_fleet(),
        then in prop::collection::vec((0_usize..4, 0_usize..3, any::<bool>()), 0..24),
        function in 0_usize..3,
    ) {
        let functions = functions();
        let mut old: Vec<Agent> =
            agents.iter().map(|agent| Agent { running: Vec::new(), ..agent.clone() }).collect();
        for (agent, function, call) in then {
            let count = old.len();
            let agent = &mut old[agent % count];
            if agent.has_room(function, &functions) {
                agent.running.push(Running { function, call });
            }
        }
        let room = agents.iter().any(|agent| !agent.draining && agent.has_room(function, &functions));
        let decision =
            decide(&functions[function], &summary(&old, function, &functions), &mine(&agents, function, &functions));
        prop_assert!(!(room && matches!(decision, Admission::Refuse(_))), "{decision:?}");
    }

    #[test]
    fn an_idle_capable_agent_is_never_probed_or_refused(idle in any_agent(), function in 0_usize..3) {
        let functions = functions();
        let agents = [Agent { draining: false, ..idle }];
        let decision = decide(&functions[function], &summary(&agents, function, &functions), &Mine::default());
        if agents[0].has_room(function, &functions) {
            prop_assert_eq!(decision, Admission::Admit);
        } else {
            prop_assert_eq!(decision, Admission::Refuse(Shortage::NeverFits));
        }
    }

    /// Between two heartbeats a burst of one function fills what there is, and the rest is refused at once.
    #[test]
    fn a_burst_of_capacity_and_more_refuses_exactly_the_more(
        agents in prop::collection::vec(any_agent(), 1..4),
        function in 0_usize..3,
        more in 1_u64..5,
    ) {
        let functions = functions();
        let spec = &functions[function];
        let agents: Vec<_> = agents.into_iter().map(|agent| Agent { draining: false, ..agent }).collect();
        let most = spec.max_concurrency.map_or(u64::MAX, u64::from);
        let capacity: u64 = agents.iter().map(|agent| slots(agent.total, spec).min(most)).sum();
        prop_assume!(capacity > 0);
        let fleet = summary(&agents, function, &functions);
        let mut mine = Mine::default();
        let mut admitted = 0;
        for _ in 0..capacity + more {
            if let Admission::Admit = decide(spec, &fleet, &mine) {
                admitted += 1;
                mine.of_function += 1;
                mine.tasks += 1;
                mine.cpu_millicores += u64::from(spec.resources.cpu);
                mine.memory_mb += u64::from(spec.resources.memory);
            } else {
                prop_assert!(matches!(decide(spec, &fleet, &mine), Admission::Refuse(_)));
            }
        }
        prop_assert_eq!(admitted, capacity);
    }
}

/// An agent with Python, and no Node.
fn capabilities(tiers: &[&str]) -> Capabilities {
    let python = RuntimeGiven { name: "python".to_owned(), version: "3".to_owned() };
    Capabilities {
        tiers: tiers.iter().map(|tier| (*tier).to_owned()).collect(),
        runtimes: vec![python],
        ..Capabilities::default()
    }
}

fn one(text: &str, status: AgentStatus, tiers: &[&str], total: Budget) -> (FunctionSpec, Summary) {
    let spec = parse_yaml(text).unwrap();
    let pool = PoolName::default();
    let capabilities = capabilities(tiers);
    let room = AgentRoom {
        pool: &pool,
        status,
        capabilities: &capabilities,
        total,
        free: total,
        calls: 0,
        invokes: 0,
        all_invokes: 0,
        may_hold: false,
    };
    let summary = summarize(&spec, [room]);
    (spec, summary)
}

#[test]
fn an_agent_that_refuses_a_network_is_not_capable_of_it() {
    use flux_protocol::function::Network;

    let pool = PoolName::default();
    let total = Budget { tasks: 4, cpu_millicores: 1000, memory_mb: 256 };
    for (text, refuses, capable) in [
        ("name: f\nhandler: h", vec![Network::Host], 0),
        ("name: f\nhandler: h\nnetwork: none", vec![Network::Host], 1),
        ("name: f\nhandler: h\nnetwork: none", vec![Network::Host, Network::None], 0),
    ] {
        let capabilities = Capabilities { refuses: refuses.clone(), ..Capabilities::default() };
        let room = AgentRoom {
            pool: &pool,
            status: AgentStatus::Online,
            capabilities: &capabilities,
            total,
            free: total,
            calls: 0,
            invokes: 0,
            all_invokes: 0,
            may_hold: true,
        };
        let sum = summarize(&parse_yaml(text).unwrap(), [room]);
        assert_eq!((sum.online, sum.capable), (1, capable), "{text} {refuses:?}");
    }
}

#[test]
fn each_shortage_has_its_code_and_says_numbers() {
    let total = Budget { tasks: 4, cpu_millicores: 1000, memory_mb: 256 };
    let exit = "name: f\nhandler: h\nmax_concurrency: 3";
    let mine = Mine { of_function: 3, tasks: 3, cpu_millicores: 300, memory_mb: 96 };
    let cases = [
        (one(exit, AgentStatus::Offline, &["process"], total), Mine::default(), Shortage::NoAgents, "no_agents", 503),
        (one(exit, AgentStatus::Draining, &["process"], total), Mine::default(), Shortage::NoAgents, "no_agents", 503),
        (
            one(exit, AgentStatus::Online, &["microvm"], total),
            Mine::default(),
            Shortage::NoCapability,
            "no_agents",
            503,
        ),
        (
            one("name: f\nhandler: h.f\nruntime: node", AgentStatus::Online, &["process"], total),
            Mine::default(),
            Shortage::NoRuntime,
            "no_agents",
            503,
        ),
        (
            one(
                "name: f\nhandler: h.f\nruntime: python\nresources: { memory: 512 }",
                AgentStatus::Online,
                &["process"],
                total,
            ),
            Mine::default(),
            Shortage::NeverFits,
            "no_resources",
            429,
        ),
        (
            one("name: f\nhandler: h\nresources: { memory: 512 }", AgentStatus::Online, &["process"], total),
            Mine::default(),
            Shortage::NeverFits,
            "no_resources",
            429,
        ),
        (one(exit, AgentStatus::Online, &["process"], total), mine, Shortage::Concurrency, "at_concurrency", 503),
        (
            one("name: f\nhandler: h\nresources: { memory: 100 }", AgentStatus::Online, &["process"], total),
            Mine { of_function: 2, tasks: 2, cpu_millicores: 200, memory_mb: 200 },
            Shortage::Resources,
            "no_resources",
            429,
        ),
    ];
    for ((spec, fleet), mine, expected, code, status) in cases {
        assert_eq!(decide(&spec, &fleet, &mine), Admission::Refuse(expected));
        let refusal = refusal(&spec, &fleet, &mine, expected);
        assert_eq!((refusal.code.as_str(), refusal.code.http_status()), (code, status), "{expected:?}");
        assert!(refusal.retry_after.is_some(), "{expected:?}");
        assert!(refusal.message.contains("`f`") || expected == Shortage::NoAgents, "{}", refusal.message);
    }
}

#[test]
fn waiting_is_always_let_in() {
    let text =
        "name: f\nhandler: h\nmax_concurrency: 1\nmax_concurrency_behavior: wait\nresource_pressure_behavior: wait";
    let total = Budget { tasks: 4, cpu_millicores: 1000, memory_mb: 256 };
    let mine = Mine { of_function: 9, tasks: 90, cpu_millicores: 9000, memory_mb: 9000 };
    for status in [AgentStatus::Online, AgentStatus::Offline] {
        let (spec, fleet) = one(text, status, &["process"], total);
        assert!(matches!(decide(&spec, &fleet, &mine), Admission::Wait(_)));
        assert_eq!(not_picked_up(&spec, &fleet, &mine), None);
    }
}

#[test]
fn what_waits_for_its_concurrency_is_still_refused_for_want_of_resources() {
    let text = "name: f\nhandler: h\nmax_concurrency: 9\nmax_concurrency_behavior: wait\nresources: { memory: 100 }";
    let total = Budget { tasks: 4, cpu_millicores: 1000, memory_mb: 256 };
    let (spec, fleet) = one(text, AgentStatus::Online, &["process"], total);
    let mine = Mine { of_function: 2, tasks: 2, cpu_millicores: 200, memory_mb: 200 };
    assert_eq!(decide(&spec, &fleet, &mine), Admission::Refuse(Shortage::Resources));
}

#[test]
fn another_pools_agents_do_not_count() {
    let (mut spec, _) = one(
        "name: f\nhandler: h",
        AgentStatus::Online,
        &["process"],
        Budget { tasks: 1, cpu_millicores: 100, memory_mb: 128 },
    );
    spec.pool = PoolName::parse("gpu").unwrap();
    let (other, capabilities) = (PoolName::default(), capabilities(&["process"]));
    let room = AgentRoom {
        pool: &other,
        status: AgentStatus::Online,
        capabilities: &capabilities,
        total: Budget { tasks: 9, cpu_millicores: 9000, memory_mb: 9000 },
        free: Budget::default(),
        calls: 0,
        invokes: 0,
        all_invokes: 0,
        may_hold: false,
    };
    assert_eq!(summarize(&spec, [room]).online, 0);
}
