//! What executions take of a node: tasks, CPU and memory, added and compared together.

use flux_protocol::{agent::Budget, function::Resources};

/// An amount in all three dimensions. Sums are 64 bits wide, so that no budget or cost can overflow them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    pub(crate) tasks: u64,
    pub(crate) cpu_millicores: u64,
    pub(crate) memory_mb: u64,
}

/// Shares are in millionths.
pub(crate) const WHOLE: u64 = 1_000_000;

impl Amount {
    /// What one execution of a function with these resources takes.
    pub(crate) fn of_one(resources: Resources) -> Self {
        Self { tasks: 1, cpu_millicores: resources.cpu.into(), memory_mb: resources.memory.into() }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// Never below zero: what is over budget leaves no room, and no debt.
    pub(crate) fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    pub(crate) fn times(self, count: u64) -> Self {
        self.with(Self { tasks: count, cpu_millicores: count, memory_mb: count }, u64::saturating_mul)
    }

    pub(crate) fn over(self, divisor: u64) -> Self {
        self.with(Self { tasks: divisor, cpu_millicores: divisor, memory_mb: divisor }, |n, by| n / by.max(1))
    }

    fn with(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            tasks: f(self.tasks, other.tasks),
            cpu_millicores: f(self.cpu_millicores, other.cpu_millicores),
            memory_mb: f(self.memory_mb, other.memory_mb),
        }
    }

    pub(crate) fn fits_in(self, room: Self) -> bool {
        self.tasks <= room.tasks && self.cpu_millicores <= room.cpu_millicores && self.memory_mb <= room.memory_mb
    }

    /// How many of `self` fit into `room`.
    pub(crate) fn count_in(self, room: Self) -> u64 {
        let count = |room: u64, each: u64| room.checked_div(each).unwrap_or(u64::MAX);
        count(room.tasks, self.tasks)
            .min(count(room.cpu_millicores, self.cpu_millicores))
            .min(count(room.memory_mb, self.memory_mb))
    }

    /// The greatest of the three shares of `total`, in millionths: what dominant resource fairness compares.
    pub(crate) fn dominant_share(self, total: Self) -> u64 {
        let share = |part: u64, whole: u64| part.saturating_mul(WHOLE).checked_div(whole).unwrap_or(0);
        share(self.tasks, total.tasks)
            .max(share(self.cpu_millicores, total.cpu_millicores))
            .max(share(self.memory_mb, total.memory_mb))
    }
}

impl From<Budget> for Amount {
    fn from(budget: Budget) -> Self {
        Self {
            tasks: budget.tasks.into(),
            cpu_millicores: budget.cpu_millicores.into(),
            memory_mb: budget.memory_mb.into(),
        }
    }
}

impl From<Amount> for Budget {
    fn from(amount: Amount) -> Self {
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            tasks: narrow(amount.tasks),
            cpu_millicores: narrow(amount.cpu_millicores),
            memory_mb: narrow(amount.memory_mb),
        }
    }
}
