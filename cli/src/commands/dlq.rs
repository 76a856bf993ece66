//! `flux dlq`: executions that were given up on: list, show, run again, remove.

use flux_protocol::FunctionName;
use serde_json::{Value, json};

use super::{
    Context, function_name,
    shown::{NOTHING, age, count, one_line},
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
    /// How many letters each function has, or one function's letters
    List {
        #[arg(value_parser = function_name)]
        function: Option<FunctionName>,
    },
    /// One letter, with its payload and why it was given up on
    Show {
        #[arg(value_parser = function_name)]
        function: FunctionName,
        /// Its number, as `flux dlq list FUNCTION` prints it
        letter: u64,
    },
    /// Run letters again, each as a new execution
    Redrive {
        #[arg(value_parser = function_name)]
        function: FunctionName,
        /// One letter; without it all of the function
        letter: Option<u64>,
        /// On this version instead of the current one
        #[arg(long = "on-version", value_name = "VERSION")]
        version: Option<u32>,
        /// Say what would be run again, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove letters for good
    Purge {
        #[arg(value_parser = function_name)]
        function: FunctionName,
        /// One letter
        letter: Option<u64>,
        /// All letters of the function
        #[arg(long, conflicts_with = "letter")]
        all: bool,
    },
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    match args.what {
        What::List { function: None } => counts(cx).await,
        What::List { function: Some(function) } => list(&function, cx).await,
        What::Show { function, letter } => {
            let answer = cx.client.get(&["dlq", function.as_str(), &letter.to_string()], &[]).await?;
            cx.out.line(if cx.out.json { answer.to_string() } else { format!("{answer:#}") });
            Ok(())
        }
        What::Redrive { function, letter, version, dry_run } => redrive(&function, letter, version, dry_run, cx).await,
        What::Purge { letter: None, all: false, .. } => {
            Err(CliError::usage("which letter? Give its number, or --all to remove every one of the function"))
        }
        What::Purge { function, letter, .. } => {
            let letter = letter.map(|letter| letter.to_string());
            let segments: Vec<&str> = ["dlq", function.as_str()].into_iter().chain(letter.as_deref()).collect();
            let answer = cx.client.delete(&segments, &[]).await?;
            if cx.out.json {
                cx.out.json(&answer);
            } else {
                let purged = answer.get("purged").and_then(Value::as_u64).unwrap_or(1);
                cx.out.line(format!("{} removed", count(usize::try_from(purged).unwrap_or(usize::MAX), "letter")));
            }
            Ok(())
        }
    }
}

async fn counts(cx: &Context) -> Result<(), CliError> {
    let answer = cx.client.get(&["dlq"], &[]).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let mut table = Table::new(&["FUNCTION", ">LETTERS"]);
    for row in rows(&answer, "functions") {
        let name = row.get("function").and_then(Value::as_str).unwrap_or(NOTHING);
        table.row([name.to_owned(), row.get("count").map_or_else(|| NOTHING.to_owned(), Value::to_string)]);
    }
    table.print(cx.out);
    Ok(())
}

async fn list(function: &FunctionName, cx: &Context) -> Result<(), CliError> {
    let answer = cx.client.get(&["dlq", function.as_str()], &[]).await?;
    if rows(&answer, "letters").is_empty() {
        // A function that is gone may have left letters; one that never was has none, and its name is wrong.
        cx.client.get(&["functions", function.as_str()], &[]).await?;
    }
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let mut table = Table::new(&[">LETTER", "EXECUTION", ">ATTEMPTS", ">AGE", "REASON"]);
    for row in rows(&answer, "letters") {
        let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or(NOTHING).to_owned();
        let number = |field: &str| row.get(field).map_or_else(|| NOTHING.to_owned(), Value::to_string);
        let at = row.get("at").and_then(|at| serde_json::from_value(at.clone()).ok());
        table.row([
            Cell::from(number("sequence")),
            text("execution_id").into(),
            number("attempt").into(),
            age(at).into(),
            one_line(&text("reason"), 70).into(),
        ]);
    }
    table.print(cx.out);
    Ok(())
}

async fn redrive(
    function: &FunctionName,
    letter: Option<u64>,
    version: Option<u32>,
    dry_run: bool,
    cx: &Context,
) -> Result<(), CliError> {
    let mut request = json!({ "dry_run": dry_run });
    if let Some(letter) = letter {
        request["sequence"] = letter.into();
    }
    if let Some(version) = version {
        request["version"] = version.into();
    }
    let answer = cx.client.post(&["dlq", function.as_str(), "redrive"], &[], &request).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let redriven = rows(&answer, "redriven");
    for row in redriven {
        let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or(NOTHING).to_owned();
        if dry_run {
            cx.out.line(text("of"));
        } else {
            cx.out.line(format!("{} -> {}", text("of"), text("execution_id")));
        }
    }
    let verb = if dry_run { "would run again" } else { "run again" };
    cx.out.note(format!("{} {verb}", count(redriven.len(), "letter")));
    Ok(())
}
