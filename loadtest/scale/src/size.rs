//! How much of everything.

/// The size of a run.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Registered, each with code.
    pub functions: usize,
    /// Of those, the ones that get work.
    pub hot: usize,
    /// Simulated agents; one real agent comes on top while work is queued.
    pub agents: usize,
    /// Executions that one agent runs at once.
    pub tasks: u32,
    /// Queued while no agent takes any.
    pub invocations: usize,
    /// Of those, the ones that come over HTTP; the others are published to the queue.
    pub over_http: usize,
    /// Functions that are called for the first time ever, for each way to call.
    pub cold: usize,
    /// Sync calls of one cost measurement; a direct publish is cheaper, and needs more of them to be measured.
    pub calls: usize,
    pub publishes: usize,
    /// Functions that the cost is measured with: the same number in every case.
    pub busy: usize,
}

impl Size {
    /// 10,000 functions, 500 hot, 100 agents, a million queued.
    pub const fn full() -> Self {
        Self {
            functions: 10_000,
            hot: 500,
            agents: 100,
            tasks: 32,
            invocations: 1_000_000,
            over_http: 50_000,
            cold: 60,
            calls: 6_000,
            publishes: 40_000,
            busy: 10,
        }
    }

    /// What the full size is compared with.
    pub const fn small() -> Self {
        Self { functions: 10, hot: 10, agents: 1, invocations: 0, over_http: 0, ..Self::full() }
    }

    /// A tenth of the full size for the tests, with half as much queued: a debug build on two cores has 90 seconds.
    pub const fn tenth() -> Self {
        Self {
            functions: 1_000,
            hot: 50,
            agents: 10,
            invocations: 50_000,
            over_http: 2_000,
            cold: 20,
            calls: 400,
            publishes: 4_000,
            ..Self::full()
        }
    }
}
