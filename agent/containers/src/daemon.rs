//! Docker: whether it is there, and what of ours it has.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::SystemInfo,
    query_parameters::{EventsOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder},
};
use flux_launcher::{Missing, wire::Network};
use futures::StreamExt as _;

use crate::{docker::OWNER_LABEL, driver::Driver, network::Guarding, wire::Offer};

/// For one answer of Docker's.
const ANSWERS_WITHIN_S: u64 = 60;
/// Between two looks for a Docker that is not there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Docker as it is now: what it offers, or why it is not there.
#[derive(Debug, Clone)]
pub(crate) enum Daemon {
    There(Docker, Arc<Found>),
    Absent(String),
}

#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) offer: Offer,
    /// Containers with a network are guarded, or do not run.
    pub(crate) guards_networks: bool,
}

/// Follows Docker as it comes and goes, for as long as it is run.
pub(crate) async fn follow(driver: &Driver, running: impl Fn(&str) -> bool) {
    let Driver { config, daemon, files, .. } = driver;
    loop {
        let gone = match arrive(driver, &running).await {
            Ok((docker, found)) => {
                daemon.send_replace(Daemon::There(docker.clone(), Arc::new(found)));
                // What happens to containers is heard elsewhere: this ends when Docker does.
                let of_mine = HashMap::from([("label", vec![format!("{OWNER_LABEL}={}", files.owner)])]);
                let mut events = docker.events(Some(EventsOptionsBuilder::new().filters(&of_mine).build()));
                while let Some(Ok(_)) = events.next().await {}
                "Docker went away".to_owned()
            }
            Err(error) => format!("Docker does not answer at {}: {}", config.socket.display(), chain(&error)),
        };
        daemon.send_if_modified(|said| {
            let new = !matches!(said, Daemon::Absent(reason) if *reason == gone);
            if new {
                *said = Daemon::Absent(gone);
            }
            new
        });
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Connects, and removes what an earlier driver of the same owner left, or this one while Docker was away.
async fn arrive(driver: &Driver, running: impl Fn(&str) -> bool) -> Result<(Docker, Found), Error> {
    let Driver { config, files, networks, .. } = driver;
    let docker = Docker::connect_with_unix(&config.socket.to_string_lossy(), ANSWERS_WITHIN_S, API_DEFAULT_VERSION)?;
    let docker = docker.negotiate_version().await?;
    let info = docker.info().await?;
    let guarding = networks.guarding(&config.socket, &info).await;
    let offer = offer(&info, &guarding, config.isolation_required);
    let removed = sweep(&docker, &files.owner, running).await?;
    networks.sweep();
    if removed > 0 {
        eprintln!("flux containers: {removed} containers of an earlier run were removed");
    }
    Ok((docker, Found { offer, guards_networks: guarding.is_there }))
}

/// Removes what has the owner's label and does not run.
async fn sweep(docker: &Docker, owner: &str, running: impl Fn(&str) -> bool) -> Result<usize, Error> {
    let of_mine = HashMap::from([("label", vec![format!("{OWNER_LABEL}={owner}")])]);
    let options = ListContainersOptionsBuilder::new().all(true).filters(&of_mine).build();
    let mut removed = 0;
    for container in docker.list_containers(Some(options)).await? {
        let mut names = container.names.unwrap_or_default().into_iter();
        let Some(name) = names.next().map(|name| name.trim_start_matches('/').to_owned()).or(container.id) else {
            continue;
        };
        if !running(&name) {
            remove(docker, &name).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whatever it does. One that is gone, or on its way, is no error.
pub(crate) async fn remove(docker: &Docker, name: &str) -> Result<(), Error> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match docker.remove_container(name, Some(options)).await {
        Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
        other => other,
    }
}

fn offer(info: &SystemInfo, guarding: &Guarding, isolation_required: bool) -> Offer {
    let mut missing = Vec::new();
    let mut lacks = |layer: &str, reason: &str| {
        missing.push(Missing { layer: layer.to_owned(), reason: reason.to_owned() });
    };
    for (layer, given) in [
        ("container_memory", info.memory_limit),
        ("container_cpu", info.cpu_cfs_quota),
        ("container_pids", info.pids_limit),
    ] {
        if given == Some(false) {
            lacks(layer, "Docker says that this machine's cgroups cannot limit it");
        }
    }
    if info.security_options.as_ref().is_some_and(|options| !options.iter().any(|option| option.contains("seccomp"))) {
        lacks("container_seccomp", "Docker runs without seccomp");
    }
    let all_networks = !missing.is_empty();
    if let Some(reason) = guarding.lacks.clone() {
        missing.push(Missing { layer: "container_network_guard".to_owned(), reason });
    }
    let refuses = match (isolation_required, all_networks) {
        (true, true) => vec![Network::Host, Network::None],
        (true, false) if guarding.lacks.is_some() => vec![Network::Host],
        _ => Vec::new(),
    };
    Offer { release: info.server_version.clone().unwrap_or_default(), missing, refuses }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &Error) -> String {
    if let Error::DockerResponseServerError { message, .. } = error {
        return message.clone();
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_cannot_limit_is_said_and_refused_where_all_is_required() {
        let whole = SystemInfo {
            memory_limit: Some(true),
            security_options: Some(vec!["name=seccomp,profile=default".to_owned()]),
            ..SystemInfo::default()
        };
        let guarded = Guarding { is_there: true, lacks: None };
        let open = Guarding { is_there: false, lacks: Some("no version 2".to_owned()) };
        let layers = |info: &SystemInfo, guarding: &Guarding| -> Vec<String> {
            offer(info, guarding, false).missing.into_iter().map(|missing| missing.layer).collect()
        };
        assert_eq!(layers(&whole, &guarded), [""; 0]);
        assert_eq!(layers(&whole, &open), ["container_network_guard"]);
        assert_eq!(offer(&whole, &open, false).refuses, []);
        assert_eq!(offer(&whole, &guarded, true).refuses, []);
        assert_eq!(offer(&whole, &open, true).refuses, [Network::Host]);
        let lacking = SystemInfo { memory_limit: Some(false), security_options: Some(Vec::new()), ..whole };
        assert_eq!(layers(&lacking, &open), ["container_memory", "container_seccomp", "container_network_guard"]);
        for guarding in [&guarded, &open] {
            assert_eq!(offer(&lacking, guarding, true).refuses, [Network::Host, Network::None]);
        }
    }
}
