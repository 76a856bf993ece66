//! `flux logs`: what an execution printed, or prints.

use super::{Context, follow::follow, shown};
use crate::{
    error::CliError,
    model::{Execution, rows},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An execution (`exc-…`), or a function: then its latest execution
    #[arg(value_name = "ID|NAME")]
    target: String,
    /// Go on until the execution ends; the exit status tells how it ended
    #[arg(long, short)]
    follow: bool,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let id = if args.target.starts_with("exc-") { args.target } else { latest(&args.target, cx).await? };
    if args.follow {
        let record: Execution = cx.client.view(&follow(cx, &id).await?)?;
        if !cx.out.json {
            shown::note_dropped(cx.out, record.output_dropped_bytes);
        }
        return super::invoke::judge(&record);
    }
    let answer = cx.client.get(&["executions", &id], &[]).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let execution: Execution = cx.client.view(&answer)?;
    let output = execution.output.as_deref().unwrap_or_default();
    cx.out.bytes(&shown::output_bytes(output, execution.output_base64.as_deref()));
    shown::note_dropped(cx.out, execution.output_dropped_bytes);
    if let Some(error) = &execution.error {
        let (status, kind) = (execution.shown_status(), error.kind());
        // `cancelled` is both.
        let why = if status == kind { status.to_owned() } else { format!("{status}: {kind}") };
        cx.out.note(format!("{id} {why}: {}", error.told_whole()));
    }
    Ok(())
}

async fn latest(function: &str, cx: &Context) -> Result<String, CliError> {
    let answer = cx.client.get(&["executions"], &[("function", function), ("limit", "1")]).await?;
    let Some(newest) = rows(&answer, "executions").first() else {
        return Err(CliError::problem(
            format!("{function} has not been run"),
            format!("`flux invoke {function}` runs it; `flux ps` lists executions"),
        ));
    };
    Ok(cx.client.view::<Execution>(newest)?.execution_id)
}
