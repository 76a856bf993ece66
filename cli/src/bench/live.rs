//! Live output: from a function's write to the client that watches, over the HTTP API's event stream.

use flux_protocol::{sse, time::now};
use futures::StreamExt as _;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{client::Client, error::CliError};

/// The function that prints the time, again and again.
pub(super) const TICKS: &str = "ticks";

/// An `output` event.
#[derive(Deserialize)]
struct Output {
    data: String,
}

/// Runs the function once, and gives how long each of its writes took to arrive, in microseconds. What was written
/// before the stream was open is left out.
pub(super) async fn delays_us(client: &Client) -> Result<Vec<f64>, CliError> {
    let accepted = client.post(&["execute", TICKS, "async"], &[], &json!({})).await?;
    let id = accepted.get("execution_id").and_then(Value::as_str).unwrap_or_default();
    let url = client.url(&["executions", id, "stream"], &[]);
    let mut stream = client.send(client.request(Method::GET, url)).await?.bytes_stream();
    let opened = now();
    let (mut parser, mut delays) = (sse::Parser::default(), Vec::new());
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| client.broken(error))?;
        let arrived = now();
        for event in parser.feed(&bytes) {
            match event.name.as_str() {
                "output" => {
                    let output: Output = client.decode(event.data.as_bytes())?;
                    let written = output.data.lines().filter_map(|line| line.parse::<i64>().ok());
                    #[allow(clippy::cast_precision_loss)] // microseconds of a second
                    let since = |at: i64| (arrived.as_micros() - at) as f64;
                    delays.extend(written.filter(|at| *at > opened.as_micros()).map(since));
                }
                "end" => return Ok(delays),
                _ => {}
            }
        }
    }
    Err(CliError::problem("the event stream ended before the execution did", "look at the log of this Flux"))
}
