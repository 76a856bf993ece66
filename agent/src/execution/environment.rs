//! What a function's process sees around it: DESIGN §6, and nothing of the agent's own environment.

use std::time::Duration;

use bytes::Bytes;
use flux_launcher::wire::{Limits, Network, SpawnRequest};
use flux_protocol::{
    ExecutionId, FunctionVersion, Timestamp,
    function::{self, Isolation, Runtime},
    limits,
    trace::TraceParent,
};

use super::Secrets;
use crate::{code::CodeFolder, lambda, node::Addresses, sandbox::Start};

/// Processes and threads of one execution: enough for any runtime's thread pools, and an end to a fork bomb.
const PIDS: u32 = 1_024;
/// As many as a login shell gets on most distributions.
const OPEN_FILES: u64 = 4_096;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All that an attempt tells its function.
pub(super) struct Seen<'a> {
    pub(super) execution_id: ExecutionId,
    pub(super) attempt: u32,
    pub(super) args: &'a [String],
    pub(super) payload: &'a Bytes,
    /// The earlier of the caller's deadline and the function's timeout.
    pub(super) deadline: Option<Timestamp>,
    pub(super) trace: TraceParent,
    pub(super) addresses: &'a Addresses,
    pub(super) secrets: &'a Secrets,
}

/// The process of one execution. `shell` is bash, for a script that bash is to read.
pub(super) fn request(
    version: &FunctionVersion,
    code: Option<&CodeFolder>,
    seen: &Seen<'_>,
    shell: Option<&str>,
) -> Start {
    let mut request = bare(version, code);
    request.env = environment(version, seen);
    give(&mut request, seen.secrets);
    request.args = seen.args.to_vec();
    // A path, so that no word of it can be an option; the working directory is that of the code.
    let in_code = || format!("./{}", version.spec.handler.trim_start_matches("./"));
    match (version.spec.command.split_first(), shell) {
        (Some((program, words)), _) => {
            request.program.clone_from(program);
            request.args.splice(0..0, words.iter().cloned());
        }
        (None, Some(shell)) => {
            shell.clone_into(&mut request.program);
            request.args.insert(0, in_code());
        }
        (None, None) if version.spec.isolation == Isolation::Process => {
            request.program.clone_from(&version.spec.handler);
        }
        (None, None) => request.program = in_code(),
    }
    held_in(version, code, request)
}

/// Puts secrets into its environment, in the place of whatever else has their names.
pub(super) fn give(request: &mut SpawnRequest, secrets: &Secrets) {
    request.env.retain(|(name, _)| !secrets.has(name));
    request.env.extend(secrets.variables());
}

/// A worker's process, which its interpreter is told to be.
pub(super) fn worker_request(
    version: &FunctionVersion,
    code: Option<&CodeFolder>,
    addresses: &Addresses,
    interpreter: &str,
    arguments: &[&str],
) -> Start {
    let mut request = bare(version, code);
    request.env = with_own(version, of_the_node(version, addresses));
    interpreter.clone_into(&mut request.program);
    request.args = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    held_in(version, code, request)
}

/// What a runtime's interpreter is called in every image that has it.
pub(super) const fn in_images(runtime: Runtime) -> Option<&'static str> {
    match runtime {
        Runtime::Python => Some("python3"),
        Runtime::Node => Some("node"),
        Runtime::Bash => Some("bash"),
        Runtime::Native | Runtime::Lambda => None,
    }
}

fn held_in(version: &FunctionVersion, code: Option<&CodeFolder>, mut request: SpawnRequest) -> Start {
    let spec = &version.spec;
    if spec.isolation == Isolation::Container && !spec.env.contains_key("PATH") {
        // The image's own: it knows where its programs are.
        request.env.retain(|(name, _)| name != "PATH");
    }
    Start {
        function: spec.name.clone(),
        version: version.version,
        request,
        image: spec.image.clone(),
        code: code.map(|code| code.path.clone()),
        loads: Vec::new(),
        has_secrets: !spec.secrets.is_empty(),
    }
}

/// A worker that is the program of a Lambda package.
pub(super) fn bootstrap_request(
    version: &FunctionVersion,
    code: Option<&CodeFolder>,
    addresses: &Addresses,
) -> SpawnRequest {
    let mut request = bare(version, code);
    let mut own = of_the_node(version, addresses);
    own.extend(lambda::environment(version));
    request.env = with_own(version, Vec::new());
    request.env.retain(|(name, _)| !own.iter().any(|(own, _)| own == name));
    request.env.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    request.program = version.spec.entry().files.swap_remove(0);
    request.listens = true;
    request
}

fn bare(version: &FunctionVersion, code: Option<&CodeFolder>) -> SpawnRequest {
    let spec = &version.spec;
    SpawnRequest {
        slot_key: format!("{}@{}", spec.name, version.version),
        code_dir: code.map(|code| code.path.clone()).unwrap_or_default(),
        limits: Limits {
            memory_bytes: spec.resources.memory_bytes(),
            cpu_millicores: spec.resources.cpu,
            pids_max: PIDS,
            open_files: OPEN_FILES,
            file_size_bytes: 0,
            spares_others: spec.fresh,
        },
        network: match spec.network {
            function::Network::Host => Network::Host,
            function::Network::None => Network::None,
        },
        ..SpawnRequest::default()
    }
}

/// What is the same for all invocations of a version on this node.
fn of_the_node(version: &FunctionVersion, addresses: &Addresses) -> Vec<(&'static str, String)> {
    vec![
        ("FLUX_FUNCTION", version.spec.name.to_string()),
        ("FLUX_VERSION", version.version.to_string()),
        ("FLUX_NODE_PRIVATE_IP", addresses.private.clone()),
        ("FLUX_NODE_PUBLIC_IP", addresses.public.clone()),
    ]
}

fn environment(version: &FunctionVersion, seen: &Seen<'_>) -> Vec<(String, String)> {
    let mut own = of_the_node(version, seen.addresses);
    own.push(("FLUX_EXECUTION_ID", seen.execution_id.to_string()));
    own.push(("FLUX_ATTEMPT", seen.attempt.to_string()));
    own.push(("traceparent", seen.trace.to_string()));
    if let Some(deadline) = seen.deadline {
        own.push(("FLUX_DEADLINE", deadline.to_string()));
    }
    if let Some(payload) = payload_text(seen.payload) {
        own.push(("FLUX_PAYLOAD", payload.to_owned()));
        own.push(("PAYLOAD", payload.to_owned()));
    }
    with_own(version, own)
}

/// Defaults, the function's `env`, and what is Flux's own.
fn with_own(version: &FunctionVersion, own: Vec<(&'static str, String)>) -> Vec<(String, String)> {
    let spec = &version.spec;
    let mut env = Vec::with_capacity(spec.env.len() + 16);
    // A function's own `env` may replace these.
    for (name, value) in [("PATH", PATH), ("HOME", "/tmp"), ("TMPDIR", "/tmp"), ("LANG", "C.UTF-8")] {
        if !spec.env.contains_key(name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    // Names that start with FLUX_, and PAYLOAD, are refused in a function's configuration.
    env.extend(
        spec.env.iter().filter(|(name, _)| *name != "traceparent").map(|(name, value)| (name.clone(), value.clone())),
    );
    env.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
    env
}

/// The payload where it can be an environment variable: no larger than the limit, text, and without NUL.
fn payload_text(payload: &Bytes) -> Option<&str> {
    let small = payload.len() <= limits::ENV_PAYLOAD;
    small.then(|| std::str::from_utf8(payload).ok())?.filter(|text| !text.contains('\0'))
}

/// The earlier of a function's timeout, counted from now, and the caller's deadline.
pub(super) fn earlier(timeout: Option<Duration>, deadline: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let by_timeout = timeout.map(|timeout| now.plus(timeout));
    match (by_timeout, deadline) {
        (Some(timeout), Some(deadline)) => Some(timeout.min(deadline)),
        (either, None) | (None, either) => either,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen<'a>(payload: &'a Bytes, addresses: &'a Addresses) -> Seen<'a> {
        static NONE: std::sync::LazyLock<Secrets> = std::sync::LazyLock::new(Secrets::default);
        Seen {
            secrets: &NONE,
            execution_id: ExecutionId::new(),
            attempt: 2,
            args: &[],
            payload,
            deadline: Some(Timestamp::from_millis(0)),
            trace: TraceParent::new(),
            addresses,
        }
    }

    fn version(yaml: &str) -> FunctionVersion {
        FunctionVersion {
            version: 3,
            digest: None,
            spec: function::parse_yaml(yaml).expect("a function"),
            created_at: Timestamp::default(),
        }
    }

    #[test]
    fn a_function_sees_what_the_design_lists_and_nothing_else() {
        let version = version("name: f\nhandler: f\nenv: { LEVEL: info, PATH: /opt }");
        let (payload, addresses) = (Bytes::from_static(b"{\"n\":1}"), Addresses::default());
        let env = environment(&version, &seen(&payload, &addresses));
        let mut names: Vec<&str> = env.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        let expected = [
            "FLUX_ATTEMPT",
            "FLUX_DEADLINE",
            "FLUX_EXECUTION_ID",
            "FLUX_FUNCTION",
            "FLUX_NODE_PRIVATE_IP",
            "FLUX_NODE_PUBLIC_IP",
            "FLUX_PAYLOAD",
            "FLUX_VERSION",
            "HOME",
            "LANG",
            "LEVEL",
            "PATH",
            "PAYLOAD",
            "TMPDIR",
            "traceparent",
        ];
        assert_eq!(names, expected);
        let value = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        assert_eq!(value("FLUX_ATTEMPT"), Some("2"));
        assert_eq!(value("PATH"), Some("/opt"));
        assert_eq!(value("FLUX_PAYLOAD"), Some("{\"n\":1}"));
        assert_eq!(value("FLUX_DEADLINE"), Some("1970-01-01T00:00:00Z"));
    }

    #[test]
    fn a_payload_that_cannot_be_a_variable_is_left_to_stdin() {
        let large = Bytes::from(vec![b'x'; limits::ENV_PAYLOAD + 1]);
        for payload in [Bytes::from_static(b"a\0b"), Bytes::from_static(b"\xff\xfe"), large] {
            assert_eq!(payload_text(&payload), None);
        }
        assert!(payload_text(&Bytes::from(vec![b'x'; limits::ENV_PAYLOAD])).is_some());
    }

    #[test]
    fn the_earlier_limit_counts() {
        let (now, second) = (Timestamp::from_millis(1_000), Duration::from_secs(1));
        let late = Timestamp::from_millis(9_000);
        assert_eq!(earlier(None, None, now), None);
        assert_eq!(earlier(Some(second), Some(late), now), Some(Timestamp::from_millis(2_000)));
        assert_eq!(earlier(None, Some(late), now), Some(late));
        assert_eq!(earlier(Some(second), Some(now), now), Some(now));
    }
}
