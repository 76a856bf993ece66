//! What the tests share: the command line against a running Flux, and functions to deploy.

use std::{process::Output, time::Duration};

use flux_testkit::{File, FluxCommand, FluxUp};

/// Longer than any command takes.
pub(crate) const COMMAND: Duration = Duration::from_secs(60);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Itself, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Itself, if it failed with this exit status and these words.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, words: &str) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.stderr.contains(words), "{words:?} is not in {self:#?}");
        self
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// A command that knows this Flux and its key.
pub(crate) fn command(up: &FluxUp, args: &[&str]) -> FluxCommand {
    FluxCommand::new("flux").args(args).env("FLUX_URL", up.api.base()).env("FLUX_KEY", key(up))
}

/// What `flux up` tells its worker.
pub(crate) fn settings(up: &FluxUp) -> serde_json::Value {
    let text = std::fs::read_to_string(up.path("run/settings.json")).expect("what `flux up` wrote");
    serde_json::from_str(&text).expect("JSON")
}

pub(crate) fn key(up: &FluxUp) -> String {
    settings(up)["gateway"]["api_key"].as_str().expect("a key").to_owned()
}

pub(crate) async fn flux(up: &FluxUp, args: &[&str]) -> Ran {
    Ran::of(&command(up, args).output(COMMAND).await)
}

pub(crate) async fn flux_with_input(up: &FluxUp, args: &[&str], input: &str) -> Ran {
    Ran::of(&command(up, args).stdin(input).output(COMMAND).await)
}

/// A command that needs no gateway.
pub(crate) async fn alone(args: &[&str]) -> Ran {
    Ran::of(&FluxCommand::new("flux").args(args).output(COMMAND).await)
}

/// A shell script as a function, with room for many at once.
pub(crate) async fn deploy_script(up: &FluxUp, name: &str, script: &str, further: &str) {
    let room = if further.contains("resources:") { "" } else { "resources: { cpu: 10, memory: 16 }\n" };
    let yaml = format!("name: {name}\nhandler: run.sh\n{room}{further}\n");
    let script = format!("#!/bin/sh\n{script}\n");
    up.api.deploy(name, &yaml, &[File::executable("run.sh", script)]).await;
}
