//! From a request to what `execve` takes, and from its error to a sentence that helps.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::sys::vfork::ChildFailure;
use crate::wire::{RefusedReport, SpawnRequest};

/// Program, arguments and environment as C strings with the pointer arrays over them.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) program: CString,
    /// The owners of what the pointers point at; never changed once the pointers exist.
    _strings: Vec<CString>,
    pub(crate) argv: Vec<*const libc::c_char>,
    pub(crate) envp: Vec<*const libc::c_char>,
}

/// The program's path where code lies at `code`.
pub(crate) fn program_path(program: &str, code: &Path) -> PathBuf {
    let relative = program.trim_start_matches("./");
    if program.starts_with('/') { PathBuf::from(program) } else { code.join(relative) }
}

impl Command {
    /// `code` is where the function will see its code. `extra` is appended to the environment.
    pub(crate) fn new(request: &SpawnRequest, code: &Path, extra: &[(&str, &str)]) -> Result<Self, RefusedReport> {
        let c = |bytes: Vec<u8>, what: &str| {
            CString::new(bytes).map_err(|_| {
                refusal(
                    request.id,
                    "request",
                    libc::EINVAL,
                    format!("{what} contains a NUL byte, which no process can be given; send such data on stdin"),
                )
            })
        };
        if request.program.is_empty() {
            return Err(refusal(
                request.id,
                "exec",
                libc::ENOENT,
                "the handler's name is empty; name a file of the archive in `handler`".to_owned(),
            ));
        }
        let path = program_path(&request.program, code);
        let program = c(path.as_os_str().as_bytes().to_vec(), "the handler's path")?;
        let mut strings = Vec::with_capacity(request.args.len() + request.env.len() + extra.len() + 1);
        for arg in &request.args {
            strings.push(c(arg.clone().into_bytes(), "an argument")?);
        }
        let pairs = request
            .env
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .filter(|(k, _)| !extra.iter().any(|(e, _)| e == k))
            .chain(extra.iter().copied());
        for (name, value) in pairs {
            let mut entry = Vec::with_capacity(name.len() + value.len() + 2);
            entry.extend_from_slice(name.as_bytes());
            entry.push(b'=');
            entry.extend_from_slice(value.as_bytes());
            strings.push(c(entry, "an environment variable")?);
        }
        let (args, env) = strings.split_at(request.args.len());
        let argv = std::iter::once(program.as_ptr())
            .chain(args.iter().map(|s| s.as_ptr()))
            .chain(std::iter::once(std::ptr::null()))
            .collect();
        let envp = env.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect();
        Ok(Command { program, _strings: strings, argv, envp })
    }
}

pub(crate) fn refusal(id: u64, step: &str, errno: i32, message: String) -> RefusedReport {
    RefusedReport { id, step: step.to_owned(), errno, message }
}

fn system_message(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// A child's failure as a sentence for the function's owner.
pub(crate) fn explain(request: &SpawnRequest, failure: ChildFailure) -> RefusedReport {
    let ChildFailure { step, errno } = failure;
    let message = match step {
        "exec" => explain_exec(request, errno),
        "cgroup" => format!(
            "could not enter the execution's cgroup: {}; another program may have removed it",
            system_message(errno)
        ),
        "clone" => format!(
            "could not make a process: {}; the machine may be out of memory or of process numbers",
            system_message(errno)
        ),
        "setns" => format!("could not enter the slot's namespaces: {}", system_message(errno)),
        "chdir" => format!("could not enter the code directory: {}", system_message(errno)),
        "rlimit" => format!(
            "could not set a resource limit: {}; a limit asked for may be above the launcher's own hard limit",
            system_message(errno)
        ),
        step => format!("could not prepare the process ({step}): {}", system_message(errno)),
    };
    refusal(request.id, step, errno, message)
}

fn explain_exec(request: &SpawnRequest, errno: i32) -> String {
    let name = &request.program;
    let on_host = program_path(name, &request.code_dir);
    let in_code = !name.starts_with('/');
    let place = if in_code { "in the archive" } else { "on this machine" };
    match errno {
        libc::ENOENT | libc::ENOTDIR | libc::EACCES if in_code => match inspect(&on_host) {
            ProgramFile::Missing => {
                format!("handler `{name}` is not {place}; `handler` must name a file by its path inside the zip")
            }
            ProgramFile::NotAFile => {
                format!("handler `{name}` is not a file; `handler` must name an executable file")
            }
            ProgramFile::NotExecutable => format!("handler `{name}` is not executable; chmod +x it before zipping"),
            ProgramFile::Script(interpreter) if interpreter.ends_with('\r') => format!(
                "handler `{name}` has no interpreter: its first line ends with CR LF, and the CR counts as part of `{}`; save it with LF line ends",
                interpreter.trim_end()
            ),
            ProgramFile::Script(interpreter) => format!(
                "handler `{name}` has no interpreter: its first line asks for `{interpreter}`, which functions on this machine do not have or may not run"
            ),
            ProgramFile::Program if errno == libc::EACCES => format!(
                "handler `{name}` may not be executed by the functions' user; the directories above it must be open to that user"
            ),
            ProgramFile::Program => format!(
                "handler `{name}` has no interpreter: the dynamic loader that it was linked for is not on this machine; link it statically or build it for this system"
            ),
        },
        libc::ENOENT => format!(
            "program `{name}` (or its interpreter) is not {place} where functions can see it; install it, or name a file of the archive without a leading `/`"
        ),
        libc::EACCES => format!("program `{name}` may not be executed by the functions' user"),
        libc::ENOEXEC => format!(
            "handler `{name}` is neither a program for this machine nor a script; build it for this machine's architecture, or start it with a `#!` line"
        ),
        libc::E2BIG => format!(
            "the arguments and environment of `{name}` are too large for the kernel (128 KiB for one, about 2 MiB together); send large data on stdin"
        ),
        libc::ETXTBSY => format!("handler `{name}` is open for writing; try again"),
        libc::ELOOP => format!("handler `{name}` goes through too many symbolic links or interpreters"),
        errno => format!("handler `{name}` could not be executed: {}", system_message(errno)),
    }
}

enum ProgramFile {
    Missing,
    NotAFile,
    NotExecutable,
    Script(String),
    Program,
}

fn inspect(path: &Path) -> ProgramFile {
    let Ok(metadata) = std::fs::metadata(path) else {
        return ProgramFile::Missing;
    };
    if !metadata.is_file() {
        return ProgramFile::NotAFile;
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return ProgramFile::NotExecutable;
    }
    let mut head = [0; 256];
    let read = File::open(path).and_then(|mut f| f.read(&mut head)).unwrap_or(0);
    match head.get(..read).and_then(|h| h.strip_prefix(b"#!")) {
        Some(line) => {
            let line = line.split(|&b| b == b'\n').next().unwrap_or_default();
            let text = String::from_utf8_lossy(line);
            // As the kernel reads it: a CR is part of the name.
            ProgramFile::Script(text.trim_start().split([' ', '\t']).next().unwrap_or_default().to_owned())
        }
        None => ProgramFile::Program,
    }
}
