//! `flux agent`: machines that run functions: let in, registered, cordoned, drained, removed.

use std::{path::PathBuf, time::Duration};

use flux_pki::{Certs, JoinToken, PkiError};
use flux_protocol::AgentId;
use nix::unistd::{Uid, User};
use serde_json::{Value, json};

use super::{Context, agents, duration, pki::as_owner};
use crate::{client::Client, error::CliError, output::Output};

const POLL: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Let this machine in, with a token from `flux agent token create`
    Join {
        token: String,
        /// The agent's id [default: one is made]
        #[arg(long)]
        id: Option<String>,
        /// Where its identity is kept [default: /etc/flux/certs]
        #[arg(long, value_name = "DIR")]
        certs_dir: Option<PathBuf>,
    },
    /// Tokens with which machines join
    Token {
        #[command(subcommand)]
        what: TokenWhat,
    },
    /// Register a machine by the address of its agent's probe port
    Register { address: String },
    /// Have an agent take no more work; what it runs goes on
    Cordon { id: String },
    /// Have an agent take work again
    Uncordon { id: String },
    /// Cordon an agent and wait until it runs nothing
    Drain { id: String },
    /// Shut an agent out, and forget that it was registered
    Remove { id: String },
}

#[derive(Debug, clap::Subcommand)]
enum TokenWhat {
    /// Make one; it lets one machine in
    Create {
        /// Pools whose functions it runs
        #[arg(long = "pool", value_name = "POOL")]
        pools: Vec<String>,
        /// How long it can be used, a week at most
        #[arg(long, value_parser = duration, default_value = "1h")]
        ttl: Duration,
        /// Where that machine reaches the gateway [default: as this command does]
        #[arg(long, value_name = "URL")]
        gateway: Option<String>,
    },
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    match args.what {
        What::Join { token, id, certs_dir } => join(&token, id, certs_dir, cx).await,
        What::Token { what: TokenWhat::Create { pools, ttl, gateway } } => {
            let url = gateway.unwrap_or_else(|| cx.client.base().trim_end_matches('/').to_owned());
            let body = json!({ "url": url, "pools": pools, "seconds": ttl.as_secs() });
            let answer = cx.client.post(&["agents", "tokens"], &[], &body).await?;
            let token = answer["token"].as_str().unwrap_or_default();
            said(cx.out, &answer, || format!("On the machine that joins:\n\n  flux agent join {token}"));
            Ok(())
        }
        What::Register { address } => {
            let answer = cx.client.post(&["agents", "register"], &[], &json!({ "address": address })).await?;
            said(cx.out, &answer, || {
                format!("{} is registered at {address}", answer["id"].as_str().unwrap_or_default())
            });
            Ok(())
        }
        What::Cordon { id } => ask(cx, &id, "cordon").await,
        What::Uncordon { id } => ask(cx, &id, "uncordon").await,
        What::Drain { id } => drain(cx, &id).await,
        What::Remove { id } => {
            let answer = cx.client.delete(&["agents", &id], &[]).await?;
            said(cx.out, &answer, || format!("{id} is shut out"));
            Ok(())
        }
    }
}

async fn ask(cx: &Context, id: &str, what: &str) -> Result<(), CliError> {
    let answer = cx.client.post(&["agents", id, what], &[], &json!({})).await?;
    said(cx.out, &answer, || format!("{id} is {what}ed"));
    Ok(())
}

async fn drain(cx: &Context, id: &str) -> Result<(), CliError> {
    cx.client.post(&["agents", id, "cordon"], &[], &json!({})).await?;
    loop {
        let answer = cx.client.get(&["agents"], &[]).await?;
        let agent = agents::parse(cx, &answer)?.into_iter().find(|agent| agent.id == id);
        let runs = agent.as_ref().is_some_and(|agent| agent.active_count > 0 || agent.status != "draining");
        if !runs {
            said(cx.out, &json!({ "status": "drained", "id": id }), || format!("{id} runs nothing"));
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn join(token: &str, id: Option<String>, certs_dir: Option<PathBuf>, cx: &Context) -> Result<(), CliError> {
    let token = JoinToken::parse(token).map_err(cannot)?;
    let id = match id {
        Some(id) => AgentId::parse(&id).map_err(|error| CliError::usage(error.to_string()))?,
        None => AgentId::random(),
    };
    let certs = Certs::at(certs_dir.unwrap_or_else(|| flux_runtime::Settings::default().certs_dir()));
    // A directory that the platform was given before may have its links where root writes.
    as_owner(certs.dir())?;
    let (key, request) = flux_pki::request().map_err(cannot)?;
    let proof = token.proof(&id, &request).map_err(cannot)?;
    let gateway = Client::try_new(Some(&token.url), None, cx.client.ca().map(std::path::Path::to_owned))?;
    let body = json!({ "token": token.id, "agent_id": id, "request": request, "proof": proof });
    let answer = gateway.post(&["agents", "join"], &[], &body).await?;
    let text = |field: &str| answer[field].as_str().unwrap_or_default();
    certs.keep_joined(&id, &token.ca, text("ca"), text("certificate"), &key).map_err(cannot)?;
    let config = certs.dir().join("agents").join(id.as_str()).join("agent.yaml");
    let queue = reachable(text("queue_url"), &token.url);
    let lines = format!(
        "# Written by `flux agent join`.\ncerts_dir: {:?}\nqueue: {{ url: {queue:?} }}\nagent: {{ id: {id}, probe: \"0.0.0.0:50052\" }}\n",
        certs.dir().display().to_string()
    );
    std::fs::write(&config, lines)
        .map_err(|source| CliError::local(format!("{} cannot be written", config.display()), source))?;
    give_to_platform(certs.dir(), &id)?;
    said(cx.out, &json!({ "id": id, "config": config, "certs_dir": certs.dir() }), || {
        format!("{id} is let in. Start it with:\n\n  flux-agent --config {}", config.display())
    });
    Ok(())
}

/// A gateway beside its queue names it by its own loopback; from elsewhere that is the gateway's host.
fn reachable(queue: &str, gateway: &str) -> String {
    let host = reqwest::Url::parse(gateway).ok().and_then(|url| url.host_str().map(str::to_owned));
    let Some(host) = host else { return queue.to_owned() };
    ["127.0.0.1", "localhost", "[::1]"].iter().fold(queue.to_owned(), |queue, own| queue.replace(own, &host))
}

/// As root the agent drops to the user `flux`, who has to read its key.
fn give_to_platform(dir: &std::path::Path, id: &AgentId) -> Result<(), CliError> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let Ok(Some(user)) = User::from_name("flux") else { return Ok(()) };
    let own = dir.join("agents").join(id.as_str());
    let mut paths = vec![dir.to_owned(), dir.join("lock"), dir.join("ca"), dir.join("ca/ca.pem"), dir.join("agents")];
    paths.extend(["agent.pem", "agent-key.pem", "agent.yaml"].map(|name| own.join(name)));
    paths.push(own);
    let given = paths
        .iter()
        .try_for_each(|path| std::os::unix::fs::lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())));
    given.map_err(|source| CliError::local(format!("{} cannot be given to the user flux", dir.display()), source))
}

fn cannot(error: PkiError) -> CliError {
    CliError::Problem { what: error.to_string(), remedy: None }
}

fn said(out: Output, json: &Value, text: impl FnOnce() -> String) {
    if out.json { out.json(json) } else { out.line(text()) }
}
