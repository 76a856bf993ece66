//! What this process has used, for those who look at where the CPU time of a machine goes.

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};
use serde_json::{Map, Value, json};

/// `user_us`, `system_us` and `switches`, from the start of the process.
pub(crate) fn of_this_process() -> nix::Result<Map<String, Value>> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: TimeVal| time.num_microseconds();
    let switches = usage.voluntary_context_switches() + usage.involuntary_context_switches();
    let mut map = Map::new();
    map.insert("user_us".to_owned(), json!(micros(usage.user_time())));
    map.insert("system_us".to_owned(), json!(micros(usage.system_time())));
    map.insert("switches".to_owned(), json!(switches));
    Ok(map)
}
