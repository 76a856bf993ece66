//! `flux-shim [--stay] [--guest] connect PATH | listen PATH | vsock PORT`
//!
//! Without `--stay` the end of the first connection is the end of all. As a guest's first program it needs no arguments.

use std::{ffi::OsString, io, process::ExitCode};

use flux_shim::{Endpoint, Over, Place, Shim};

/// As a process that SIGTERM ended is told.
const TERMINATED: u8 = 128 + 15;

fn main() -> ExitCode {
    if flux_shim::guest::is_here() {
        flux_shim::guest::run();
    }
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut has = |flag: &str| {
        let before = args.len();
        args.retain(|arg| arg != flag);
        args.len() < before
    };
    let (stay, guest) = (has("--stay"), has("--guest"));
    let endpoint = match &args[..] {
        [how, wherever] => Endpoint::parse(how, wherever),
        _ => None,
    };
    let Some(endpoint) = endpoint else {
        eprintln!("usage: flux-shim [--stay] [--guest] connect PATH | listen PATH | vsock PORT");
        return ExitCode::from(2);
    };
    match run(&endpoint, stay, if guest { Place::Guest } else { Place::Container }) {
        Ok(Over::Disconnected) => ExitCode::SUCCESS,
        Ok(Over::Asked) => ExitCode::from(TERMINATED),
        Err(error) => {
            eprintln!("flux-shim: {error}");
            ExitCode::from(70)
        }
    }
}

fn run(endpoint: &Endpoint, stay: bool, place: Place) -> io::Result<Over> {
    let mut shim = Shim::new(place)?;
    let mut streams = endpoint.open()?;
    let mut over = Over::Disconnected;
    while let Some(stream) = streams.next_stream()? {
        over = shim.serve(stream);
        if !stay || over == Over::Asked {
            break;
        }
    }
    shim.end_all();
    Ok(over)
}
