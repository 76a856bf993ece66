//! `flux deploy`: registers a function's configuration and deploys its code; `--watch` does so on every change.

use std::{path::PathBuf, time::Duration};

use flux_protocol::FunctionName;
use notify::{RecursiveMode, Watcher as _};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::Value;

use super::{
    Context, function_name,
    shown::{count, digest},
};
use crate::{
    error::CliError,
    model::{Agent, Budget, Published, rows},
    packages, progress,
    project::{self, Project},
};

/// Changes closer together than this are one: editors write a file in several steps.
const SETTLE: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory with a flux.yaml, or a zip
    #[arg(value_name = "DIR|ZIP")]
    path: PathBuf,
    /// Deploy under this name instead of the one in flux.yaml
    #[arg(long, value_parser = function_name)]
    name: Option<FunctionName>,
    /// Stay, and deploy again whenever a file changes
    #[arg(long, short)]
    watch: bool,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let first = deploy(&args, cx).await;
    if !args.watch {
        return first;
    }
    report(cx, first);
    let (changed, mut changes) = tokio::sync::mpsc::channel(1);
    let watched = project::watched(&args.path);
    let cannot = |error: notify::Error| {
        CliError::problem(
            format!("{} cannot be watched: {error}", watched.display()),
            "deploy by hand, or raise fs.inotify.max_user_watches",
        )
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is what deploying itself does. A full channel has the change already.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })
    .map_err(cannot)?;
    watcher.watch(&watched, RecursiveMode::Recursive).map_err(cannot)?;
    cx.out.note(format!("watching {}; Ctrl-C ends", watched.display()));
    while changes.recv().await.is_some() {
        while tokio::time::timeout(SETTLE, changes.recv()).await.is_ok_and(|change| change.is_some()) {}
        report(cx, deploy(&args, cx).await);
    }
    Ok(())
}

/// While watching a failure is said and the next change is another try.
fn report(cx: &Context, result: Result<(), CliError>) {
    if let Err(error) = result {
        cx.out.error(&error);
    }
}

async fn deploy(args: &Args, cx: &Context) -> Result<(), CliError> {
    let packages = packages::install(&args.path, args.name.as_ref(), cx).await?;
    let beside = packages.as_ref().map(|packages| packages.path.as_path());
    let Project { name, configuration, archive } = project::read(&args.path, args.name.as_ref(), beside)?;
    let before = current_version(&name, cx).await?;
    if let Some(configuration) = configuration {
        let request = cx.client.request(Method::PUT, cx.client.url(&["functions"], &[]));
        cx.client.json(request.header(CONTENT_TYPE, "application/yaml").body(configuration)).await?;
    }
    let (body, bar) = progress::upload(cx.out, "uploading", archive);
    let request = cx.client.request(Method::PUT, cx.client.url(&["deploy", name.as_str()], &[]));
    let sent = cx.client.json(request.header(CONTENT_TYPE, "application/zip").body(body)).await;
    bar.finish_and_clear();
    let answer = sent?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let published: Published = cx.client.view(&answer)?;
    let version = published.version.unwrap_or_default();
    let code = digest(published.digest.as_deref());
    let unchanged =
        before == Some((version, published.digest.clone())) || (published.changed == Some(false) && before.is_none());
    if unchanged {
        cx.out.line(format!("{name} is unchanged: version {version} ({code})"));
    } else {
        cx.out
            .line(format!("{name} version {version} deployed ({code}), on {}", count(published.total_agents, "agent")));
    }
    for secret in &published.missing_secrets {
        cx.out.note(format!("its secret {secret} is not set, and it fails until it is: flux secrets set {secret}"));
    }
    if published.total_agents == 0 {
        cx.out.note("no agent is online: invocations wait or are refused until one is");
    } else if let Some(warning) = too_large_for_all(&name, cx).await? {
        cx.out.note(warning);
    }
    if let Some(warning) = published.warning {
        cx.out.note(warning);
    }
    Ok(())
}

/// That no agent could run it even if it did nothing else.
async fn too_large_for_all(name: &FunctionName, cx: &Context) -> Result<Option<String>, CliError> {
    let function = cx.client.get(&["functions", name.as_str()], &[]).await?;
    let number = |pointer: &str| function.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let (cpu, memory) = (number("/resources/cpu"), number("/resources/memory"));
    let pool = function.get("pool").and_then(Value::as_str).unwrap_or("default");
    let answer = cx.client.get(&["agents"], &[]).await?;
    let agents = rows(&answer, "agents").iter().filter_map(|agent| cx.client.view::<Agent>(agent).ok());
    let budgets: Vec<_> = agents
        .filter(|agent| agent.status != "offline" && agent.pool.as_deref().unwrap_or("default") == pool)
        .filter_map(|agent| agent.total)
        .collect();
    let fits = budgets.iter().any(|of| u64::from(of.cpu_millicores) >= cpu && u64::from(of.memory_mb) >= memory);
    let largest = |of: fn(&Budget) -> u32| budgets.iter().map(of).max().unwrap_or(0);
    Ok((!fits && !budgets.is_empty()).then(|| {
        let (most_cpu, most_memory) = (largest(|of| of.cpu_millicores), largest(|of| of.memory_mb));
        format!(
            "warning: it asks for {cpu} millicores and {memory} MB, and no agent has that in all (at most {most_cpu} and {most_memory}): \
             nobody can run it; lower `resources` or add a larger machine"
        )
    }))
}

/// Version and digest before the deployment; `None` for a new function.
async fn current_version(name: &FunctionName, cx: &Context) -> Result<Option<(u32, Option<String>)>, CliError> {
    match cx.client.get(&["functions", name.as_str()], &[]).await {
        Ok(answer) => {
            let version = answer.get("version").and_then(Value::as_u64).and_then(|version| u32::try_from(version).ok());
            let digest = answer.get("digest").and_then(Value::as_str).map(str::to_owned);
            Ok(version.map(|version| (version, digest)))
        }
        Err(CliError::Refused(refused)) if refused.status == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
