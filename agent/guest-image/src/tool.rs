//! Programs of Debian that do the work.

use std::{
    io,
    process::{Command, Output},
};

/// Of what a tool said that is told.
const SAID_CHARS: usize = 600;

#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("`{tool}` cannot be run; Debian's package {package} has it")]
    Missing {
        tool: String,
        package: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("`{command}` failed: {said}")]
    Failed { command: String, said: String },
}

/// Runs it to its end; what it printed.
pub(crate) fn run(command: &mut Command, package: &'static str) -> Result<Output, ToolError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| ToolError::Missing { tool, package, source })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(failed(command, &output.stderr))
}

pub(crate) fn failed(command: &Command, said: &[u8]) -> ToolError {
    let said = String::from_utf8_lossy(said);
    // The last lines say why.
    let from = said.char_indices().rev().nth(SAID_CHARS).map_or(0, |(at, _)| at);
    let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let command = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    ToolError::Failed { command: command.chars().take(200).collect(), said: said[from..].trim().to_owned() }
}
