//! `flux agents`: who is there to run functions.

use serde_json::Value;

use super::{
    Context,
    shown::{NOTHING, age, mb, span},
};
use crate::{
    error::CliError,
    model::{Agent, rows},
    table::{Cell, Table},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: Args, cx: &Context) -> Result<(), CliError> {
    let answer = cx.client.get(&["agents"], &[]).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let agents = parse(cx, &answer)?;
    if agents.is_empty() {
        cx.out.note("no agent has said anything: start one with `flux up` or `flux-agent`");
        return Ok(());
    }
    table(&agents).print(cx.out);
    Ok(())
}

pub(crate) fn parse(cx: &Context, answer: &Value) -> Result<Vec<Agent>, CliError> {
    rows(answer, "agents").iter().map(|row| cx.client.view(row)).collect()
}

pub(crate) fn table(agents: &[Agent]) -> Table {
    let mut table = Table::new(&[
        "AGENT",
        "STATUS",
        "ADDRESS",
        ">RUNNING",
        ">FREE",
        ">CPU",
        ">MEMORY",
        ">NODE UP",
        ">HEARD",
        "RUNTIMES",
        "NOT GIVEN",
    ]);
    for agent in agents {
        let node = agent.node_status.as_ref();
        let of_node = |show: fn(&crate::model::Node) -> String| node.map_or_else(|| NOTHING.to_owned(), show);
        let free = agent.free.map_or_else(
            || NOTHING.to_owned(),
            |free| format!("{} tasks, {}m, {}", free.tasks, free.cpu_millicores, mb(free.memory_mb.into())),
        );
        let running = match agent.total {
            Some(total) => format!("{}/{}", agent.active_count, total.tasks),
            None => agent.active_count.to_string(),
        };
        let missing: Vec<&str> =
            agent.capabilities.iter().flat_map(|all| &all.missing).map(|missing| missing.layer.as_str()).collect();
        let runtimes: Vec<String> = agent
            .capabilities
            .iter()
            .flat_map(|all| &all.runtimes)
            .map(|runtime| format!("{} {}", runtime.name, runtime.version))
            .collect();
        let name = match agent.pool.as_deref() {
            Some(pool) if pool != "default" => format!("{} ({pool})", agent.id),
            _ => agent.id.clone(),
        };
        table.row([
            Cell::from(name),
            Cell::status(&agent.status),
            agent.address.as_str().into(),
            running.into(),
            free.into(),
            of_node(|node| format!("{:.0} %", node.cpu_percent)).into(),
            of_node(|node| {
                format!("{}/{} ({:.0} %)", mb(node.memory_used_mb), mb(node.memory_total_mb), node.memory_percent)
            })
            .into(),
            of_node(|node| span(std::time::Duration::from_secs(node.uptime_seconds))).into(),
            age(agent.last_heartbeat).into(),
            if runtimes.is_empty() { NOTHING.to_owned() } else { runtimes.join(", ") }.into(),
            not_given(&missing, agent.capabilities.as_ref().map_or(&[], |all| &all.refuses)).into(),
        ]);
    }
    table
}

/// The layers that an agent lacks, and what it does not run for it.
fn not_given(missing: &[&str], refuses: &[String]) -> String {
    let missing = if missing.is_empty() { NOTHING.to_owned() } else { missing.join(", ") };
    match refuses {
        [] => missing,
        [network] => format!("{missing}; runs nothing with `network: {network}`"),
        _ => format!("{missing}; runs nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_run_is_said_beside_what_is_missing() {
        let (host, none) = ("host".to_owned(), "none".to_owned());
        assert_eq!(not_given(&[], &[]), NOTHING);
        assert_eq!(not_given(&["seccomp", "user"], &[]), "seccomp, user");
        assert_eq!(
            not_given(&["network guard"], std::slice::from_ref(&host)),
            "network guard; runs nothing with `network: host`"
        );
        assert_eq!(not_given(&["seccomp"], &[host, none]), "seccomp; runs nothing");
    }
}
