//! The worker: a gateway and an agent in one runtime.

use std::{net::SocketAddr, path::PathBuf};

use crate::{error::CliError, output::Output};

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    #[arg(long)]
    settings: PathBuf,
    #[arg(long)]
    listen: SocketAddr,
}

pub(crate) fn serve(args: &ServeArgs, out: Output) -> Result<(), CliError> {
    out.note(format!("{args:?}"));
    std::thread::sleep(std::time::Duration::from_secs(1000));
    Ok(())
}
