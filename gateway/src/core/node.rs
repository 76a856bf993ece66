//! This gateway's own node, measured at most once a second, when somebody asks.

use std::time::Duration;

use flux_protocol::{agent::NodeStatus, time::now};
use parking_lot::Mutex;
use sysinfo::System;
use tokio::time::Instant;

const MEASURED_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Node {
    measured: Mutex<Option<Measured>>,
}

struct Measured {
    system: System,
    at: Instant,
    status: NodeStatus,
}

impl Node {
    pub(super) const fn new() -> Self {
        Self { measured: Mutex::new(None) }
    }

    pub(super) fn status(&self, active_tasks: usize) -> NodeStatus {
        let mut measured = self.measured.lock();
        let active_tasks = u32::try_from(active_tasks).unwrap_or(u32::MAX);
        if let Some(known) = measured.as_mut().filter(|known| known.at.elapsed() < MEASURED_EVERY) {
            known.status.active_tasks = active_tasks;
            return known.status.clone();
        }
        let system = match measured.take() {
            Some(known) => Ok(known.system),
            None => System::new(),
        };
        let mut system = match system {
            Ok(system) => system,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "this node cannot be measured");
                return unmeasured(active_tasks);
            }
        };
        system.refresh_memory();
        system.refresh_cpu_usage();
        let status = read(&system, active_tasks);
        *measured = Some(Measured { system, at: Instant::now(), status: status.clone() });
        status
    }
}

fn unmeasured(active_tasks: u32) -> NodeStatus {
    NodeStatus {
        cpu_percent: 0.0,
        memory_percent: 0.0,
        memory_total_mb: 0,
        memory_used_mb: 0,
        active_tasks,
        uptime_seconds: 0,
        collected_at: now(),
    }
}

#[allow(clippy::cast_precision_loss)] // MB of memory are far below 2^52
fn read(system: &System, active_tasks: u32) -> NodeStatus {
    const MB: u64 = 1024 * 1024;
    let (total, used) = (system.total_memory() / MB, system.used_memory() / MB);
    NodeStatus {
        cpu_percent: f64::from(system.global_cpu_usage()),
        memory_percent: if total == 0 { 0.0 } else { used as f64 * 100.0 / total as f64 },
        memory_total_mb: total,
        memory_used_mb: used,
        active_tasks,
        uptime_seconds: System::uptime().unwrap_or(0),
        collected_at: now(),
    }
}
