//! `flux gc`: removes code archives that no version names.

use serde_json::Value;

use super::{
    Context,
    shown::{NOTHING, count},
};
use crate::{error::CliError, model::rows};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Also where no version names any archive, or most would go: be sure that this is the store of these archives
    #[arg(long, conflicts_with = "dry_run")]
    force: bool,
}

pub(crate) async fn run(args: &Args, cx: &Context) -> Result<(), CliError> {
    let flag = |set: bool| if set { "true" } else { "false" };
    let mut query = vec![("dry_run", flag(args.dry_run))];
    // A gateway of an earlier release does not know it.
    query.extend(args.force.then_some(("force", flag(true))));
    let answer = cx.client.post(&["admin", "gc"], &query, &serde_json::json!({})).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    for row in rows(&answer, "archives") {
        cx.out.line(row.get("digest").and_then(Value::as_str).unwrap_or(NOTHING));
    }
    let number = |field: &str| answer.get(field).and_then(Value::as_u64).unwrap_or(0);
    let archives = |field: &str| count(usize::try_from(number(field)).unwrap_or(usize::MAX), "archive");
    let verb = if args.dry_run { "would go" } else { "removed" };
    cx.out.note(format!("{} {verb} ({} bytes); {} kept", archives("removed"), number("bytes"), archives("kept")));
    if number("mended") > 0 {
        cx.out.note(format!("{} put where it was missing", archives("mended")));
    }
    for lost in rows(&answer, "lost") {
        let digest = lost.as_str().unwrap_or(NOTHING);
        cx.out.note(format!("{digest} is named and nowhere: deploy its function again"));
    }
    Ok(())
}
