//! Structured logs on stderr: `pretty` for people, `json` for machines.

use std::io::IsTerminal as _;

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// `pretty` on a terminal, `json` elsewhere.
    #[default]
    Auto,
    Pretty,
    Json,
}

/// Starts logging. `level` is a level or a `tracing` filter such as `info,flux_agent=debug`.
///
/// # Errors
/// The filter cannot be read.
pub fn init(format: LogFormat, level: &str) -> Result<(), String> {
    // RabbitMQ's client says as errors what it is asked for, such as that there is no queue; what matters, `flux_broker` says.
    let filter = EnvFilter::builder()
        .parse(format!("{level},async_nats=warn,hyper=warn,lapin=off,reqwest=warn"))
        .map_err(|error| format!("`log.level`: `{level}` is not a level or filter: {error}"))?;
    let json = match format {
        LogFormat::Json => true,
        LogFormat::Pretty => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if json {
        registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_current_span(true)
                    .with_span_list(false)
                    .with_writer(std::io::stderr),
            )
            .try_init()
    } else {
        registry
            .with(
                fmt::layer().with_target(false).with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr),
            )
            .try_init()
    };
    // A second start in one process (tests) keeps the first.
    let _ = started;
    Ok(())
}
