//! `flux microvm`: what an agent's machine needs for `isolation: microvm`.

use std::path::PathBuf;

use flux_guest_image::{ImageError, Manifest, PACKAGES};
use serde_json::json;

use crate::{error::CliError, output::Output};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make what guests boot (kernel, initramfs, root file system) of Debian's packages
    Build(BuildArgs),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// Where to; `agent.microvm.image` is to name it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the root file system holds, beside what these need
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',', default_values = PACKAGES)]
    packages: Vec<String>,
}

pub(crate) fn run(args: Args, out: Output) -> Result<(), CliError> {
    let Command::Build(BuildArgs { out: folder, packages }) = args.command;
    let made = flux_guest_image::build(&folder, &packages, &mut |said| out.note(said)).map_err(failed)?;
    let Manifest { packages, kernel, .. } = made;
    if out.json {
        out.json(&json!({ "image": folder, "kernel": kernel, "packages": packages }));
    } else {
        out.line(format!("{}: {kernel}, {} packages", folder.display(), packages.len()));
        out.note(format!(
            "set `agent.microvm.image: {}` (or FLUX_AGENT__MICROVM__IMAGE) where the agent runs",
            folder.display()
        ));
    }
    Ok(())
}

fn failed(error: ImageError) -> CliError {
    let mut what = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        what.push_str(": ");
        what.push_str(&cause.to_string());
        source = cause.source();
    }
    CliError::problem(
        what,
        "it is made of Debian's packages with Debian's tools: run it on a Debian machine, after `apt-get update`",
    )
}
