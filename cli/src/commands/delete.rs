//! `flux delete`: removes a function.

use flux_protocol::FunctionName;

use super::{Context, function_name};
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_name = "NAME", value_parser = function_name)]
    name: FunctionName,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let request = cx.client.request(reqwest::Method::DELETE, cx.client.url(&["functions", args.name.as_str()], &[]));
    let response = cx.client.send(request).await?;
    let body = response.bytes().await.map_err(|error| cx.client.broken(error))?;
    if cx.out.json {
        let answer =
            if body.is_empty() { serde_json::json!({"status": "removed"}) } else { cx.client.decode(&body)? };
        cx.out.json(&answer);
    } else {
        cx.out.line(format!("{} removed; its executions stay", args.name));
    }
    Ok(())
}
