//! The programs of the worker's side. They need nothing but their language's standard library, and reach the worker over its
//! own channel: see `docs/adr/0005-warm-workers.md`.

use flux_protocol::function::Runtime;

/// The worker's end of the channel: the first descriptor after stdin, stdout and stderr.
pub const CHANNEL: i32 = 3;

const PYTHON: &str = include_str!("../bootstrap/python.py");
/// With the half that forks in front, which is no part of other workers' cold starts.
const PYTHON_FRESH: &str = concat!(include_str!("../bootstrap/fresh.py"), include_str!("../bootstrap/python.py"));
const PYTHON_LOADER: &str = include_str!("../bootstrap/loader.py");
const NODE: &str = include_str!("../bootstrap/node.js");
const NODE_LOADER: &str = include_str!("../bootstrap/loader.js");

/// How a runtime's workers are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// Arguments of the interpreter: a loader that reads the first frame and runs it.
    pub arguments: &'static [&'static str],
    /// The content of [`crate::ToWorker::Program`].
    pub program: &'static str,
}

/// `None` for a runtime without workers, and for `lambda`, whose workers bring their own.
pub fn of(runtime: Runtime) -> Option<Bootstrap> {
    match runtime {
        // Isolated: neither the function's folder nor PYTHON* variables change what the bootstrap imports.
        Runtime::Python => Some(Bootstrap { arguments: &["-I", "-c", PYTHON_LOADER], program: PYTHON }),
        Runtime::Node => Some(Bootstrap { arguments: &["-e", NODE_LOADER], program: NODE }),
        Runtime::Native | Runtime::Bash | Runtime::Lambda => None,
    }
}

/// Of a worker that forks for each invocation, where the runtime has such.
pub fn forking(runtime: Runtime) -> Option<Bootstrap> {
    let program = PYTHON_FRESH;
    (runtime == Runtime::Python).then_some(Bootstrap { arguments: &["-I", "-c", PYTHON_LOADER], program })
}
