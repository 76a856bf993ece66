//! The layers that are found by trying them at the launcher's start, each with what it means that it is missing.

use std::os::fd::OwnedFd;

use super::allowed_files::AllowedFiles;
use super::{SPARE_THREADS, SWITCHED_OFF};
use crate::capabilities::{self, Capabilities};
use crate::cgroup::{Cgroups, SharedCgroup};
use crate::config::{LauncherConfig, Layer, Runner};
use crate::guard;
use crate::seccomp::Filter;
use crate::slot::Runners;
use crate::sys::{descriptor, landlock};

/// What keeps abstract sockets and signals apart, if this kernel has it.
pub(super) fn usable_scopes(config: &LauncherConfig, capabilities: &mut Capabilities) -> Option<OwnedFd> {
    const LAYER: &str = capabilities::LANDLOCK_SCOPES;
    const OPEN: &str = "functions with the machine's network reach the abstract sockets of it and of each other";
    /// Linux 6.12.
    const WITH_SCOPES: u32 = 6;
    if config.without.contains(&Layer::Landlock) {
        capabilities.lacks(LAYER, SWITCHED_OFF);
        return None;
    }
    let version = landlock::version();
    if let Ok(version) = &version
        && *version < WITH_SCOPES
    {
        let reason = format!("this kernel's Landlock is of version {version}, and scopes need 6 (Linux 6.12): {OPEN}");
        capabilities.lacks(LAYER, reason);
        return None;
    }
    match version.and_then(|version| landlock::ruleset(version, false)) {
        Ok(ruleset) => {
            capabilities.landlock_scopes = true;
            Some(descriptor::keep(ruleset))
        }
        Err(error) => {
            capabilities.lacks(LAYER, format!("this kernel has no Landlock ({error}): {OPEN}"));
            None
        }
    }
}

/// Where there are no slots: what of the machine's files functions may open.
pub(super) fn usable_files(config: &LauncherConfig, capabilities: &mut Capabilities) -> Option<AllowedFiles> {
    const LAYER: &str = "landlock files";
    if config.without.contains(&Layer::Landlock) {
        capabilities.lacks(LAYER, SWITCHED_OFF);
        return None;
    }
    match AllowedFiles::survey(&config.extra_paths) {
        Ok(files) => {
            capabilities.landlock_files = true;
            Some(files)
        }
        Err(error) => {
            capabilities
                .lacks(LAYER, format!("this kernel has no Landlock ({error}): functions open what their user can"));
            None
        }
    }
}

/// Keeps functions from the cloud's metadata and from Flux's own servers, if this machine can.
pub(super) fn guard_network(
    config: &LauncherConfig,
    cgroups: Option<&Cgroups>,
    first_uid: Option<u32>,
    capabilities: &mut Capabilities,
) -> Option<SharedCgroup> {
    const LAYER: &str = capabilities::NETWORK_GUARD;
    const OPEN: &str = "functions with the machine's network reach the cloud's metadata and Flux's own servers";
    if config.without.contains(&Layer::NetworkGuard) {
        capabilities.lacks(LAYER, SWITCHED_OFF);
        return None;
    }
    if !capabilities.root {
        capabilities.lacks(LAYER, format!("not started as root: {OPEN}"));
        return None;
    }
    let shared = match SharedCgroup::enter(cgroups) {
        Ok(shared) => shared,
        Err(error) => {
            capabilities.lacks(LAYER, format!("{error}: {OPEN}"));
            return None;
        }
    };
    match guard::attach(&shared, &config.servers, &config.listeners, first_uid) {
        Ok(()) if config.unknown_servers.is_empty() => capabilities.network_guard = true,
        // The rest is guarded all the same.
        Ok(()) => {
            let which = config.unknown_servers.join(", ");
            let reason = format!(
                "no address was found for {which} when Flux started: functions with the machine's network reach that server"
            );
            capabilities.lacks(LAYER, reason);
        }
        Err(error) => capabilities.lacks(LAYER, format!("{error}: {OPEN}")),
    }
    Some(shared)
}

/// The filter of system calls, if it really refuses some here.
pub(super) fn usable_filter(config: &LauncherConfig, capabilities: &mut Capabilities) -> Option<Filter> {
    if config.without.contains(&Layer::Seccomp) {
        capabilities.lacks("seccomp", SWITCHED_OFF);
        return None;
    }
    match Filter::try_new().and_then(|filter| filter.try_out().map(|()| filter)) {
        Ok(filter) => {
            capabilities.seccomp = true;
            Some(filter)
        }
        Err(error) => {
            capabilities.lacks("seccomp", error.to_string());
            None
        }
    }
}

/// A number for each slot, where a range is set aside; with it, how many slots there can be.
pub(super) fn choose_uids(config: &LauncherConfig, runner: Runner, capabilities: &mut Capabilities) -> (Runners, u32) {
    const LAYER: &str = capabilities::OWN_UID;
    let fewest = super::at_once(config).saturating_add(SPARE_THREADS);
    let ceiling = config.max_slots.max(fewest);
    let shared = "functions share one user, whose inotify instances and pipe pages one can use up for all";
    let why = match config.runner_uids.and_then(|range| Some((range, range.numbers()?))) {
        None if config.runner_uids.is_some() => "the range of numbers goes past the last one".to_owned(),
        None => "no range of numbers is set aside in /etc/subuid for the functions' user".to_owned(),
        Some((range, _)) if range.count < fewest => {
            format!("{} numbers are set aside, and {fewest} are needed", range.count)
        }
        Some((range, _)) if !range.is_mapped() => {
            "the numbers set aside are not known in this container's user namespace".to_owned()
        }
        Some((range, uids)) => {
            capabilities.own_uids = true;
            let ceiling = ceiling.min(range.count);
            return (Runners::Each { uids: uids.start..uids.start + ceiling, gid: runner.gid }, ceiling);
        }
    };
    capabilities.lacks(LAYER, format!("{why}: {shared}"));
    (Runners::One(runner), ceiling)
}
