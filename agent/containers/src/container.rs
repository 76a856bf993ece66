//! One container, from its request to its removal.
//!
//! ```text
//!   asked ──► image there, or pulled ──► created ──► started ──► its shim connects ──► runs ──► gone
//!     │             │ End                                            │ End, 10 s          │ End, its shim's end
//!     ▼             ▼                                                ▼                    ▼
//!   Failed        (nothing was made)                              removed              removed: Ended
//! ```
//!
//! Creating and starting are not given up half way: what Docker was asked for and nobody waits for would be left.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use bollard::{
    Docker,
    errors::Error,
    query_parameters::{CreateContainerOptionsBuilder, CreateImageOptionsBuilder, WaitContainerOptionsBuilder},
};
use flux_driver_link::OpenCode;
use flux_launcher::{Held, wire::Network};
use flux_protocol::limits;
use flux_runtime::settings::Pull;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::{
    daemon::{Daemon, chain, remove},
    docker::{self, Folders},
    driver::Driver,
    files::{Listening, Mounted},
    network,
    wire::{Container, Report, Why},
};

/// From a container's start to its shim's connection.
const CONNECTS_WITHIN: Duration = Duration::from_secs(10);

/// What keeps a container from running.
pub(crate) struct Failed {
    pub(crate) why: Why,
    pub(crate) message: String,
}

fn failed(why: Why, message: impl Into<String>) -> Failed {
    Failed { why, message: message.into() }
}

/// An error of Docker's: of its own, or that it is not there.
fn of_docker(what: &str, error: &Error) -> Failed {
    let why = match error {
        Error::DockerResponseServerError { .. } | Error::DockerStreamError { .. } => Why::Container,
        _ => Why::Absent,
    };
    failed(why, format!("{what}: {}", chain(error)))
}

/// Sees it through, and tells the agent what becomes of it.
pub(crate) async fn see_through(driver: Arc<Driver>, asked: Container, end: CancellationToken) {
    let id = asked.id;
    let name = driver.name_of(&asked);
    if let Err(Failed { why, message }) = run(&driver, &asked, &name, &end).await {
        driver.tell(&Report::Failed { id, why, message }, None).await;
    }
    driver.forget(id);
}

async fn run(driver: &Driver, asked: &Container, name: &str, end: &CancellationToken) -> Result<(), Failed> {
    check(driver, asked)?;
    let (docker, guards_networks) = match &*driver.daemon.borrow() {
        Daemon::There(docker, found) => (docker.clone(), found.guards_networks),
        Daemon::Absent(reason) => return Err(failed(Why::Absent, reason.clone())),
    };
    let volumes = tokio::select! {
        biased;
        () = end.cancelled() => {
            driver.tell_ended(asked.id, None).await;
            return Ok(());
        }
        volumes = image(driver, &docker, &asked.image) => volumes?,
    };
    let mut socket = driver
        .files
        .socket(name)
        .map_err(|error| failed(Why::Container, format!("its socket could not be made: {error}")))?;
    // Last, so that it is held open for a short time; and until its container is gone.
    let code = asked.code.as_ref().map(|path| code(driver, path, name)).transpose()?;
    let shim = driver.files.shim();
    let folders = Folders {
        shim: &shim,
        socket: &socket.path,
        code: code.as_ref().map(|code| code.path.as_path()),
        volumes: &volumes,
    };
    let made = docker::container(asked, &driver.config, &driver.files.owner, &folders);
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    let created = docker
        .create_container(Some(options), made)
        .await
        .map_err(|error| of_docker("Docker did not create the container", &error))?;
    let mut guarding =
        Guarding { container: created.id, is_due: guards_networks && asked.network == Network::Host, held: None };
    let ran = start_and_wait(driver, &docker, asked, name, end, &mut socket, &mut guarding).await;
    if let Err(error) = remove(&docker, name).await {
        // Removed when Docker is there again.
        eprintln!("flux containers: {name} is not removed yet: {}", chain(&error));
    }
    if let Some(held) = guarding.held {
        network::release(held).await;
    }
    let exit_code = ran?;
    driver.tell_ended(asked.id, exit_code).await;
    Ok(())
}

/// The guard of one container's network.
struct Guarding {
    /// As Docker calls it.
    container: String,
    is_due: bool,
    held: Option<Held>,
}

async fn start_and_wait(
    driver: &Driver,
    docker: &Docker,
    asked: &Container,
    name: &str,
    end: &CancellationToken,
    socket: &mut Listening,
    guarding: &mut Guarding,
) -> Result<Option<i32>, Failed> {
    docker
        .start_container(name, None)
        .await
        .map_err(|error| of_docker("Docker did not start the container", &error))?;
    let (stream, pid) = tokio::select! {
        biased;
        () = end.cancelled() => return Ok(None),
        connected = tokio::time::timeout(CONNECTS_WITHIN, socket.accept()) => match connected {
            Ok(Ok((stream, pid))) => (OwnedFd::from(stream), pid),
            Ok(Err(error)) => return Err(failed(Why::Container, format!("its socket failed: {error}"))),
            Err(_) => {
                let message = format!("the container did not answer within {} s of its start", CONNECTS_WITHIN.as_secs());
                return Err(failed(Why::Container, message));
            }
        },
        code = wait(driver, docker, asked.id, name) => {
            let said = code.map_or_else(String::new, |code| format!(" with code {code}"));
            return Err(failed(Why::Container, format!("the container ended at once{said}: its image is for another kind of machine, or its limits are too low to start in")));
        }
    };
    if guarding.is_due {
        let held = driver.networks.hold(pid, &guarding.container);
        let open = |error| failed(Why::Container, format!("its network could not be guarded: {error}"));
        guarding.held = Some(held.map_err(open)?);
    }
    driver.tell(&Report::Started { id: asked.id }, Some(stream)).await;
    tokio::select! {
        biased;
        () = end.cancelled() => Ok(None),
        code = wait(driver, docker, asked.id, name) => Ok(code),
    }
}

/// Waits for its end, also over an absence of Docker's: its exit code, where Docker says it.
async fn wait(driver: &Driver, docker: &Docker, id: u64, name: &str) -> Option<i32> {
    let mut daemon = driver.daemon.subscribe();
    let mut unwatched = false;
    let mut docker = docker.clone();
    loop {
        let options = WaitContainerOptionsBuilder::new().condition("not-running").build();
        let ended = docker.wait_container(name, Some(options)).next().await;
        match ended {
            Some(Ok(ended)) => return i32::try_from(ended.status_code).ok(),
            Some(Err(Error::DockerContainerWaitError { code, .. })) => return i32::try_from(code).ok(),
            // It was removed as it ended.
            Some(Err(Error::DockerResponseServerError { .. })) => return None,
            Some(Err(_)) | None => {}
        }
        if !std::mem::replace(&mut unwatched, true) {
            driver.tell(&Report::Unwatched { id }, None).await;
        }
        // The follower notices as well, and says when Docker is there again.
        daemon.mark_unchanged();
        loop {
            if daemon.changed().await.is_err() {
                return None;
            }
            if let Daemon::There(there, _) = &*daemon.borrow_and_update() {
                docker = there.clone();
                break;
            }
        }
    }
}

/// That nothing is asked for that no agent asks for.
fn check(driver: &Driver, asked: &Container) -> Result<(), Failed> {
    let name = flux_protocol::FunctionName::parse(&asked.function);
    name.map_err(|error| failed(Why::Request, error.to_string()))?;
    if asked.image.is_empty() || asked.image.starts_with('-') {
        return Err(failed(Why::Request, "there is no such image"));
    }
    if let Daemon::There(_, found) = &*driver.daemon.borrow()
        && found.offer.refuses.contains(&asked.network)
    {
        return Err(failed(Why::Request, "`isolation_required` is set, and a layer is missing: see `flux agents`"));
    }
    Ok(())
}

fn code(driver: &Driver, asked: &Path, name: &str) -> Result<Mounted, Failed> {
    let open = OpenCode::below(&driver.config.code_dir, asked).map_err(|problem| failed(Why::Request, problem))?;
    let mounted = driver.files.code(name, &open, asked);
    mounted.map_err(|error| failed(Why::Container, format!("its code could not be mounted: {error}")))
}

/// Has the image on this machine, and says which volumes it declares.
async fn image(driver: &Driver, docker: &Docker, image: &str) -> Result<Vec<String>, Failed> {
    if let Some(volumes) = volumes(docker, image).await? {
        return Ok(volumes);
    }
    if driver.config.pull == Pull::Never {
        let message = format!(
            "the image `{image}` is not on this machine, and `agent.container.pull` is `never`: run `docker pull {image}` there, or build it"
        );
        return Err(failed(Why::Image, message));
    }
    let pulling = async {
        // An image is pulled once: who waits finds it there. Another image does not wait.
        let one = driver.pulling.of(image);
        let _one = one.lock().await;
        match volumes(docker, image).await? {
            Some(volumes) => Ok(volumes),
            None => pull(docker, image).await,
        }
    };
    let within = limits::IMAGE_PULL;
    tokio::time::timeout(within, pulling).await.unwrap_or_else(|_| {
        Err(failed(Why::Image, not_pulled(image, &format!("it took longer than {} s", within.as_secs()))))
    })
}

async fn pull(docker: &Docker, image: &str) -> Result<Vec<String>, Failed> {
    eprintln!("flux containers: pulling {image}");
    let (name, tag) = name_and_tag(image);
    let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
    let mut pull = std::pin::pin!(docker.create_image(Some(options), None, None));
    while let Some(progress) = pull.next().await {
        let progress = progress.map_err(|error| match of_docker("", &error) {
            Failed { why: Why::Absent, message } => failed(Why::Absent, message),
            _ => failed(Why::Image, not_pulled(image, &chain(&error))),
        })?;
        if let Some(message) = progress.error_detail.and_then(|detail| detail.message) {
            return Err(failed(Why::Image, not_pulled(image, &message)));
        }
    }
    volumes(docker, image).await?.ok_or_else(|| failed(Why::Image, not_pulled(image, "it is not there afterwards")))
}

/// A lock for each image that is being pulled.
#[derive(Default)]
pub(crate) struct Pulling(parking_lot::Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Pulling {
    fn of(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.0.lock();
        if let Some(lock) = all.get(image).and_then(Weak::upgrade) {
            return lock;
        }
        all.retain(|_, lock| lock.strong_count() > 0);
        let lock = Arc::default();
        all.insert(image.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

fn not_pulled(image: &str, problem: &str) -> String {
    format!(
        "the image `{image}` is not on this machine and could not be pulled: {problem}; check its name and that the registry is reached from there, or run `docker pull {image}` by hand"
    )
}

/// `None` where the image is not there.
async fn volumes(docker: &Docker, image: &str) -> Result<Option<Vec<String>>, Failed> {
    match docker.inspect_image(image).await {
        Ok(image) => Ok(Some(image.config.and_then(|config| config.volumes).unwrap_or_default())),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(of_docker("Docker did not look at the image", &error)),
    }
}

/// As Docker wants to be told: a name without a tag would mean all of them.
fn name_and_tag(image: &str) -> (&str, &str) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, digest);
    }
    let after_slash = image.rfind('/').map_or(0, |at| at + 1);
    match image[after_slash..].rfind(':') {
        Some(at) => (&image[..after_slash + at], &image[after_slash + at + 1..]),
        None => (image, "latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_want_the_same_image_wait_for_each_other_alone() {
        let pulling = Pulling::default();
        let one = pulling.of("a");
        let held = one.try_lock().expect("free");
        assert!(pulling.of("a").try_lock().is_err(), "the same");
        assert!(pulling.of("b").try_lock().is_ok(), "another");
        drop(held);
        assert!(pulling.of("a").try_lock().is_ok());
        drop(one);
        drop(pulling.of("c"));
        assert_eq!(pulling.0.lock().len(), 1, "what is not pulled is forgotten");
    }

    #[test]
    fn an_image_has_a_name_and_a_tag() {
        for (image, name, tag) in [
            ("python", "python", "latest"),
            ("python:3.12", "python", "3.12"),
            ("registry:5000/a/b", "registry:5000/a/b", "latest"),
            ("registry:5000/a/b:1", "registry:5000/a/b", "1"),
            ("a@sha256:0a", "a", "sha256:0a"),
        ] {
            assert_eq!(name_and_tag(image), (name, tag), "{image}");
        }
    }
}
