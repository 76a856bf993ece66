//! How much an agent takes on, where its settings do not say.

use flux_protocol::agent::Budget;
use flux_runtime::settings::AgentSettings;

/// The defaults of `agent.tasks`, `agent.cpu` and `agent.memory`.
const TASKS_PER_CORE: u32 = 16;
const CPU_OVERCOMMIT: u32 = 4;
const MEMORY_PERCENT: u64 = 80;

/// The settings, and what the machine has for those that are not set.
pub(crate) fn of(settings: &AgentSettings, cores: u32, memory_total_mb: u64) -> Budget {
    let cores = cores.max(1);
    let memory = u32::try_from(memory_total_mb * MEMORY_PERCENT / 100).unwrap_or(u32::MAX);
    Budget {
        tasks: settings.tasks.unwrap_or_else(|| cores.saturating_mul(TASKS_PER_CORE)),
        cpu_millicores: settings.cpu.unwrap_or_else(|| cores.saturating_mul(1_000 * CPU_OVERCOMMIT)),
        memory_mb: settings.memory.unwrap_or(memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_comes_from_the_machine() {
        let machine = of(&AgentSettings::default(), 2, 10_000);
        assert_eq!(machine, Budget { tasks: 32, cpu_millicores: 8_000, memory_mb: 8_000 });
        let set = AgentSettings { tasks: Some(1), cpu: Some(2), memory: Some(3), ..AgentSettings::default() };
        assert_eq!(of(&set, 2, 10_000), Budget { tasks: 1, cpu_millicores: 2, memory_mb: 3 });
    }
}
