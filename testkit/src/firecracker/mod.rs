//! A stand-in for Firecracker: its command line, its API and its end of a guest's vsock, with a process as the guest.
//!
//! It is as strict as the real one (release 1.16.1) about fields, values and order: one list of requests is run against both
//! (`agent/firecracker/tests/it/api.rs`). What it stands for it is not: there is no guest with a kernel of its own.
//!
//! Faults are asked for on its command line, by a script in the place of the program: see [`StandIn`].

mod guest;
mod serve;
mod shapes;
mod vm;

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

pub use serve::run;

use crate::FluxBin;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This request (`PUT /snapshot/load`) is refused.
    Refuse(&'static str),
    /// It is never answered.
    Hang(&'static str),
    /// Firecracker dies in the midst of it.
    Crash(&'static str),
    /// The guest never listens.
    Deaf,
    /// The guest ends as soon as it is booted.
    Dies,
    /// Firecracker ends before it listens.
    Useless,
}

/// A program in the place of `firecracker`.
#[derive(Debug)]
pub struct StandIn {
    pub program: PathBuf,
}

impl StandIn {
    /// Makes the program in `folder`. `guest` is run as the guest, with a Unix socket's path to listen at as its last argument;
    /// without one the guest answers each connection with a line about itself and echoes what it hears.
    ///
    /// # Panics
    /// The folder cannot be written.
    pub fn make(folder: &Path, faults: &[Fault], guest: Option<&str>) -> Self {
        let mut line = format!("#!/bin/sh\nexec {}", FluxBin::locate("flux-firecracker-stand-in").display());
        for fault in faults {
            let said = match fault {
                Fault::Refuse(request) => format!("refuse={request}"),
                Fault::Hang(request) => format!("hang={request}"),
                Fault::Crash(request) => format!("crash={request}"),
                Fault::Deaf => "deaf".to_owned(),
                Fault::Dies => "dies".to_owned(),
                Fault::Useless => "useless".to_owned(),
            };
            line.push_str(&format!(" --fault '{said}'"));
        }
        if let Some(guest) = guest {
            line.push_str(&format!(" --guest '{guest}'"));
        }
        line.push_str(" \"$@\"\n");
        let program = folder.join("firecracker");
        let mut file = std::fs::File::create(&program).expect("the folder can be written");
        file.write_all(line.as_bytes()).expect("written");
        file.set_permissions(std::fs::Permissions::from_mode(0o755)).expect("changed");
        Self { program }
    }
}
