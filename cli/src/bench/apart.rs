//! Gateway, agent and launcher as processes of their own, as on several machines: how much memory each takes.

use std::{path::Path, process::Command};

use super::{
    costs::{Role, Snapshot},
    figures::Figures,
    guarded::{Guarded, free_address, until_listening},
    round::{Bench, MANY},
    subject::{ECHO, KEY, body, deploy, directory, headers, until_quiet, until_ready},
};
use crate::{client::Client, error::CliError, up};

/// Adds resident memory, idle and after a load, in MB.
pub(super) async fn memory(bench: &Bench, figures: &mut Figures) -> Result<(), CliError> {
    let dir = directory()?;
    let (listen, queue) = (free_address()?, free_address()?);
    let queue_url = format!("nats://{queue}");
    let start = |mut command: Command, arguments: &[&str], log: &str| {
        // Memory is measured here, and the server of nobody's identities asks for none.
        command.env("FLUX_DISABLE_MTLS", "true");
        Guarded::start(&bench.yardsticks.program, command.args(arguments), dir.path().join(log))
    };
    let own = |name: &str| dir.path().join(name).display().to_string();

    let nats_server = up::find_nats_server()?;
    let port = queue.rsplit(':').next().unwrap_or_default();
    let stored = own("nats");
    let nats = ["--addr", "127.0.0.1", "--port", port, "--jetstream", "--store_dir", &stored];
    let mut nats = start(Command::new(nats_server), &nats, "nats.log")?;
    until_listening(&mut nats, &queue).await?;
    let (data, work) = (own("gateway"), own("agent"));
    let gateway = ["--listen", &listen, "--api-key", KEY, "--queue-url", &queue_url, "--data-dir", &data];
    let mut gateway = start(Command::new(beside("flux-gateway")?), &gateway, "gateway.log")?;
    let agent = ["--queue-url", &queue_url, "--work-dir", &work];
    let mut agent = start(Command::new(beside("flux-agent")?), &agent, "agent.log")?;

    let client = Client::try_new(Some(&format!("http://{listen}")), Some(KEY), None)?;
    until_ready(&client, &mut [&mut gateway, &mut agent]).await?;
    deploy(&client, &bench.functions).await?;
    let look = || [Snapshot::of(gateway.pid()), Snapshot::of(agent.pid())];
    until_quiet(|| look().iter().map(Snapshot::cpu).sum()).await;
    add(figures, &look(), ["gateway_mb", "agent_mb", "launcher_mb"]);
    let url = client.url(&["execute", ECHO], &[]).to_string();
    bench.yardsticks.load(&bench.load(&url, MANY).headers(&headers()).body(&body()))?;
    add(figures, &look(), ["gateway_after_mb", "agent_after_mb", "launcher_after_mb"]);
    Ok(())
}

fn add(figures: &mut Figures, looks: &[Snapshot], names: [&'static str; 3]) {
    for (name, role) in names.into_iter().zip([Role::Gateway, Role::Agent, Role::Launcher]) {
        if let Some(resident) = looks.iter().find_map(|look| look.resident_mb().get(&role).copied()) {
            figures.add(name, resident);
        }
    }
}

/// A program that was built with this one.
fn beside(name: &str) -> Result<std::path::PathBuf, CliError> {
    let program = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    program.filter(|program| Path::is_file(program)).ok_or_else(|| {
        CliError::problem(
            format!("there is no {name} beside this program"),
            "`make bench` builds everything and runs this",
        )
    })
}
