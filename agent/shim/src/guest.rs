//! The first program of a microVM: from the kernel's initramfs to a guest that listens.
//!
//! ```text
//!   /init, /modules/*.ko (initramfs)   loads them in the order of their names
//!   flux.root=/dev/vda                 the root file system, read-only      → /
//!   flux.code=/dev/vdb                 the function's code, read-only       → /code
//!   memory                             /tmp, /run, /dev/shm
//!   flux.lonely_s=60                   how long nobody may talk to it
//! ```
//!
//! Then it is the shim, at a port of the vsock. A guest that nobody talks to any more restarts, which is its end: the machine
//! that it runs on may have forgotten it.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        reboot::{RebootMode, reboot},
        socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket},
    },
    unistd::{Pid, chdir, chroot},
};

use crate::{Endpoint, Place, Shim, Streams};

/// Where a guest's agent listens.
pub const PORT: u32 = 7227;
/// In the root file system, where the code is.
pub const CODE: &str = "/code";
/// Whom functions run as in a guest.
pub const USER: u32 = 1000;
/// A guest without a connection restarts after this long, unless the kernel's command line says otherwise: a snapshot is taken
/// within it, whatever its size.
const LONELY: Duration = Duration::from_secs(60);
/// For a disk that its driver was loaded for.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);
const MODULES: &str = "/modules";
const NEW_ROOT: &str = "/root";

/// Whether this is the first program of a machine that a kernel started for [`run`].
pub fn is_here() -> bool {
    Pid::this().as_raw() == 1 && Path::new(MODULES).is_dir() && !Path::new(CODE).exists()
}

/// Does not return: the machine restarts.
pub fn run() -> ! {
    if let Err(error) = set_up_and_serve() {
        eprintln!("flux-shim: the guest cannot be set up: {error}");
    }
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    // The kernel ends the machine when its first program ends.
    eprintln!("flux-shim: the machine does not restart: {error}");
    std::process::exit(1)
}

fn set_up_and_serve() -> io::Result<()> {
    // Functions have another user, and get no rights by the image's setuid programs.
    nix::sys::prctl::set_no_new_privs()?;
    attach("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "")?;
    // Before anything is opened.
    let mut shim = Shim::new(Place::Guest)?;
    attach("proc", "/proc", "proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "")?;
    load_modules()?;
    let line = fs::read_to_string("/proc/cmdline")?;
    let given = |name: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let disk =
        |name: &str| given(name).ok_or_else(|| io::Error::other(format!("the kernel's command line has no {name}")));
    let lonely = given("flux.lonely_s").and_then(|seconds| seconds.parse().ok()).map_or(LONELY, Duration::from_secs);
    enter_root(disk("flux.root")?, disk("flux.code")?)?;
    if let Err(error) = bring_loopback_up() {
        eprintln!("flux-shim: no loopback: {error}");
    }
    let mut streams = Endpoint::Vsock(PORT).open()?;
    while next_within(&streams, lonely)? {
        let Some(stream) = streams.next_stream()? else { break };
        shim.serve(stream);
    }
    Ok(())
}

fn attach(what: &str, at: &str, kind: &str, flags: MsFlags, options: &str) -> io::Result<()> {
    fs::create_dir_all(at)?;
    mount(Some(what), at, Some(kind), flags, Some(options))
        .map_err(|error| io::Error::other(format!("{what} at {at}: {error}")))
}

fn load_modules() -> io::Result<()> {
    let mut modules: Vec<_> = fs::read_dir(MODULES)?.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for path in modules {
        let loaded = finit_module(fs::File::open(&path)?, c"", ModuleInitFlags::empty());
        // What this machine has no device for, or the kernel has inside already.
        if let Err(error) = loaded
            && !matches!(error, nix::errno::Errno::ENODEV | nix::errno::Errno::EEXIST)
        {
            return Err(io::Error::other(format!("{}: {error}", path.display())));
        }
    }
    Ok(())
}

fn enter_root(root: &str, code: &str) -> io::Result<()> {
    let deadline = Instant::now() + APPEARS_WITHIN;
    for disk in [root, code] {
        while !Path::new(disk).exists() {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("there is no {disk}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let below = |path: &str| format!("{NEW_ROOT}{path}");
    let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    attach(root, NEW_ROOT, "ext4", MsFlags::MS_RDONLY, "")?;
    attach(code, &below(CODE), "ext4", MsFlags::MS_RDONLY | closed, "")?;
    attach("tmpfs", &below("/tmp"), "tmpfs", closed, "mode=1777,size=50%")?;
    attach("tmpfs", &below("/run"), "tmpfs", closed, "mode=755,size=1m")?;
    attach("sysfs", &below("/sys"), "sysfs", closed | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY, "")?;
    attach("tmpfs", "/dev/shm", "tmpfs", closed, "mode=1777,size=50%")?;
    for moved in ["/dev", "/proc"] {
        let none = None::<&str>;
        mount(Some(moved), below(moved).as_str(), none, MsFlags::MS_MOVE, none)?;
    }
    // The initramfs cannot be pivoted away from; what lies above it hides it.
    chdir(NEW_ROOT)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    chdir("/")?;
    Ok(())
}

/// `RTM_NEWLINK` for the first interface, which is `lo`: up.
fn bring_loopback_up() -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    const LOOPBACK: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend_from_slice(&32_u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[0; 4]);
    for word in [LOOPBACK, IFF_UP, IFF_UP] {
        message.extend_from_slice(&word.to_ne_bytes());
    }
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(std::os::fd::AsRawFd::as_raw_fd(&netlink), &message, MsgFlags::empty())?;
    Ok(())
}

/// Whether somebody connects within the time.
fn next_within(streams: &Streams, within: Duration) -> io::Result<bool> {
    let Streams::Vsock(listener) = streams else { return Ok(true) };
    let timeout = PollTimeout::try_from(within.as_millis()).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
