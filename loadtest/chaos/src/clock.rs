//! The one clock of a history: microseconds since the machine was booted. Functions read the same one from
//! `/proc/uptime`, so that what they say and what the harness saw can be put in order. Nothing steps it.

use nix::time::{ClockId, clock_gettime};

pub(crate) fn now_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("every Linux has this clock");
    let (seconds, nanos) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    seconds * 1_000_000 + nanos / 1_000
}

/// `/proc/uptime`'s first field, `12345.67`: hundredths of a second, rounded down.
pub(crate) fn parse_uptime(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_once('.')?;
    (hundredths.len() == 2).then_some(())?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + hundredths.parse::<u64>().ok()? * 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_s_clock_is_the_harness_s() {
        let text = std::fs::read_to_string("/proc/uptime").expect("Linux");
        let theirs = parse_uptime(text.split(' ').next().expect("a field")).expect("a number");
        let ours = now_us();
        assert!(theirs <= ours && ours - theirs < 1_000_000, "{theirs} {ours}");
        assert_eq!(parse_uptime("12.34"), Some(12_340_000));
        assert_eq!(parse_uptime("12"), None);
    }
}
