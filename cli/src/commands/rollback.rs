//! `flux rollback`: makes an old version current again.

use flux_protocol::FunctionName;
use serde_json::json;

use super::{Context, function_name};
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_name = "NAME", value_parser = function_name)]
    name: FunctionName,
    /// Its number, as `flux functions NAME` lists them
    version: u32,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let name = args.name.as_str();
    let answer = cx.client.post(&["functions", name, "rollback"], &[], &json!({ "version": args.version })).await?;
    if cx.out.json {
        cx.out.json(&answer);
    } else {
        cx.out.line(format!("{name} is at version {}", args.version));
    }
    Ok(())
}
