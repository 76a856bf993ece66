//! `flux init`: a small function that works, to begin from.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use clap::ValueEnum;
use flux_protocol::{FunctionName, function::Runtime};
use serde_json::json;

use super::function_name;
use crate::{error::CliError, output::Output, project::CONFIGURATION};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    kind: Kind,
    /// The function's name, and that of its new directory
    #[arg(value_parser = function_name)]
    name: FunctionName,
    /// Another directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Python,
    Node,
    Bash,
    Rust,
}

/// A file to write: path, mode, text with `{{…}}` to be filled in.
type Template = (&'static str, u32, &'static str);

impl Kind {
    fn files(self) -> &'static [Template] {
        match self {
            Self::Python => &[("handler.py", 0o644, include_str!("../../templates/python/handler.py"))],
            Self::Node => &[("handler.js", 0o644, include_str!("../../templates/node/handler.js"))],
            Self::Bash => &[("handler.sh", 0o755, include_str!("../../templates/bash/handler.sh"))],
            Self::Rust => &[
                ("Cargo.toml", 0o644, include_str!("../../templates/rust/Cargo.toml")),
                ("src/main.rs", 0o644, include_str!("../../templates/rust/main.rs")),
                ("build.sh", 0o755, include_str!("../../templates/rust/build.sh")),
                (".fluxignore", 0o644, include_str!("../../templates/rust/fluxignore")),
                (".gitignore", 0o644, include_str!("../../templates/rust/gitignore")),
            ],
        }
    }

    fn handler(self) -> &'static str {
        match self {
            Self::Python => "handler.handler",
            Self::Node => "handler.js",
            Self::Bash => "handler.sh",
            Self::Rust => "handler",
        }
    }

    fn runtime(self) -> Runtime {
        match self {
            Self::Python => Runtime::Python,
            Self::Node => Runtime::Node,
            Self::Bash => Runtime::Bash,
            Self::Rust => Runtime::Native,
        }
    }

    /// Millicores: an interpreter that starts takes as long as its share lets it.
    fn cpu(self) -> u32 {
        if self.runtime().has_workers() { 500 } else { 100 }
    }

    fn warm(self) -> &'static str {
        if self.runtime().has_workers() {
            "keep_warm: 60 # seconds that its process waits for the next call\n"
        } else {
            ""
        }
    }

    /// What the function sees, for the README.
    fn seen(self) -> &'static str {
        if self.runtime().has_workers() { SEEN_BY_HANDLERS } else { SEEN_BY_PROCESSES }
    }

    /// MB: what the interpreter needs, with room.
    fn memory(self) -> u32 {
        match self {
            Self::Python | Self::Node => 256,
            Self::Bash | Self::Rust => 64,
        }
    }
}

const SEEN_BY_HANDLERS: &str = "The handler is given the payload (up to 64 MiB of JSON, or text)\nand a context that says which execution this is, its attempt, its arguments (`--arg`) and its deadline. Packages beside it\n(`pip install -t . NAME`, `npm install NAME`) are found. Files can be written below `$TMPDIR`, and last as long as the process.";
const SEEN_BY_PROCESSES: &str = "The payload arrives on standard input (up to 64 MiB) and, where it is\nsmall, in `FLUX_PAYLOAD`; arguments (`--arg`) arrive as arguments. `FLUX_EXECUTION_ID`, `FLUX_ATTEMPT` and\n`FLUX_DEADLINE` say which execution this is. Files can be written below `$TMPDIR`, and are gone afterwards.";

const FOR_ALL: [Template; 2] = [
    (CONFIGURATION, 0o644, include_str!("../../templates/flux.yaml")),
    ("README.md", 0o644, include_str!("../../templates/README.md")),
];

pub(crate) fn run(args: &Args, out: Output) -> Result<(), CliError> {
    let dir = args.dir.clone().unwrap_or_else(|| args.name.as_str().into());
    let shown = dir.display();
    let written = |source| CliError::local(format!("{shown} cannot be written"), source);
    if dir.exists() && fs::read_dir(&dir).map_err(written)?.next().is_some() {
        return Err(CliError::problem(
            format!("{shown} is there already, and is not empty"),
            "choose another name or --dir, or remove it first",
        ));
    }
    let build = if matches!(args.kind, Kind::Rust) { "./build.sh\n" } else { "" };
    let fill = |path: &str, text: &str| {
        let name = if path == CONFIGURATION { yaml_text(args.name.as_str()) } else { args.name.to_string() };
        text.replace("{{name}}", &name)
            .replace("{{handler}}", args.kind.handler())
            .replace("{{runtime}}", args.kind.runtime().as_str())
            .replace("{{cpu}}", &args.kind.cpu().to_string())
            .replace("{{memory}}", &args.kind.memory().to_string())
            .replace("{{warm}}", args.kind.warm())
            .replace("{{seen}}", args.kind.seen())
            .replace("{{build}}", build)
    };
    for (path, mode, text) in FOR_ALL.iter().chain(args.kind.files()) {
        let text = fill(path, text);
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&dir)).map_err(written)?;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(*mode).open(&path).map_err(written)?;
        file.write_all(text.as_bytes()).map_err(written)?;
    }
    if out.json {
        let files: Vec<_> = FOR_ALL.iter().chain(args.kind.files()).map(|(path, ..)| dir.join(path)).collect();
        out.json(&json!({ "name": args.name, "dir": dir, "files": files }));
        return Ok(());
    }
    out.line(format!("{shown} holds a function that works. Next:\n"));
    if !build.is_empty() {
        out.line(format!("  (cd {shown} && ./build.sh)"));
    }
    out.line(format!("  flux deploy {shown}\n  flux invoke {} '{{\"name\": \"Ada\"}}'", args.name));
    Ok(())
}

/// A name as YAML text: `1`, `true` and `no` would be something else.
fn yaml_text(name: &str) -> String {
    let word = name.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_' || b == b'-') && !name.starts_with('-');
    let reserved = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let plain = word && !reserved.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
    if plain { name.to_owned() } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_can_be_read_whatever_the_name() {
        for name in ["hello", "no", "1", "1e3", "-", "null", "a-b_c", "0x10"] {
            let text = FOR_ALL[0]
                .2
                .replace("{{name}}", &yaml_text(name))
                .replace("{{handler}}", "h.f")
                .replace("{{runtime}}", "python")
                .replace("{{cpu}}", "500")
                .replace("{{memory}}", "64")
                .replace("{{warm}}", Kind::Python.warm());
            let spec = flux_protocol::function::parse_yaml(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(spec.name.as_str(), name);
        }
    }
}
