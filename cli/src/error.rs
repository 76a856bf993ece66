//! What a command can fail with: worded for a person, with a remedy and an exit status.

use std::path::PathBuf;

use flux_protocol::function::SpecError;
use serde::Deserialize;

/// The exit status of a wrong command line, as `clap` has it.
const USAGE: u8 = 2;
/// As a shell reports a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The gateway answered and refused.
    #[error("{}", .0.message)]
    Refused(Refused),
    #[error("nothing answers at {url}")]
    Unreachable {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the connection to {url} broke off")]
    BrokenOff {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the answer of {url} cannot be understood: {problem}")]
    Answer { url: String, problem: String },
    /// The function ran and failed: an outcome, which a script must notice.
    #[error("{message}")]
    FunctionFailed { kind: String, execution_id: String, message: String },
    #[error("{}: {source}", path.display())]
    Configuration {
        path: PathBuf,
        #[source]
        source: SpecError,
    },
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// Anything else that the user can put right, with how.
    #[error("{what}")]
    Problem { what: String, remedy: Option<String> },
    #[error("{what}")]
    Usage { what: String },
    #[error("interrupted")]
    Interrupted { remedy: String },
}

/// `{"error": {…}}` of the API.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Refused {
    #[serde(skip)]
    pub(crate) status: u16,
    pub(crate) code: String,
    pub(crate) message: String,
    #[serde(default)]
    pub(crate) request_id: Option<String>,
    #[serde(default)]
    pub(crate) details: serde_json::Value,
}

impl CliError {
    pub(crate) fn local(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Local { what: what.into(), source }
    }

    pub(crate) fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Problem { what: what.into(), remedy: Some(remedy.into()) }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::Usage { what: what.into() }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => USAGE,
            Self::Interrupted { .. } => INTERRUPTED,
            _ => 1,
        }
    }

    /// The word that stands before the message: the API's code or the outcome's kind.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refused) => Some(&refused.code),
            Self::FunctionFailed { kind, .. } => Some(kind),
            _ => None,
        }
    }

    /// Why, where the message alone does not say it.
    pub(crate) fn cause(&self) -> Option<String> {
        match self {
            Self::Local { source, .. } => Some(source.to_string()),
            Self::Unreachable { source, .. } | Self::BrokenOff { source, .. } => Some(deepest(source)),
            _ => None,
        }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> Option<String> {
        match self {
            Self::Refused(refused) if refused.code == "unauthorized" => Some(
                "pass --key, set FLUX_KEY, or run as the user who started `flux up`: the key is in its data directory, \
                 in the file api-key"
                    .to_owned(),
            ),
            Self::Refused(refused) if refused.code == "function_not_found" => {
                Some("`flux functions` lists what is there; `flux deploy DIR` adds one".to_owned())
            }
            Self::Unreachable { url, .. } => {
                Some(format!("is `flux up` running at {url}? Another address: --url or FLUX_URL"))
            }
            Self::BrokenOff { .. } => Some("was the gateway restarted? Try again".to_owned()),
            Self::Answer { .. } => Some("is it a Flux gateway, of this release? `flux version` says".to_owned()),
            Self::FunctionFailed { execution_id, .. } => Some(format!("its output: flux logs {execution_id}")),
            Self::Problem { remedy, .. } => remedy.clone(),
            Self::Usage { .. } => Some("`flux help` and `flux COMMAND --help` say what there is".to_owned()),
            Self::Interrupted { remedy } => Some(remedy.clone()),
            _ => None,
        }
    }
}

/// reqwest repeats itself at each level; only the last one says what happened.
fn deepest(error: &reqwest::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}
