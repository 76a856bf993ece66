//! The functions that run: a script that tells the harness when it starts and ends.
//!
//! Functions see nothing of the host but its programs, so the way out is the network: a connection to the harness on
//! loopback, which the kernel closes when the last process of the attempt is gone. That makes the connection a proof of
//! life as well. Everything is a builtin of the shell, since each execution pays for what it starts.

use flux_testkit::File;

/// Those that clients call and someone deploys anew. The second fails once before it fails for good.
pub(crate) const NAMES: [&str; 2] = ["chaos-plain", "chaos-retry"];
/// Attempts of the second.
pub(crate) const RETRIES: u32 = 2;
/// What tells that calls succeed again; it tells the harness nothing.
pub(crate) const PROBE: &str = "chaos-probe";

pub(crate) fn yaml(name: &str) -> String {
    let retry = if name == NAMES[1] {
        format!("retry: {{ max_attempts: {RETRIES}, backoff: 200ms }}\n")
    } else {
        String::new()
    };
    format!(
        "name: {name}\nhandler: run.sh\nresources: {{ cpu: 10, memory: 32 }}\nmax_concurrency: 12\n\
         max_concurrency_behavior: wait\ntimeout: 60\n{retry}"
    )
}

/// The code, different for each `edition`. Its arguments: the harness's port, how many seconds it takes, what it exits
/// with, and the operation that it belongs to.
pub(crate) fn code(edition: u64) -> [File; 1] {
    let script = format!(
        "#!/bin/bash\n# edition {edition}\n\
         exec 3<>/dev/tcp/127.0.0.1/$1\n\
         read -r up _ </proc/uptime\n\
         echo \"start $FLUX_EXECUTION_ID $4 $FLUX_ATTEMPT $FLUX_VERSION $up\" >&3\n\
         echo \"$4 $FLUX_ATTEMPT $FLUX_VERSION\"\n\
         read -r -t $2 -u 3 _\n\
         read -r up _ </proc/uptime\n\
         echo \"end $up\" >&3\n\
         exit $3\n"
    );
    [File::executable("run.sh", script)]
}

pub(crate) fn args(port: u16, seconds: &str, exit: u8, op: u64) -> [String; 4] {
    [port.to_string(), seconds.to_owned(), exit.to_string(), op.to_string()]
}

/// What an attempt prints.
pub(crate) fn output(op: u64, attempt: u32, version: u32) -> String {
    format!("{op} {attempt} {version}\n")
}

pub(crate) fn probe() -> [File; 1] {
    [File::executable("run.sh", "#!/bin/sh\necho ok\n")]
}
