//! Runs a language's own installer, shows what it is at, and keeps what it said last.

use std::{collections::VecDeque, process::Stdio, time::Duration};

use flux_protocol::limits;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader},
    process::Command,
};

use crate::{error::CliError, output::Output, progress};

/// What is told of an installation that failed.
const LAST_LINES: usize = 12;
const LINE: usize = 300;

/// Fails with the last lines that it printed.
pub(super) async fn run(mut command: Command, what: &str, remedy: String, out: Output) -> Result<(), CliError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let cannot = |source| CliError::Local { what: format!("{what}: `{program}` cannot be run"), source };
    let mut child = command.spawn().map_err(cannot)?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(CliError::problem(format!("{what}: `{program}` has no output"), remedy));
    };
    let bar = progress::spinner(out, what);
    let mut last = VecDeque::new();
    let mut stdout = BufReader::new(stdout);
    let mut stderr = BufReader::new(stderr);
    let (mut said, mut warned) = (Vec::new(), Vec::new());
    let (mut more_said, mut more_warned) = (true, true);
    let read = async {
        while more_said || more_warned {
            let line = tokio::select! {
                more = line_of(&mut stdout, &mut said), if more_said => { more_said = more; &mut said }
                more = line_of(&mut stderr, &mut warned), if more_warned => { more_warned = more; &mut warned }
            };
            let text: String = String::from_utf8_lossy(line).trim_end().chars().take(LINE).collect();
            line.clear();
            if text.trim().is_empty() {
                continue;
            }
            bar.set_message(format!("{what}: {}", text.trim_start()));
            if last.len() == LAST_LINES {
                last.pop_front();
            }
            last.push_back(text);
        }
        child.wait().await
    };
    let ended = tokio::time::timeout(limits::INSTALL, read).await;
    bar.finish_and_clear();
    let problem = match ended {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => format!("{program} ended with {status}"),
        Ok(Err(source)) => return Err(cannot(source)),
        Err(_) => format!("{program} took longer than {}", minutes(limits::INSTALL)),
    };
    let last: Vec<String> = last.into_iter().map(|line| format!("\n    {line}")).collect();
    Err(CliError::problem(format!("{what} failed: {problem}; it said last:{}", last.concat()), remedy))
}

/// Reads on to the end of a line, however it is called again. `false` at the end of all.
async fn line_of(from: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> bool {
    from.read_until(b'\n', line).await.is_ok_and(|count| count > 0)
}

fn minutes(time: Duration) -> String {
    format!("{} minutes", time.as_secs() / 60)
}

/// What a program prints, in one line.
pub(super) async fn output_of(program: &str, arguments: &[&str]) -> Result<String, CliError> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().await;
    let output = output.map_err(|source| CliError::local(format!("`{program}` cannot be run"), source))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
