//! Who lives beside the main process: what a worker leaves behind must not outlive its invocation.

use nix::unistd::Pid;

use crate::usage::number_at;

/// Counts processes, and knows when it need not: the kernel says the last number that it gave out here.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// The last number given out when nobody was there.
    alone_since: Option<String>,
}

impl Beside {
    pub(crate) fn count(&mut self, main: Pid) -> u32 {
        let loadavg = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        // Threads have numbers too, so this is only ever too careful.
        let last = loadavg.rsplit(' ').next().map(str::trim).filter(|last| !last.is_empty());
        if last.is_some() && last == self.alone_since.as_deref() {
            return 0;
        }
        let others = others(main.as_raw());
        self.alone_since = if others == 0 { last.map(str::to_owned) } else { None };
        others
    }
}

/// Processes that are neither the main one, nor the shim, nor the kernel's own, nor dead already.
fn others(main: i32) -> u32 {
    const KERNEL_THREADS: i32 = 2;
    let me = Pid::this().as_raw();
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let mut others = 0;
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == me || pid == main {
            continue;
        }
        // It may have ended meanwhile.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name, in parentheses, may hold anything.
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let mut fields = fields.split(' ');
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse::<i32>().ok()));
        let kernels_own = pid == KERNEL_THREADS && parent == Some(0) || parent == Some(KERNEL_THREADS) && me == 1;
        let kernels_own = kernels_own && std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.is_empty());
        if !kernels_own && !matches!(state, Some("Z" | "X")) {
            others += 1;
        }
    }
    others
}

/// What a process holds in memory, as the kernel says; 0 where it says nothing.
pub(crate) fn resident_bytes(pid: Pid) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    number_at(&statm, 1).saturating_mul(page.and_then(|page| u64::try_from(page).ok()).unwrap_or(4096))
}
