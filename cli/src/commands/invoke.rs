//! `flux invoke`: runs a function. Its result goes to standard output, and its failure is the exit status.

use std::{path::PathBuf, time::Duration};

use flux_protocol::{FunctionName, function::format_duration};
use reqwest::{Method, header::CONTENT_TYPE};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{Context, duration, follow::follow, function_name, shown};
use crate::{
    error::CliError,
    model::{Execution, Failure},
    payload, progress,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_name = "NAME", value_parser = function_name)]
    name: FunctionName,
    /// JSON, text or bytes; @FILE reads a file, - standard input; without one, what is piped in
    payload: Option<String>,
    /// Read the payload from a file
    #[arg(long, value_name = "FILE", conflicts_with = "payload")]
    file: Option<PathBuf>,
    /// An argument for the function; may be given more than once
    #[arg(long = "arg", value_name = "ARG", allow_hyphen_values = true)]
    args: Vec<String>,
    /// Do not wait: print the execution's id
    #[arg(long = "async", conflicts_with_all = ["follow", "raw"])]
    asynchronous: bool,
    /// Print output while the function runs, its standard error to standard error
    #[arg(long, short)]
    follow: bool,
    /// Give up after this long (10s, 5m)
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// The same key within a day is the same execution
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Print what the function wrote, byte for byte, instead of its result
    #[arg(long)]
    raw: bool,
}

pub(crate) async fn run(args: Args, cx: &Context) -> Result<(), CliError> {
    let body = payload::body(payload::read(args.payload.as_deref(), args.file.as_deref())?, &args.args)?;
    if args.asynchronous || args.follow {
        let accepted = cx.client.decode::<Value>(&send(&args, &["async"], body, cx).await?.1)?;
        let id = accepted.get("execution_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if args.follow {
            return follow_to_the_end(cx, &id).await;
        }
        if cx.out.json {
            cx.out.json(&accepted);
        } else {
            cx.out.line(&id);
        }
        return Ok(());
    }
    let (status, answer) = send(&args, &[], body, cx).await?;
    // A function's own failure is an answer too, whatever its HTTP status: it names an execution.
    let called: Called = match serde_json::from_slice(&answer) {
        Ok(called) => called,
        Err(_) if !status.is_success() => return Err(cx.client.refusal_of(status, &answer)),
        Err(_) => cx.client.decode(&answer)?,
    };
    if cx.out.json {
        cx.out.json_text(&answer);
    } else {
        show(cx, &called, args.raw);
        shown::note_dropped(cx.out, called.output_dropped_bytes);
    }
    if called.status == "success" {
        return Ok(());
    }
    Err(failed(&called.status, called.error.as_ref(), &called.execution_id))
}

/// The answer to a call.
#[derive(Debug, Deserialize)]
struct Called {
    status: String,
    execution_id: String,
    #[serde(default)]
    output: String,
    /// Where it is not all UTF-8.
    #[serde(default)]
    output_base64: Option<String>,
    /// As the function wrote it: neither numbers nor the order of keys change on the way.
    #[serde(default)]
    result: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<Failure>,
    #[serde(default)]
    output_dropped_bytes: u64,
}

async fn send(
    args: &Args,
    tail: &[&str],
    body: payload::Body,
    cx: &Context,
) -> Result<(reqwest::StatusCode, bytes::Bytes), CliError> {
    let timeout = args.timeout.map(format_duration);
    let mut query: Vec<_> = timeout.iter().map(|timeout| ("timeout", timeout.as_str())).collect();
    query.extend(body.args_in_query.iter().map(|arg| ("arg", arg.as_str())));
    let segments: Vec<&str> = ["execute", args.name.as_str()].iter().chain(tail).copied().collect();
    let content_type = body.content_type;
    let (body, bar) = progress::upload(cx.out, "sending", body.bytes.into());
    let mut request =
        cx.client.request(Method::POST, cx.client.url(&segments, &query)).header(CONTENT_TYPE, content_type).body(body);
    if let Some(key) = &args.idempotency_key {
        request = request.header("Idempotency-Key", key);
    }
    let exchange = async {
        let response = cx.client.send_any(request).await?;
        bar.finish_and_clear();
        let status = response.status();
        let refused = !status.is_success() && !tail.is_empty();
        if refused {
            return Err(cx.client.refusal(response).await);
        }
        response.bytes().await.map(|body| (status, body)).map_err(|error| cx.client.broken(error))
    };
    progress::waiting(cx.out, format!("{} runs", args.name), exchange).await
}

fn show(cx: &Context, called: &Called, raw: bool) {
    let output = shown::output_bytes(&called.output, called.output_base64.as_deref());
    match &called.result {
        Some(result) if !raw => cx.out.line(result.get()),
        // A text gets the end of its line; bytes get nothing.
        None if !raw && called.output_base64.is_none() && !output.is_empty() && !output.ends_with(b"\n") => {
            cx.out.line(&called.output);
        }
        _ => cx.out.bytes(&output),
    }
}

/// The exit status of a record that has ended.
pub(crate) fn judge(record: &Execution) -> Result<(), CliError> {
    if record.status == "success" {
        return Ok(());
    }
    Err(failed(&record.status, record.error.as_ref(), &record.execution_id))
}

fn failed(status: &str, failure: Option<&Failure>, id: &str) -> CliError {
    CliError::FunctionFailed {
        kind: failure.map_or(status, Failure::kind).to_owned(),
        message: failure.map_or_else(|| "the execution did not succeed".to_owned(), Failure::told_whole),
        execution_id: id.to_owned(),
    }
}

async fn follow_to_the_end(cx: &Context, id: &str) -> Result<(), CliError> {
    tokio::select! {
        record = follow(cx, id) => {
            let record = record?;
            let execution: Execution = cx.client.view(&record)?;
            if cx.out.json {
                cx.out.json(&record);
            } else {
                shown::note_dropped(cx.out, execution.output_dropped_bytes);
                // What a handler returned is no output, and comes with the end.
                if let Some(result) = record.get("result") {
                    cx.out.line(result.to_string());
                }
            }
            judge(&execution)
        }
        _ = tokio::signal::ctrl_c() => Err(CliError::Interrupted {
            remedy: format!("{id} goes on: `flux logs -f {id}` follows it again, `flux cancel {id}` ends it"),
        }),
    }
}
