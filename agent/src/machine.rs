//! The node's measurements. Only processor and memory are read: a full refresh would walk every process.

use flux_protocol::{agent::NodeStatus, limits::MIB, time};
use sysinfo::System;

pub(crate) struct Machine {
    /// `None` where the system cannot be measured: zeros are reported then.
    system: Option<System>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let mut system = System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_memory();
            // Usage is a difference: this is its first reading.
            system.refresh_cpu_usage();
        }
        Self { system }
    }

    pub(crate) fn memory_total_mb(&self) -> u64 {
        self.system.as_ref().map_or(0, |system| system.total_memory() / MIB as u64)
    }

    pub(crate) fn cores() -> u32 {
        std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX))
    }

    pub(crate) fn name() -> String {
        System::host_name().unwrap_or_else(|_| "unknown".to_owned())
    }

    pub(crate) fn measure(&mut self, active_tasks: u32) -> NodeStatus {
        let mut status = NodeStatus {
            cpu_percent: 0.0,
            memory_percent: 0.0,
            memory_total_mb: 0,
            memory_used_mb: 0,
            active_tasks,
            uptime_seconds: System::uptime().unwrap_or(0),
            collected_at: time::now(),
        };
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            status.cpu_percent = tenths(f64::from(system.global_cpu_usage()));
            status.memory_total_mb = system.total_memory() / MIB as u64;
            status.memory_used_mb = system.used_memory() / MIB as u64;
            status.memory_percent = percent(status.memory_used_mb, status.memory_total_mb);
        }
        status
    }
}

#[allow(clippy::cast_precision_loss)] // megabytes of one machine
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { tenths(part as f64 * 100.0 / whole as f64) }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
