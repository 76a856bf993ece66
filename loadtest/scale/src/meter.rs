//! Processor time and memory of each process, as the kernel counts them.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};

/// `USER_HZ`, which is 100 on every Linux that this runs on.
const TICK: Duration = Duration::from_millis(10);
const PAGE_KIB: u64 = 4;

/// A process that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) pid: i32,
}

/// Processor time since the start of each process, user and system together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spent(Vec<(&'static str, Duration)>);

impl Spent {
    pub(crate) fn now(processes: &[Measured]) -> Self {
        Self(processes.iter().map(|process| (process.name, cpu_of(process.pid))).collect())
    }

    pub(crate) fn since(&self, before: &Self) -> Vec<(&'static str, Duration)> {
        let was =
            |name: &str| before.0.iter().find(|(other, _)| *other == name).map_or(Duration::ZERO, |(_, spent)| *spent);
        self.0.iter().map(|(name, spent)| (*name, spent.saturating_sub(was(name)))).collect()
    }
}

/// The fields of `/proc/<pid>/stat` after the name, which may hold anything.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split_whitespace().map(str::to_owned).collect())
}

fn cpu_of(pid: i32) -> Duration {
    let ticks = |fields: &[String], n: usize| fields.get(n).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
    stat(pid).map_or(Duration::ZERO, |fields| TICK * (ticks(&fields, 11) + ticks(&fields, 12)))
}

/// Resident memory in KiB.
pub(crate) fn memory_of(pid: i32) -> u64 {
    stat(pid).and_then(|fields| fields.get(21)?.parse::<u64>().ok()).unwrap_or(0) * PAGE_KIB
}

/// One look at all processes.
#[derive(Debug, Clone)]
pub struct Sample {
    pub seconds: f64,
    /// KiB, in the order of [`Series::names`].
    pub memory_kib: Vec<u64>,
}

/// Memory over time.
#[derive(Debug, Clone, Default)]
pub struct Series {
    pub names: Vec<&'static str>,
    pub samples: Vec<Sample>,
    /// What began when.
    pub marks: Vec<(f64, String)>,
}

impl Series {
    /// The last sample of a process, in MiB.
    #[allow(clippy::cast_precision_loss, reason = "KiB of one machine")]
    pub fn at(&self, sample: usize, name: &str) -> f64 {
        let column = self.names.iter().position(|other| *other == name);
        let kib = column.and_then(|column| self.samples.get(sample)?.memory_kib.get(column).copied()).unwrap_or(0);
        kib as f64 / 1024.0
    }

    pub(crate) fn csv(&self) -> String {
        let mut text = format!("seconds,{}\n", self.names.join(","));
        for sample in &self.samples {
            let row: Vec<String> = sample.memory_kib.iter().map(u64::to_string).collect();
            text.push_str(&format!("{:.1},{}\n", sample.seconds, row.join(",")));
        }
        text
    }
}

/// Looks once a second until it is dropped.
pub(crate) struct Sampler {
    began: Instant,
    series: Arc<Mutex<Series>>,
    task: JoinHandle<()>,
}

impl Sampler {
    #[allow(clippy::disallowed_methods, reason = "its handle ends it")]
    pub(crate) fn start(processes: Vec<Measured>) -> Self {
        let began = Instant::now();
        let names = processes.iter().map(|process| process.name).collect();
        let series = Arc::new(Mutex::new(Series { names, ..Series::default() }));
        let filled = Arc::clone(&series);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(1));
            loop {
                ticks.tick().await;
                let memory_kib = processes.iter().map(|process| memory_of(process.pid)).collect();
                let sample = Sample { seconds: began.elapsed().as_secs_f64(), memory_kib };
                filled.lock().unwrap_or_else(PoisonError::into_inner).samples.push(sample);
            }
        });
        Self { began, series, task }
    }

    /// Something begins now.
    pub(crate) fn mark(&self, what: impl Into<String>) {
        let at = self.began.elapsed().as_secs_f64();
        self.series.lock().unwrap_or_else(PoisonError::into_inner).marks.push((at, what.into()));
    }

    pub(crate) fn series(&self) -> Series {
        self.series.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The value that this part of all is not above. Of nothing: zero.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
pub(crate) fn percentile(all: &mut [Duration], part: f64) -> Duration {
    all.sort_unstable();
    let rank = ((all.len() as f64 - 1.0) * part).round().max(0.0) as usize;
    all.get(rank).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_and_of_none() {
        let mut all: Vec<_> = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut all, 0.5), Duration::from_millis(51));
        assert_eq!(percentile(&mut all, 0.95), Duration::from_millis(96));
        assert_eq!(percentile(&mut [], 0.5), Duration::ZERO);
    }

    #[test]
    fn this_process_has_memory_and_has_worked() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(memory_of(own) > 500, "{}", memory_of(own));
        let measured = [Measured { name: "own", pid: own }];
        let before = Spent::now(&measured);
        let mut sum = 0_u64;
        while Spent::now(&measured).since(&before)[0].1 < TICK {
            sum = (0..100_000_u64).fold(sum, |sum, n| sum.wrapping_add(n * n));
        }
        assert_ne!(sum, 1);
    }
}
