//! `flux ps`: executions, newest first.

use std::time::Duration;

use flux_protocol::FunctionName;
use serde_json::Value;

use super::{
    Context, function_name,
    shown::{NOTHING, age, millis, one_line},
};
use crate::{
    error::CliError,
    model::{Execution, rows},
    table::{Cell, Table},
};

const EVERY: Duration = Duration::from_secs(1);
const ERROR_WIDTH: usize = 60;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only of this function
    #[arg(long, value_name = "NAME", value_parser = function_name)]
    function: Option<FunctionName>,
    /// Only of this status
    #[arg(long, value_parser = ["running", "success", "failed", "cancelled"])]
    status: Option<String>,
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Print again every second, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    loop {
        let limit = args.limit.to_string();
        let mut query = vec![("limit", limit.as_str())];
        query.extend(args.function.as_ref().map(|name| ("function", name.as_str())));
        query.extend(args.status.as_deref().map(|status| ("status", status)));
        let answer = cx.client.get(&["executions"], &query).await?;
        if args.watch {
            cx.out.clear();
        }
        show(cx, &answer)?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn show(cx: &Context, answer: &Value) -> Result<(), CliError> {
    if cx.out.json {
        cx.out.json(answer);
        return Ok(());
    }
    let mut table = Table::new(&[
        "EXECUTION",
        "FUNCTION",
        "STATUS",
        ">VERSION",
        ">ATTEMPT",
        ">AGE",
        ">DURATION",
        "START",
        "AGENT",
        "ERROR",
    ]);
    for row in rows(answer, "executions") {
        let execution: Execution = cx.client.view(row)?;
        let duration = match execution.duration_ms.filter(|_| execution.is_terminal()) {
            Some(ms) => millis(ms),
            None => age(execution.started_at),
        };
        let error = execution.error.as_ref();
        let number =
            |number: Option<u32>| number.filter(|n| *n > 0).map_or_else(|| NOTHING.to_owned(), |n| n.to_string());
        table.row([
            Cell::from(execution.execution_id.as_str()),
            execution.function_name.as_str().into(),
            Cell::status(execution.shown_status()),
            number(execution.version).into(),
            number(execution.attempt).into(),
            age(execution.queued_at).into(),
            duration.into(),
            start(&execution).into(),
            execution.agent_id.as_deref().unwrap_or(NOTHING).into(),
            error
                .map_or_else(String::new, |error| format!("{}: {}", error.kind(), one_line(&error.told(), ERROR_WIDTH)))
                .into(),
        ]);
    }
    table.print(cx.out);
    Ok(())
}

/// `warm`, `cold`, or how long a cold start took to load the handler.
fn start(execution: &Execution) -> String {
    match (execution.start.as_deref(), execution.init_ms) {
        (Some("cold"), Some(ms)) if ms > 0.0 => format!("cold, {}", millis(ms)),
        (Some(start), _) => start.to_owned(),
        (None, _) => NOTHING.to_owned(),
    }
}
