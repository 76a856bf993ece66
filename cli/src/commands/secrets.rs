//! `flux secrets`: what functions are given and nobody is shown. A value comes from a file or standard input, never from the
//! command line, which other users of the machine can read.

use std::{
    fs::File,
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
};

use flux_protocol::{SecretName, limits};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};

use super::{
    Context,
    shown::{NOTHING, age, count},
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
    /// Set a secret to what standard input or a file holds, but for one newline at its end
    Set {
        name: SecretName,
        /// [default: standard input]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List secrets, without their values
    List,
    /// Remove a secret; functions that name it fail at their next start
    Remove { name: SecretName },
    /// Encrypt every secret with a new key, at rest; their values stay
    Rotate,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    match args.what {
        What::Set { name, file } => {
            let value = read(file, cx)?;
            let request = cx.client.request(Method::PUT, cx.client.url(&["secrets", name.as_str()], &[]));
            let answer = cx.client.json(request.header(CONTENT_TYPE, "application/octet-stream").body(value)).await?;
            let version = answer.get("version").map_or_else(|| NOTHING.to_owned(), Value::to_string);
            say(cx, &answer, &format!("{name} is set, version {version}"));
        }
        What::List => list(cx).await?,
        What::Remove { name } => {
            let answer = cx.client.delete(&["secrets", name.as_str()], &[]).await?;
            say(cx, &answer, &format!("{name} is removed"));
        }
        What::Rotate => {
            let answer = cx.client.post(&["secrets-key", "rotate"], &[], &json!({})).await?;
            let secrets = answer.get("secrets").and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
            say(cx, &answer, &format!("{} encrypted with a new key", count(secrets.unwrap_or(0), "secret")));
        }
    }
    Ok(())
}

fn say(cx: &Context, answer: &Value, line: &str) {
    if cx.out.json { cx.out.json(answer) } else { cx.out.line(line) }
}

fn read(file: Option<PathBuf>, cx: &Context) -> Result<Vec<u8>, CliError> {
    let mut value = Vec::new();
    // One byte more than is taken, so that the gateway's refusal says the rest.
    let most = limits::SECRET as u64 + 2;
    match file {
        Some(path) => {
            let read = File::open(&path).and_then(|file| file.take(most).read_to_end(&mut value));
            read.map_err(|source| CliError::local(format!("{} cannot be read", path.display()), source))?;
        }
        None => {
            if std::io::stdin().is_terminal() {
                cx.out.note("the value, then Ctrl-D:");
            }
            let read = std::io::stdin().lock().take(most).read_to_end(&mut value);
            read.map_err(|source| CliError::local("standard input cannot be read", source))?;
        }
    }
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    Ok(value)
}

async fn list(cx: &Context) -> Result<(), CliError> {
    let answer = cx.client.get(&["secrets"], &[]).await?;
    if cx.out.json {
        cx.out.json(&answer);
        return Ok(());
    }
    let mut table = Table::new(&["NAME", ">VERSION", ">CHANGED", ">AGE"]);
    for row in rows(&answer, "secrets") {
        let time = |field: &str| age(row.get(field).and_then(|at| serde_json::from_value(at.clone()).ok()));
        table.row([
            Cell::from(row.get("name").and_then(Value::as_str).unwrap_or(NOTHING)),
            row.get("version").map_or_else(|| NOTHING.to_owned(), Value::to_string).into(),
            time("updated_at").into(),
            time("created_at").into(),
        ]);
    }
    table.print(cx.out);
    Ok(())
}
