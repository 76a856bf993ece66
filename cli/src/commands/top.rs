//! `flux top`: agents and functions at work, drawn again every second.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{Context, agents};
use crate::{
    error::CliError,
    model::{Execution, rows},
    table::Table,
};

const EVERY: Duration = Duration::from_secs(1);
/// Executions that are looked at; beyond them the counts say "at least".
const LOOKED_AT: usize = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print once and end, as without a terminal
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Default)]
struct Work {
    running: usize,
    queued: usize,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let once = args.once || !cx.out.stdout_is_terminal;
    loop {
        let found = collect(cx).await;
        if !once {
            cx.out.clear();
        }
        match found {
            Ok((agents, executions)) => show(cx, &agents, &executions)?,
            // While watching, a gateway that is away may come back.
            Err(error) if !once => cx.out.error(&error),
            Err(error) => return Err(error),
        }
        if once {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn collect(cx: &Context) -> Result<(Value, Value), CliError> {
    let limit = LOOKED_AT.to_string();
    let open = [("status", "running"), ("limit", limit.as_str())];
    tokio::try_join!(cx.client.get(&["agents"], &[]), cx.client.get(&["executions"], &open))
}

fn show(cx: &Context, answer: &Value, executions: &Value) -> Result<(), CliError> {
    let mut work: BTreeMap<String, Work> = BTreeMap::new();
    let open = rows(executions, "executions");
    for row in open {
        let execution: Execution = cx.client.view(row)?;
        let queued = execution.shown_status() == "queued";
        let of_function = work.entry(execution.function_name).or_default();
        if queued { of_function.queued += 1 } else { of_function.running += 1 }
    }
    if cx.out.json {
        let functions: Vec<Value> = work
            .iter()
            .map(|(name, work)| json!({"function": name, "running": work.running, "queued": work.queued}))
            .collect();
        cx.out.json(&json!({"agents": answer, "functions": functions}));
        return Ok(());
    }
    agents::table(&agents::parse(cx, answer)?).print(cx.out);
    cx.out.line("");
    if work.is_empty() {
        cx.out.line("nothing runs and nothing is queued");
        return Ok(());
    }
    let mut table = Table::new(&["FUNCTION", ">RUNNING", ">QUEUED"]);
    for (name, work) in &work {
        table.row([name.clone(), work.running.to_string(), work.queued.to_string()]);
    }
    table.print(cx.out);
    if open.len() >= LOOKED_AT {
        cx.out.line(format!("(of the newest {LOOKED_AT})"));
    }
    Ok(())
}
