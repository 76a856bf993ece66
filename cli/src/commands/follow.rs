//! Following an execution's output until its end, over connections that break.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use flux_protocol::sse::{Event, Parser};
use futures::StreamExt as _;
use reqwest::{Method, header::ACCEPT};
use serde::Deserialize;
use serde_json::Value;

use super::Context;
use crate::error::CliError;

/// A gateway that was away this long is not waited for.
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(300);

/// A chunk of output, as `event: output` carries it.
#[derive(Debug, Deserialize)]
struct Chunk {
    stream: String,
    #[serde(default)]
    data: Option<String>,
    /// Only of what is not UTF-8; `data` is not exact then.
    #[serde(default)]
    data_base64: Option<String>,
}

/// Prints output as it comes, standard output and error apart, and returns the record at the end.
pub(crate) async fn follow(cx: &Context, id: &str) -> Result<Value, CliError> {
    let mut last_id = None;
    let mut down_since = None::<tokio::time::Instant>;
    loop {
        let before = last_id.clone();
        match follow_once(cx, id, &mut last_id).await {
            Ok(Some(record)) => return Ok(record),
            Ok(None) => {}
            Err(error @ (CliError::Unreachable { .. } | CliError::BrokenOff { .. })) => {
                // The first connection of all has to work; a later one may break and is made again.
                if last_id.is_none() && down_since.is_none() && matches!(error, CliError::Unreachable { .. }) {
                    return Err(error);
                }
                if down_since.is_some_and(|since| since.elapsed() > GIVE_UP_AFTER) {
                    return Err(error);
                }
                down_since.get_or_insert_with(tokio::time::Instant::now);
            }
            Err(CliError::Refused(refused)) if refused.status == 503 => {
                down_since.get_or_insert_with(tokio::time::Instant::now);
            }
            Err(error) => return Err(error),
        }
        if before != last_id {
            down_since = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One connection. `None`: it ended before the execution did.
async fn follow_once(cx: &Context, id: &str, last_id: &mut Option<String>) -> Result<Option<Value>, CliError> {
    let url = cx.client.url(&["executions", id, "stream"], &[]);
    let mut request = cx.client.request(Method::GET, url).header(ACCEPT, "text/event-stream");
    if let Some(last_id) = last_id.as_deref() {
        request = request.header("Last-Event-ID", last_id);
    }
    let mut chunks = cx.client.send(request).await?.bytes_stream();
    let mut parser = Parser::default();
    while let Some(bytes) = chunks.next().await {
        if parser.is_too_long() {
            let problem = "an event of its stream does not end".to_owned();
            return Err(CliError::Answer { url: cx.client.base().to_owned(), problem });
        }
        for event in parser.feed(&bytes.map_err(|error| cx.client.broken(error))?) {
            if event.name == "end" {
                return cx.client.decode(event.data.as_bytes()).map(Some);
            }
            if event.name == "output" {
                print(cx, &event)?;
            }
            if event.id.is_some() {
                *last_id = event.id;
            }
        }
    }
    Ok(None)
}

fn print(cx: &Context, event: &Event) -> Result<(), CliError> {
    if cx.out.json {
        cx.out.line(&event.data);
        return Ok(());
    }
    let chunk: Chunk = cx.client.decode(event.data.as_bytes())?;
    let bytes = match (chunk.data_base64, chunk.data) {
        (Some(encoded), _) => BASE64.decode(encoded).unwrap_or_default(),
        (None, text) => text.unwrap_or_default().into_bytes(),
    };
    if chunk.stream == "stderr" {
        cx.out.error_bytes(&bytes)
    } else {
        cx.out.bytes(&bytes)
    }
    Ok(())
}
