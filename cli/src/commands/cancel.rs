//! `flux cancel`: ends executions, queued or running.

use super::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Executions, as `flux ps` lists them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Each is tried, whatever became of the others; the first failure decides the exit status.
pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let mut first_failure = None;
    for id in &args.ids {
        match cx.client.delete(&["executions", id], &[]).await {
            Ok(answer) if cx.out.json => cx.out.json(&answer),
            Ok(_) => cx.out.line(format!("{id} cancelled")),
            Err(error) if first_failure.is_none() => first_failure = Some(error),
            Err(error) => cx.out.error(&error),
        }
    }
    first_failure.map_or(Ok(()), Err)
}
