//! `flux audit`: who changed what, from where.

use serde_json::Value;

use super::{
    Context,
    shown::{NOTHING, age},
};
use crate::{
    error::CliError,
    model::rows,
    table::{Cell, Table},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many entries, newest first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000), value_name = "N")]
    limit: u16,
    /// Go on after this: `next_cursor` of the page before
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let limit = args.limit.to_string();
    let mut query = vec![("limit", limit.as_str())];
    query.extend(args.cursor.as_deref().map(|cursor| ("cursor", cursor)));
    let answer = cx.client.get(&["audit"], &query).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let mut table = Table::new(&[">AGE", "WHO", "FROM", "CHANGE", ">STATUS", "WHAT"]);
    for row in rows(&answer, "entries") {
        let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or(NOTHING).to_owned();
        table.row([
            Cell::from(age(row.get("at").and_then(|at| serde_json::from_value(at.clone()).ok()))),
            text("who").into(),
            text("from").into(),
            format!("{} {}", text("method"), text("path")).into(),
            row.get("status").map_or_else(|| NOTHING.to_owned(), Value::to_string).into(),
            text("what").into(),
        ]);
    }
    table.print(cx.out);
    if let Some(next) = answer.get("next_cursor").and_then(Value::as_str) {
        cx.out.note(format!("older ones: flux audit --cursor {next}"));
    }
    Ok(())
}
