//! A worker's own server: the socket that listens for it, and what its process is told of it.

use std::borrow::Cow;
use std::io;
use std::net::TcpListener;
use std::path::Path;

use crate::wire::{RUNTIME_API, SpawnRequest};

/// Where programs of a Lambda package look for what they are linked with.
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// A socket that listens, and the variables that say so.
#[derive(Debug)]
pub(super) struct Listening {
    pub(super) socket: TcpListener,
    variables: Vec<(&'static str, String)>,
}

impl Listening {
    /// `code` is where the worker sees its code.
    pub(super) fn new(socket: TcpListener, code: &Path, request: &SpawnRequest) -> io::Result<Self> {
        let code = code.to_string_lossy();
        let mut variables =
            vec![(RUNTIME_API, socket.local_addr()?.to_string()), ("LAMBDA_TASK_ROOT", code.clone().into_owned())];
        if !request.env.iter().any(|(name, _)| name == LIBRARIES) {
            variables.push((LIBRARIES, format!("{code}:{code}/lib")));
        }
        Ok(Listening { socket, variables })
    }

    /// What is added to a process's environment.
    pub(super) fn added_to<'a>(
        this: Option<&'a Self>,
        extra: &'a [(&'a str, &'a str)],
    ) -> Cow<'a, [(&'a str, &'a str)]> {
        match this {
            None => Cow::Borrowed(extra),
            Some(this) => {
                let own = this.variables.iter().map(|(name, value)| (*name, value.as_str()));
                Cow::Owned(extra.iter().copied().chain(own).collect())
            }
        }
    }
}
