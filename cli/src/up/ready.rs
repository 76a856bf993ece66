//! What is said when everything is up: once, not when the worker was started again.

use std::{net::SocketAddr, path::PathBuf};

use flux_protocol::{Timestamp, time};
use flux_runtime::Settings;
use serde_json::json;

use crate::output::Output;

/// Handed from `flux up` to the worker that it starts.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Ready {
    /// When `flux up` was started, in microseconds since 1970.
    #[arg(long)]
    begun: i64,
    /// Is there once it was said.
    #[arg(long)]
    said: PathBuf,
    /// Where the key can be read, if `flux up` made it.
    #[arg(long)]
    key_file: Option<PathBuf>,
}

impl Ready {
    pub(super) fn new(said: PathBuf, key_file: Option<PathBuf>) -> Self {
        Self { begun: time::now().as_micros(), said, key_file }
    }

    pub(super) fn args(&self) -> Vec<std::ffi::OsString> {
        let mut args = vec!["--begun".into(), self.begun.to_string().into(), "--said".into(), self.said.clone().into()];
        if let Some(file) = &self.key_file {
            args.extend(["--key-file".into(), file.clone().into()]);
        }
        args
    }

    pub(super) fn say(&self, settings: &Settings, listen: SocketAddr, out: Output) {
        let took = time::now().since(Timestamp::from_micros(self.begun));
        if self.said.exists() || std::fs::write(&self.said, "").is_err() {
            tracing::info!("ready again");
            return;
        }
        let scheme = if settings.gateway.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{listen}");
        let data = settings.data_dir.as_deref().unwrap_or_else(|| std::path::Path::new("")).display();
        if out.json {
            out.json(&json!({
                "status": "ready", "url": url, "queue": settings.queue.url, "data_dir": data.to_string(),
                "key_file": self.key_file, "ready_after_ms": took.as_secs_f64() * 1000.0,
            }));
            return;
        }
        let key = match &self.key_file {
            Some(file) => format!("in {}; `flux` commands of this user find it", file.display()),
            None => "as given; for `flux` commands: export FLUX_KEY=…".to_owned(),
        };
        let elsewhere = if listen.port() == 7227 && scheme == "http" {
            String::new()
        } else {
            format!("export FLUX_URL={url}\n  ")
        };
        out.line(format!(
            "Flux is ready, after {:.2} s.\n\n  \
             API    {url}   docs: {url}/docs\n  \
             key    {key}\n  \
             queue  {}\n  \
             data   {data}\n\n  \
             {elsewhere}flux init python hello && flux deploy hello && flux invoke hello '{{\"name\": \"Ada\"}}'\n\n\
             Ctrl-C drains and stops.",
            took.as_secs_f64(),
            settings.queue.url,
        ));
    }
}
