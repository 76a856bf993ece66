//! Where the programs are that tests start.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// Flux's own binaries, as cargo built them beside the running test.
#[derive(Debug, Clone, Copy)]
pub struct FluxBin;

impl FluxBin {
    /// The path of `flux`, `flux-gateway` or `flux-agent`: in the environment's `FLUX_BIN_DIR`, or else in the
    /// profile directory (`…/debug`) that the running test executable lies below.
    pub fn locate(name: &str) -> PathBuf {
        let dirs: Vec<PathBuf> = match std::env::var_os("FLUX_BIN_DIR") {
            Some(dir) => vec![dir.into()],
            // …/debug/deps/it-0123456789abcdef, or …/debug/examples/x: the nearest directory above that has it.
            None => test_executable().ancestors().skip(1).take(3).map(Path::to_path_buf).collect(),
        };
        let found = dirs.iter().map(|dir| dir.join(name)).find(|path| is_executable(path));
        found.unwrap_or_else(|| {
            panic!("no `{name}` in {dirs:?}: run `cargo build --workspace --bins` first, or `make test`, which does")
        })
    }
}

/// `nats-server` as the product finds it: `FLUX_NATS_SERVER`, `PATH`, then `.tools/bin` of the checkout.
pub(crate) fn nats_server() -> PathBuf {
    if let Some(given) = std::env::var_os("FLUX_NATS_SERVER") {
        let path = PathBuf::from(given);
        assert!(is_executable(&path), "FLUX_NATS_SERVER={} is not a program", path.display());
        return path;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|above| above.join(".tools/bin"));
    std::env::split_paths(&path)
        .chain(checkout)
        .map(|dir| dir.join("nats-server"))
        .find(|path| is_executable(path))
        .expect("no nats-server on PATH, in FLUX_NATS_SERVER or in .tools/bin: run `make setup`")
}

/// `PATH` with the directory of [`nats_server`] on it, for a product that looks there.
pub(crate) fn path_with_nats_server() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dir = nats_server().parent().map(Path::to_path_buf).unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if !dirs.contains(&dir) {
        dirs.insert(0, dir);
    }
    std::env::join_paths(dirs).unwrap_or(path)
}

/// `PATH` with Flux's own programs and a `nats-server` on it, for scripts that start them.
pub fn path_of_programs() -> OsString {
    let programs = FluxBin::locate("flux").parent().map(Path::to_path_buf).unwrap_or_default();
    let others = path_with_nats_server();
    std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&others))).unwrap_or(others)
}

/// A program of RabbitMQ, without the wrapper that Debian runs as another user.
pub(crate) fn rabbitmq(name: &str) -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/rabbitmq/lib").into_iter().flatten().flatten();
    let candidates = installed.map(|version| version.path().join("sbin").join(name));
    candidates.into_iter().find(|path| is_executable(path)).unwrap_or_else(|| {
        panic!("no `{name}` below /usr/lib/rabbitmq/lib: run `scripts/setup.sh test`, or install rabbitmq-server")
    })
}

/// Erlang's port mapper.
pub(crate) fn epmd() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("epmd")).find(|path| is_executable(path));
    found.expect("no epmd on PATH: run `scripts/setup.sh test`, or install rabbitmq-server")
}

fn test_executable() -> PathBuf {
    std::env::current_exe().expect("the path of the running test is unknown")
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The part of a path that names the program, for messages.
pub(crate) fn program_name(path: &Path) -> String {
    path.file_name().unwrap_or_else(|| OsStr::new("?")).to_string_lossy().into_owned()
}
