//! What a container is. Nothing of this comes from an agent but names, numbers and a folder of code that was checked.

use std::{collections::HashMap, path::Path};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, ResourcesUlimits,
};
use flux_launcher::{Runner, config::NOBODY, wire::Network};

use crate::{config::DriverConfig, files::SOCKET, wire::Container};

/// Whose container it is: removed by the next driver of that owner.
pub(crate) const OWNER_LABEL: &str = "flux.owner";
/// Where a function's code is, in every container.
pub const CODE: &str = "/function";
const SHIM: &str = "/.flux/shim";
const SOCKETS: &str = "/.flux/run";

/// Folders on this machine that are mounted.
pub(crate) struct Folders<'a> {
    pub(crate) shim: &'a Path,
    pub(crate) socket: &'a Path,
    pub(crate) code: Option<&'a Path>,
    /// Of the image: each would be a volume on disk, writable without a limit.
    pub(crate) volumes: &'a [String],
}

pub(crate) fn container(
    asked: &Container,
    config: &DriverConfig,
    owner: &str,
    folders: &Folders<'_>,
) -> ContainerCreateBody {
    let Runner { uid, gid } = config.user.unwrap_or(NOBODY);
    let mut mounts = vec![read_only(folders.shim, SHIM), read_only(folders.socket, SOCKETS)];
    mounts.extend(folders.code.map(|code| read_only(code, CODE)));
    // First come the image's own, so that none of them covers what is ours.
    let volumes = folders.volumes.iter().filter(|volume| volume.as_str() != "/tmp");
    let mut all: Vec<Mount> = volumes.map(|volume| in_memory(volume, config.tmp_bytes)).collect();
    all.push(in_memory("/tmp", config.tmp_bytes));
    all.append(&mut mounts);
    let labels = [
        (OWNER_LABEL, owner.to_owned()),
        ("flux.function", asked.function.clone()),
        ("flux.version", asked.version.to_string()),
    ];
    ContainerCreateBody {
        image: Some(asked.image.clone()),
        entrypoint: Some(vec![SHIM.to_owned()]),
        cmd: Some(vec!["connect".to_owned(), format!("{SOCKETS}/{SOCKET}")]),
        user: Some(format!("{uid}:{gid}")),
        hostname: Some("function".to_owned()),
        // What is printed by the image's own start would be nobody's; there is none.
        attach_stdout: Some(false),
        attach_stderr: Some(false),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        labels: Some(labels.into_iter().map(|(label, value)| (label.to_owned(), value)).collect()),
        host_config: Some(host_config(asked, all)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(asked: &Container, mounts: Vec<Mount>) -> HostConfig {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let limited = |limit: u64| (limit > 0).then(|| number(limit));
    let most =
        |name: &str, limit: i64| ResourcesUlimits { name: Some(name.to_owned()), soft: Some(limit), hard: Some(limit) };
    // A dump of a function's memory would be written by the machine, wherever that keeps them.
    let mut ulimits = vec![most("core", 0)];
    ulimits.extend(limited(asked.open_files).map(|limit| most("nofile", limit)));
    HostConfig {
        mounts: Some(mounts),
        readonly_rootfs: Some(true),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        memory: limited(asked.memory_bytes),
        // No swap: the same in both is how Docker says so.
        memory_swap: limited(asked.memory_bytes),
        nano_cpus: limited(u64::from(asked.cpu_millicores) * 1_000_000),
        pids_limit: limited(asked.pids_max.into()),
        ulimits: Some(ulimits),
        network_mode: Some(match asked.network {
            Network::None => "none".to_owned(),
            // Docker's default, a bridge: never the machine's own namespace.
            Network::Host => "bridge".to_owned(),
        }),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: Some(HashMap::new()) }),
        auto_remove: Some(true),
        ipc_mode: Some("private".to_owned()),
        init: Some(false),
        ..HostConfig::default()
    }
}

fn read_only(source: &Path, target: &str) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::PRIVATE),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

fn in_memory(target: &str, bytes: u64) -> Mount {
    Mount {
        typ: Some(MountType::TMPFS),
        target: Some(target.to_owned()),
        tmpfs_options: Some(MountTmpfsOptions {
            size_bytes: Some(i64::try_from(bytes).unwrap_or(i64::MAX)),
            mode: Some(0o1777),
            ..MountTmpfsOptions::default()
        }),
        ..Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What holds a function in: a change here is a decision.
    #[test]
    fn a_container_has_nothing_that_it_need_not_have() {
        let config = DriverConfig {
            work_dir: "/w".into(),
            socket: "/s".into(),
            pull: flux_runtime::settings::Pull::Never,
            code_dir: "/c".into(),
            user: Some(Runner { uid: 7, gid: 8 }),
            tmp_bytes: 64 << 20,
            servers: Vec::new(),
            unknown_servers: Vec::new(),
            isolation_required: false,
        };
        let asked = Container {
            id: 1,
            function: "f".to_owned(),
            version: 3,
            image: "python:3.12".to_owned(),
            code: None,
            memory_bytes: 64 << 20,
            cpu_millicores: 250,
            pids_max: 100,
            open_files: 4096,
            network: Network::None,
        };
        let volumes = ["/data".to_owned(), "/tmp".to_owned()];
        let folders = Folders {
            shim: Path::new("/w/shim"),
            socket: Path::new("/w/run/1"),
            code: Some(Path::new("/c/a")),
            volumes: &volumes,
        };
        let made = serde_json::to_value(container(&asked, &config, "me", &folders)).expect("JSON");
        let golden = serde_json::json!({
            "Hostname": "function", "User": "7:8", "AttachStdout": false, "AttachStderr": false,
            "Cmd": ["connect", "/.flux/run/agent"], "Entrypoint": ["/.flux/shim"], "Image": "python:3.12",
            "Healthcheck": { "Test": ["NONE"] },
            "Labels": { "flux.owner": "me", "flux.function": "f", "flux.version": "3" },
            "HostConfig": {
                "Memory": 67_108_864, "MemorySwap": 67_108_864, "NanoCpus": 250_000_000, "PidsLimit": 100,
                "Ulimits": [{ "Name": "core", "Soft": 0, "Hard": 0 }, { "Name": "nofile", "Soft": 4096, "Hard": 4096 }],
                "Init": false, "LogConfig": { "Type": "none", "Config": {} }, "NetworkMode": "none", "AutoRemove": true,
                "CapDrop": ["ALL"], "IpcMode": "private", "ReadonlyRootfs": true, "SecurityOpt": ["no-new-privileges"],
                "Mounts": [
                    { "Target": "/data", "Type": "tmpfs", "TmpfsOptions": { "SizeBytes": 67_108_864, "Mode": 1023 } },
                    { "Target": "/tmp", "Type": "tmpfs", "TmpfsOptions": { "SizeBytes": 67_108_864, "Mode": 1023 } },
                    { "Target": "/.flux/shim", "Source": "/w/shim", "Type": "bind", "ReadOnly": true, "BindOptions": { "Propagation": "private" } },
                    { "Target": "/.flux/run", "Source": "/w/run/1", "Type": "bind", "ReadOnly": true, "BindOptions": { "Propagation": "private" } },
                    { "Target": "/function", "Source": "/c/a", "Type": "bind", "ReadOnly": true, "BindOptions": { "Propagation": "private" } },
                ],
            },
        });
        assert_eq!(made, golden, "{made:#}");
        let bridged = container(&Container { network: Network::Host, ..asked }, &config, "me", &folders);
        assert_eq!(bridged.host_config.and_then(|host| host.network_mode).as_deref(), Some("bridge"));
    }
}
