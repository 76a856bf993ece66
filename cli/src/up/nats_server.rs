//! The `nats-server` program and its configuration.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use flux_broker::nats;
use flux_pki::Certs;
use flux_protocol::{identity::Identity, limits};
use flux_runtime::{Settings, config::env, settings::Durability};

use super::{
    data_dir::{DataDir, first_closed},
    identity::Identity as RunsAs,
    ports::Queue,
};
use crate::error::CliError;

/// Schedules in messages, and acks with a delivery's own priority, came with it.
const OLDEST: (u32, u32) = (2, 12);
const NAME: &str = "nats-server";
const REMEDY: &str = "`make setup` installs one; or put nats-server 2.12 or later on PATH, or name it: `queue.nats_server` or FLUX_NATS_SERVER";

/// The program, of a version that will do.
pub(super) fn find(configured: Option<&Path>, identity: &RunsAs) -> Result<PathBuf, CliError> {
    let named = configured.map(Path::to_owned).or_else(|| env("FLUX_NATS_SERVER").map(PathBuf::from));
    let candidates = match &named {
        Some(path) => vec![path.clone()],
        None => candidates(),
    };
    let mut refused = Vec::new();
    for path in candidates {
        match check(&path, identity) {
            Ok(Some(path)) => return Ok(path),
            Ok(None) => {}
            Err(why) => refused.push(why),
        }
    }
    let what = match (&named, refused.is_empty()) {
        (Some(path), true) => format!("{} is not a program", path.display()),
        (None, true) => format!("there is no {NAME}, which is Flux's queue"),
        (_, false) => refused.join("; "),
    };
    Err(CliError::problem(what, REMEDY))
}

/// On `PATH`, in a checkout's `.tools/bin`, and where the set-up of an installed Flux puts it.
fn candidates() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = env("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let above = [std::env::current_exe().ok(), std::env::current_dir().ok()];
    for start in above.iter().flatten() {
        dirs.extend(start.ancestors().map(|dir| dir.join(".tools/bin")));
    }
    dirs.extend(env("HOME").map(|home| Path::new(&home).join(".local/share/flux/bin")));
    dirs.push("/usr/local/bin".into());
    dirs.iter().map(|dir| dir.join(NAME)).collect()
}

/// `None`: nothing is there.
fn check(path: &Path, identity: &RunsAs) -> Result<Option<PathBuf>, String> {
    let Ok(path) = path.canonicalize() else { return Ok(None) };
    let runs = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    if !runs {
        return Ok(None);
    }
    if let Some(closed) = identity.platform.and_then(|user| first_closed(&path, user)) {
        return Err(format!("{} is below {}, which the user flux cannot enter", path.display(), closed.display()));
    }
    let output = Command::new(&path).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match version(&text) {
        Some(found) if found >= OLDEST => Ok(Some(path)),
        Some((major, minor)) => {
            Err(format!("{} is version {major}.{minor}; Flux needs {}.{} or later", path.display(), OLDEST.0, OLDEST.1))
        }
        None => Err(format!("{} does not say which version it is", path.display())),
    }
}

/// Out of `nats-server: v2.15.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim().strip_prefix("nats-server: v")?.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Writes its configuration; returns where.
pub(super) fn configure(data: &DataDir, queue: &Queue, settings: &Settings) -> Result<PathBuf, CliError> {
    let path = data.run("nats.conf");
    let access = if settings.disable_mtls {
        // Whoever comes is a gateway.
        format!("no_auth_user: {:?}\n", Identity::Gateway.uri())
    } else {
        nats::server_tls(&Certs::at(settings.certs_dir()).queue_files())
    };
    let text = configuration(data.path(), &queue.listen.to_string(), settings.queue.durability, &access);
    data.write_shared(&path, &text)
        .map_err(|source| CliError::local(format!("{} cannot be written", path.display()), source))?;
    Ok(path)
}

/// Streams reserve what they may grow to, so the limits are above what all of them add up to; the disk is used only
/// as far as messages are stored. Unless it is told to sync always, the server does so every two minutes.
fn configuration(data: &Path, listen: &str, durability: Durability, access: &str) -> String {
    let sync = match durability {
        Durability::Process => "",
        Durability::Fsync => "  sync_interval: always\n",
    };
    let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
    format!(
        "# Written by `flux up` at each start; changes are lost.\n\
         listen: {listen:?}\n\
         server_name: \"flux\"\n\
         max_payload: {payload}\n\
         max_pending: 256MB\n\
         pid_file: {pid}\n\
         log_file: {log}\n\
         log_size_limit: 16MB\n\
         log_max_num: 4\n\
         jetstream {{\n  store_dir: {store}\n  max_memory_store: 4GB\n  max_file_store: 256GB\n{sync}}}\n\
         {access}\
         include \"worker/accounts.conf\"\n",
        payload = limits::MESSAGE,
        pid = quoted(data.join("run/worker/nats.pid")),
        log = quoted(data.join("run/worker/nats.log")),
        store = quoted(data.join("nats")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(version("nats-server: v2.12.0-RC.1"), Some((2, 12)));
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn the_configuration_is_the_one_that_was_reviewed() {
        let certs = Certs::at("/var/lib/flux/certs");
        let access = nats::server_tls(&certs.queue_files());
        let written = |durability| configuration(Path::new("/var/lib/flux"), "127.0.0.1:4222", durability, &access);
        assert_eq!(written(Durability::Process), include_str!("../../tests/golden/nats.conf"));
        assert_eq!(written(Durability::Fsync), include_str!("../../tests/golden/nats-fsync.conf"));
    }
}
