//! Where and under which circumstances it was measured.

/// How busy the machine was before the run.
#[derive(Debug)]
pub(super) struct Before {
    load: String,
    ticks: Option<Ticks>,
}

/// The machine, and how busy it was.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) cpu: String,
    pub(super) kernel: String,
    pub(super) load_before: String,
    pub(super) load_after: String,
    pub(super) stolen_percent: f64,
    pub(super) build: &'static str,
}

/// CPU time of the whole machine since it started, and how much of it a hypervisor gave to others.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ticks {
    all: f64,
    stolen: f64,
}

impl Before {
    pub(super) fn look() -> Self {
        Self { load: load_average(), ticks: Ticks::look() }
    }
}

impl Machine {
    pub(super) fn look(before: Before) -> Self {
        let stolen = before
            .ticks
            .zip(Ticks::look())
            .map_or(0.0, |(before, after)| 100.0 * (after.stolen - before.stolen) / (after.all - before.all).max(1.0));
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
        Self {
            cores: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            cpu: cpu.unwrap_or_else(|| "unknown".to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: before.load,
            load_after: load_average(),
            stolen_percent: stolen,
            build: if cfg!(debug_assertions) { "debug (figures mean nothing)" } else { "release" },
        }
    }
}

impl Ticks {
    fn look() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let first = stat.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; guest time is in user already.
        let numbers: Vec<f64> = first.split_whitespace().take(8).filter_map(|number| number.parse().ok()).collect();
        Some(Self { all: numbers.iter().sum(), stolen: *numbers.get(7)? })
    }
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_number() {
        let stat = "cpu  10 20 30 40 50 60 70 80 5 5\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(Ticks::parse(stat), Some(Ticks { all: 360.0, stolen: 80.0 }));
        assert_eq!(Ticks::parse("intr 1"), None);
        assert_eq!(Ticks::parse("cpu  1 2 3"), None);
    }
}
