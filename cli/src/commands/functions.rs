//! `flux functions`: what is registered, or one function with its versions.

use flux_protocol::FunctionName;
use serde_json::Value;

use super::{
    Context, function_name,
    shown::{NOTHING, age, digest},
};
use crate::{
    error::CliError,
    model::rows,
    table::{Cell, Table},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One function, with its configuration and versions
    #[arg(value_parser = function_name)]
    name: Option<FunctionName>,
    /// Only names that begin with this
    #[arg(long, conflicts_with = "name")]
    prefix: Option<String>,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    match &args.name {
        Some(name) => one(name, cx).await,
        None => list(args.prefix.as_deref().unwrap_or_default(), cx).await,
    }
}

async fn list(prefix: &str, cx: &Context) -> Result<(), CliError> {
    let mut table =
        Table::new(&["FUNCTION", ">VERSION", "RUNTIME", "HANDLER", ">CPU", ">MEMORY", ">TIMEOUT", "CODE", ">CHANGED"]);
    let (mut all, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut query = vec![("prefix", prefix)];
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let answer = cx.client.get(&["functions"], &query).await?;
        all.extend_from_slice(rows(&answer, "functions"));
        match answer.get("next_cursor").and_then(Value::as_str) {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    if cx.out.json {
        cx.out.json(&serde_json::json!({ "functions": all }));
        return Ok(());
    }
    if all.is_empty() {
        cx.out.note("no function yet: `flux init python hello && flux deploy hello`");
        return Ok(());
    }
    for function in &all {
        let field = |path: &str| function.pointer(path).or_else(|| function.pointer(&format!("/config{path}")));
        let text = |path: &str| field(path).and_then(Value::as_str).unwrap_or(NOTHING).to_owned();
        let number = |path: &str, unit: &str| {
            field(path)
                .filter(|value| value.is_number())
                .map_or_else(|| NOTHING.to_owned(), |value| format!("{value}{unit}"))
        };
        let changed = field("/created_at").and_then(|at| serde_json::from_value(at.clone()).ok());
        table.row([
            Cell::from(text("/name")),
            number("/version", "").into(),
            text("/runtime").into(),
            text("/handler").into(),
            number("/resources/cpu", "m").into(),
            number("/resources/memory", " MB").into(),
            number("/timeout", " s").into(),
            digest(field("/digest").and_then(Value::as_str)).into(),
            age(changed).into(),
        ]);
    }
    table.print(cx.out);
    Ok(())
}

async fn one(name: &FunctionName, cx: &Context) -> Result<(), CliError> {
    let answer = cx.client.get(&["functions", name.as_str()], &[]).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let top = answer
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(field, _)| !matches!(field.as_str(), "name" | "versions" | "config"));
    let config =
        answer.get("config").and_then(Value::as_object).into_iter().flatten().filter(|(field, _)| *field != "name");
    for (field, value) in top.chain(config) {
        let shown = match value {
            Value::String(text) => text.clone(),
            Value::Null => NOTHING.to_owned(),
            other => other.to_string(),
        };
        cx.out.line(format!("{field:<28}{shown}"));
    }
    let mut table = Table::new(&[">VERSION", "CODE", ">AGE", ""]);
    let current = answer.get("version").and_then(Value::as_u64);
    for version in rows(answer.get("versions").unwrap_or(&Value::Null), "versions") {
        let number = version.get("version").and_then(Value::as_u64);
        let created = version.get("created_at").and_then(|at| serde_json::from_value(at.clone()).ok());
        table.row([
            number.map_or_else(String::new, |number| number.to_string()),
            digest(version.get("digest").and_then(Value::as_str)),
            age(created),
            if number == current { "current".to_owned() } else { String::new() },
        ]);
    }
    cx.out.line("");
    table.print(cx.out);
    Ok(())
}
