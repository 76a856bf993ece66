//! `flux autoscaler`: what it has, and why it did what it did.

use serde_json::{Value, json};

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
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Its nodes, and what it sees
    Status,
    /// Its last decisions, each with its reason and the numbers that it came from
    Explain {
        /// How many, the last first
        #[arg(long, default_value_t = 10, value_name = "N")]
        limit: usize,
    },
    /// Start the least number of nodes of every provider; also after all were removed
    Initialize,
    /// Terminate every node, and launch none until `flux autoscaler initialize`
    RemoveNodes,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    match args.what {
        What::Status => status(cx).await,
        What::Explain { limit } => explain(cx, limit).await,
        What::Initialize => {
            let answer = cx.client.post(&["initialize"], &[], &json!({})).await?;
            let said = format!("{} launched, {} not", answer["nodes"]["spawned"], answer["nodes"]["failed"]);
            if cx.out.json {
                cx.out.json(&answer)
            } else {
                cx.out.line(said)
            }
            Ok(())
        }
        What::RemoveNodes => {
            let answer = cx.client.delete(&["nodes"], &[]).await?;
            let said = format!("{} removed", answer["removed"]);
            if cx.out.json {
                cx.out.json(&answer)
            } else {
                cx.out.line(said)
            }
            Ok(())
        }
    }
}

async fn status(cx: &Context) -> Result<(), CliError> {
    let answer = cx.client.get(&["autoscaler"], &[]).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let said = if answer["paused"] == true { ", paused until `flux autoscaler initialize`" } else { "" };
    cx.out.line(format!("{} acts, heard {} ago{said}", text(&answer, "holder"), when(&answer, "at")));
    cx.out.line(numbers(&answer["seen"]));
    let mut table = Table::new(&["NODE", "STATE", ">FOR", "PROVIDER", "TYPE", ">PRICE/H"]);
    for node in rows(&answer, "nodes") {
        table.row([
            Cell::from(text(node, "id")),
            Cell::status(&text(node, "state")),
            when(node, "since").into(),
            text(node, "provider").into(),
            text(node, "instance_type").into(),
            node["price_per_hour"].to_string().into(),
        ]);
    }
    table.print(cx.out);
    for note in rows(&answer, "notes") {
        cx.out.line(reason(note));
    }
    Ok(())
}

async fn explain(cx: &Context, limit: usize) -> Result<(), CliError> {
    let answer = cx.client.get(&["autoscaler"], &[]).await?;
    let decisions: Vec<&Value> = rows(&answer, "decisions").iter().take(limit).collect();
    if cx.out.json {
        cx.out.json(&json!({ "decisions": decisions }));
        return Ok(());
    }
    for decision in decisions {
        cx.out.line(format!("{}, {} ago", text(decision, "at"), when(decision, "at")));
        for action in rows(decision, "actions") {
            cx.out.line(format!("  {} {}", text(action, "action"), text(action, "what")));
            cx.out.line(format!("    {}", reason(&action["reason"])));
            for line in action["output"].as_str().unwrap_or_default().lines() {
                cx.out.line(format!("    | {line}"));
            }
        }
    }
    for note in rows(&answer, "notes") {
        cx.out.line(format!("now: {}", reason(note)));
    }
    Ok(())
}

fn reason(of: &Value) -> String {
    let inputs = numbers(&of["inputs"]);
    let inputs = if inputs.is_empty() { inputs } else { format!(" ({inputs})") };
    format!("{}: {}{inputs}", text(of, "rule"), text(of, "said"))
}

fn numbers(of: &Value) -> String {
    let all = of.as_object().into_iter().flatten().map(|(name, value)| format!("{name} {value}"));
    all.collect::<Vec<_>>().join(", ")
}

fn text(of: &Value, field: &str) -> String {
    of.get(field).and_then(Value::as_str).unwrap_or(NOTHING).to_owned()
}

fn when(of: &Value, field: &str) -> String {
    age(of.get(field).and_then(|at| serde_json::from_value(at.clone()).ok()))
}
