//! The launcher's process: threads that each serve one execution at a time, and a main thread that listens for kills.
//!
//! One thread does all of one execution, so there is no hand-over to wait for on the way to a running function, and
//! the process's parent thread, whose end would kill it, is there as long as it is. All threads wait in `recvmsg` on
//! the same socket; the kernel wakes one for each packet.

mod allowed_files;
mod command;
mod crew;
mod execution;
mod layers;
mod listening;
mod look;
mod others;
mod plain;
mod registry;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;

use crate::capabilities::{self, Capabilities};
use crate::cgroup::Cgroups;
use crate::config::{LAUNCHER_ARGUMENT, LauncherConfig, NOBODY, Runner};
use crate::seccomp::Filter;
use crate::slot::{self, Makers, RootView, SlotPool};
use crate::sys::{descriptor, memory, process, socket};
use crate::wire::{Control, ControlReply, MAX_REPLY, Network};
use crew::Crew;
use execution::Server;
use look::{Looker, Question};
use plain::Plain;
use registry::Registry;

/// What a thread needs for decoding a request and formatting a refusal, in debug builds too.
const THREAD_STACK_BYTES: usize = 128 << 10;
/// Threads above the budget, so that the next execution need not wait for the last one's slot to be reset.
const SPARE_THREADS: u32 = 2;
/// Why a layer is missing that somebody left out.
const SWITCHED_OFF: &str = "switched off by configuration";
/// How many threads the launcher makes at the most, whatever it is asked for.
const MAX_THREADS: u32 = 4096;

/// Turns this process into a launcher if it was started as one; call it first in `main`, before any thread exists.
pub fn run_if_launcher() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_none_or(|a| a != LAUNCHER_ARGUMENT) {
        return;
    }
    let mut number = || args.next()?.to_str()?.parse().ok();
    let numbers = number().zip(number());
    let config = args.next().and_then(|json| serde_json::from_slice(json.as_encoded_bytes()).ok());
    let (Some((spawn, control)), Some(config)) = (numbers, config) else {
        eprintln!("flux launcher: it takes two descriptors and its configuration, which only Flux passes");
        std::process::exit(2);
    };
    let sockets = socket::inherited(spawn).and_then(|s| Ok((s, socket::inherited(control)?)));
    match sockets {
        Ok((spawn, control)) => launcher_main(&config, spawn, control),
        Err(error) => {
            eprintln!("flux launcher: descriptors {spawn} and {control} are not open: {error}");
            std::process::exit(2);
        }
    }
}

/// Serves until the control socket's other end closes; then kills everything, cleans up, and ends the process.
pub fn launcher_main(config: &LauncherConfig, spawn: OwnedFd, control: OwnedFd) -> ! {
    process::prepare_process();
    memory::one_heap();
    let code = match serve(config, spawn, &control) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("flux launcher: cannot start: {error}");
            1
        }
    };
    std::process::exit(code)
}

fn serve(config: &LauncherConfig, spawn: OwnedFd, control: &OwnedFd) -> io::Result<()> {
    descriptor::hold_lowest()?;
    let threads = config.tasks.max(1).saturating_add(SPARE_THREADS).min(MAX_THREADS);
    let (crew, wishes) = Crew::new(config.tasks.clamp(1, MAX_THREADS));
    let (server, filter, capabilities) = set_up(config, spawn, crew)?;
    let server = Arc::new(server);
    for _ in 0..threads {
        add_thread(&server, capabilities.root, filter.clone())?;
    }
    let (hirer, root) = (Arc::clone(&server), capabilities.root);
    std::thread::Builder::new().name("flux-crew".to_owned()).stack_size(THREAD_STACK_BYTES).spawn(move || {
        for () in wishes {
            if let Err(error) = add_thread(&hirer, root, filter.clone()) {
                eprintln!("flux launcher: no further thread can be made: {error}");
            }
        }
    })?;
    let hello = ControlReply::Hello(Box::new(capabilities));
    socket::send(control.as_fd(), &hello.encode(), &[])?;
    memory::forget_start_up();
    let looker = Looker::start(&server, control, at_once(config).min(MAX_THREADS))?;
    listen(&server, control, &looker)?;
    server.end();
    Ok(())
}

/// One more thread that serves.
fn add_thread(server: &Arc<Server>, root: bool, filter: Option<Filter>) -> io::Result<()> {
    let server = Arc::clone(server);
    let serve = move || {
        if let Err(error) = process::prepare_thread(root) {
            eprintln!("flux launcher: a thread could not give up its privileges: {error}");
            std::process::exit(1);
        }
        if let Some(Err(error)) = filter.as_ref().map(Filter::load) {
            eprintln!("flux launcher: {error}");
            std::process::exit(1);
        }
        server.serve_executions();
        // Its children would die with it: the process's end is the main thread's to choose.
        loop {
            std::thread::park();
        }
    };
    std::thread::Builder::new().name("flux-slot".to_owned()).stack_size(THREAD_STACK_BYTES).spawn(serve).map(drop)
}

/// Processes at the same time: executions, and as many workers that wait for one.
fn at_once(config: &LauncherConfig) -> u32 {
    config.tasks.max(1).saturating_mul(2)
}

/// Handles control packets until the other end is closed.
fn listen(server: &Server, control: &OwnedFd, looker: &Looker) -> io::Result<()> {
    let mut buffer = vec![0; MAX_REPLY];
    loop {
        let packet = match socket::recv(control.as_fd(), &mut buffer) {
            Ok(packet) if packet.len > 0 => packet,
            Ok(_) => return Ok(()),
            Err(error) => {
                if error.raw_os_error() != Some(libc::ECONNRESET) {
                    eprintln!("flux launcher: control socket: {error}; ending");
                }
                return Ok(());
            }
        };
        match buffer.get(..packet.len).map(Control::decode) {
            Some(Ok(Control::Kill { id, signal })) => server.registry.signal(id, signal),
            Some(Ok(Control::Ping { nonce })) => {
                let pong = ControlReply::Pong { nonce }.encode();
                // A client that does not read its answers gets none: this thread must stay free for kills.
                let _ = socket::try_send(control.as_fd(), &pong, &[]);
            }
            Some(Ok(Control::IsAlone { id, nonce })) => looker.look(Question::IsAlone { id, nonce }, server, control),
            Some(Ok(Control::Clear { id, nonce })) => looker.look(Question::Clear { id, nonce }, server, control),
            Some(Err(error)) => eprintln!("flux launcher: ignored a control packet: {error}"),
            None => {}
        }
    }
}

fn set_up(config: &LauncherConfig, spawn: OwnedFd, crew: Crew) -> io::Result<(Server, Option<Filter>, Capabilities)> {
    let root = process::is_root();
    let mut capabilities = Capabilities { root, no_new_privs: true, ..Capabilities::default() };
    let user = choose_user(config, root, &mut capabilities);
    let open_files = process::raise_open_files()?;
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&config.work_dir)?;
    // Before anything of this launcher runs: what a dead one left, ends.
    Plain::new(&config.work_dir, user, None).prepare()?;
    let cgroups = Cgroups::discover(&mut capabilities);
    let view = usable_view(config, user, &mut capabilities)?;
    let chosen = view.zip(user).map(|(view, runner)| (view, layers::choose_uids(config, runner, &mut capabilities)));
    let first_uid = chosen.as_ref().and_then(|(_, (runners, _))| runners.first_of_each());
    let shared_cgroup = layers::guard_network(config, cgroups.as_ref(), first_uid, &mut capabilities);
    let (slots, cgroups) = match chosen {
        Some((view, (runners, ceiling))) => {
            let makers = Makers::start(view, config.tmp_bytes, config.tasks)?;
            (Some(SlotPool::new(makers, cgroups, ceiling as usize, runners)), None)
        }
        None => (None, cgroups),
    };
    if slots.is_none() {
        // Where slots are, nothing of a function outlives its PID namespace.
        process::become_subreaper()?;
    }
    let plain = Plain::new(&config.work_dir, user, cgroups);
    let files = if slots.is_none() { layers::usable_files(config, &mut capabilities) } else { None };
    let scopes = layers::usable_scopes(config, &mut capabilities);
    let filter = layers::usable_filter(config, &mut capabilities);
    if config.isolation_required {
        capabilities.require_all();
    }
    let server = Server {
        spawn,
        shared_cgroup,
        registry: Registry::default(),
        crew,
        slots,
        plain,
        user,
        scopes,
        files,
        refuses: capabilities.refuses.clone(),
        reset_oom_score: oom_score_is_set(),
        open_files,
    };
    Ok((server, filter, capabilities))
}

/// The root view, if a slot with it can really be made here.
fn usable_view(
    config: &LauncherConfig,
    user: Option<Runner>,
    capabilities: &mut Capabilities,
) -> io::Result<Option<RootView>> {
    const LAYERS: &str = "pid and mount namespaces";
    let no_slots = |capabilities: &mut Capabilities, reason: &str| {
        capabilities.lacks(LAYERS, reason);
        if capabilities.root {
            capabilities.lacks(capabilities::OWN_UID, "without slots functions share one user");
        }
        capabilities.lacks(capabilities::NETWORK_NAMESPACE, "without slots there is none: `network: none` is refused");
        Ok(None)
    };
    let Some(runner) = user else {
        let reason =
            "not started as root: functions see the machine's processes, and have no view of files of their own";
        return no_slots(capabilities, reason);
    };
    if !config.slots {
        return no_slots(capabilities, SWITCHED_OFF);
    }
    let view = RootView::survey(config)?;
    match slot::try_out(&view, runner, &config.work_dir, Network::None) {
        Ok(()) => capabilities.net_namespace = true,
        Err(error) => {
            if let Err(error) = slot::try_out(&view, runner, &config.work_dir, Network::Host) {
                return no_slots(capabilities, &error.to_string());
            }
            capabilities.lacks(capabilities::NETWORK_NAMESPACE, error.to_string());
        }
    }
    capabilities.pid_namespace = true;
    capabilities.mount_namespace = true;
    Ok(Some(view))
}

fn choose_user(config: &LauncherConfig, root: bool, capabilities: &mut Capabilities) -> Option<Runner> {
    if !root {
        capabilities.runner_uid = nix::unistd::geteuid().as_raw();
        capabilities.runner_gid = nix::unistd::getegid().as_raw();
        capabilities.lacks("user", "not started as root: functions run as the agent's own user");
        return None;
    }
    let runner = config.runner.unwrap_or_else(|| {
        capabilities.lacks(
            "user",
            "no user was set up for functions: they run as nobody (65534), which other services may share",
        );
        NOBODY
    });
    capabilities.runner_uid = runner.uid;
    capabilities.runner_gid = runner.gid;
    Some(runner)
}

/// Whether a service manager gave the launcher an OOM score that functions must not inherit.
fn oom_score_is_set() -> bool {
    std::fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(|score| score.trim() != "0")
}

/// How long the launcher's end waits for killed processes to be gone.
const END_DEADLINE: Duration = Duration::from_secs(2);
