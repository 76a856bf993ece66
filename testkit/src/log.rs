//! What a process printed: kept in a file, shown when the test fails.

use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
    process::Stdio,
};

/// A failing test shows this many of the last lines of each process.
const LINES_SHOWN: usize = 200;

#[derive(Debug)]
pub(crate) struct Log {
    of: String,
    path: PathBuf,
}

impl Log {
    pub(crate) fn new(of: impl Into<String>, path: PathBuf) -> Self {
        Self { of: of.into(), path }
    }

    /// An end to write to. Appends, so that a restarted server continues its log.
    pub(crate) fn writer(&self) -> Stdio {
        let file: File =
            OpenOptions::new().create(true).append(true).open(&self.path).expect("cannot open a process's log file");
        file.into()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    pub(crate) fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines.len().min(LINES_SHOWN);
        format!(
            "--- {}: last {shown} of {} lines\n{}\n---",
            self.of,
            lines.len(),
            lines[lines.len() - shown..].join("\n")
        )
    }

    /// For `Drop`: says what happened, if the test is failing.
    #[allow(clippy::print_stderr)] // a failing test's own output
    pub(crate) fn show_if_panicking(&self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}
