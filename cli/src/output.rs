//! The one room in which the command prints. Results go to standard output, everything else to standard error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the room")]

use std::io::{self, IsTerminal as _, Write};

use serde_json::{Value, json};

use crate::error::CliError;

/// As a shell reports a program whose reader went away.
const BROKEN_PIPE: i32 = 141;

/// How and to whom to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    colour: bool,
    pub(crate) stdout_is_terminal: bool,
    pub(crate) stderr_is_terminal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Green,
    Yellow,
    Red,
    Dim,
    Bold,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Dim => "2",
            Self::Bold => "1",
        }
    }

    /// The colour that a status of an execution or agent is shown in.
    pub(crate) fn of_status(status: &str) -> Option<Self> {
        match status {
            "success" | "online" => Some(Self::Green),
            "running" | "queued" | "busy" | "draining" => Some(Self::Yellow),
            "failed" | "offline" => Some(Self::Red),
            "cancelled" => Some(Self::Dim),
            _ => None,
        }
    }
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let stdout_is_terminal = io::stdout().is_terminal();
        let wanted = flux_runtime::config::env("NO_COLOR").is_none()
            && flux_runtime::config::env("TERM").is_none_or(|term| term != "dumb");
        Self {
            json,
            colour: wanted && stdout_is_terminal,
            stdout_is_terminal,
            stderr_is_terminal: io::stderr().is_terminal(),
        }
    }

    pub(crate) fn paint(self, colour: Option<Colour>, text: &str) -> String {
        match colour {
            Some(colour) if self.colour => format!("\x1b[{}m{text}\x1b[0m", colour.code()),
            _ => text.to_owned(),
        }
    }

    /// A line of the result.
    pub(crate) fn line(self, text: impl AsRef<str>) {
        let mut line = text.as_ref().to_owned();
        line.push('\n');
        self.bytes(line.as_bytes());
    }

    /// Bytes of the result, at once.
    pub(crate) fn bytes(self, bytes: &[u8]) {
        let mut stdout = io::stdout().lock();
        settle(stdout.write_all(bytes).and_then(|()| stdout.flush()));
    }

    pub(crate) fn error_bytes(self, bytes: &[u8]) {
        let mut stderr = io::stderr().lock();
        settle(stderr.write_all(bytes).and_then(|()| stderr.flush()));
    }

    /// What is not part of the result: progress, hints.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
    }

    /// A document for scripts; for people's eyes it is spread over lines.
    pub(crate) fn json(self, value: &Value) {
        let text = if self.stdout_is_terminal { format!("{value:#}") } else { value.to_string() };
        self.line(text);
    }

    /// A document as it came: neither its numbers nor the order of its keys change.
    pub(crate) fn json_text(self, text: &[u8]) {
        if self.stdout_is_terminal
            && let Ok(value) = serde_json::from_slice(text)
        {
            return self.json(&value);
        }
        self.bytes(&[text.trim_ascii_end(), b"\n"].concat());
    }

    /// Clears the terminal, for a table that is drawn again.
    pub(crate) fn clear(self) {
        if self.stdout_is_terminal {
            self.bytes(b"\x1b[H\x1b[2J\x1b[3J");
        }
    }

    pub(crate) fn error(self, error: &CliError) {
        if self.json {
            let details = match error {
                CliError::Refused(refused) => refused.details.clone(),
                _ => Value::Null,
            };
            let line = json!({"error": {
                "code": error.code(), "message": error.to_string(), "cause": error.cause(), "remedy": error.remedy(),
                "details": details,
            }});
            let _ = writeln!(io::stderr().lock(), "{line}");
            return;
        }
        let head = if self.stderr_is_terminal && self.colour { "\x1b[31merror:\x1b[0m" } else { "error:" };
        let mut text = match error.code() {
            Some(code) => format!("{head} {code}: {error}"),
            None => format!("{head} {error}"),
        };
        if let Some(cause) = error.cause() {
            text.push_str(&format!(": {cause}"));
        }
        if let Some(remedy) = error.remedy() {
            text.push_str(&format!("\n  {remedy}"));
        }
        if let CliError::Refused(refused) = error
            && let Some(id) = refused.request_id.as_deref().filter(|_| refused.status >= 500)
        {
            text.push_str(&format!("\n  the gateway's log has more under request id {id}"));
        }
        self.note(text);
    }
}

/// A reader that went away (`flux ps | head -1`) ends the command quietly; so does a full disk, but saying so.
fn settle(written: io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(BROKEN_PIPE);
    }
    eprintln!("error: the output cannot be written: {error}");
    std::process::exit(1);
}
