//! The three descriptors of a process: its payload to read from, and two pipes to write to.
//!
//! A small payload is written whole into a pipe before the process exists, so that nothing has to feed it later; a
//! larger one lies in a sealed memfd. Either can be read at the function's own pace, or not at all.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd, OwnedFd},
};

use flux_protocol::limits::KIB;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SealFlag, fcntl},
    libc::PIPE_BUF,
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::{Mode, fchmod},
    },
    unistd::{Whence, lseek, pipe2},
};

/// What a pipe takes at once, by default: a larger write would have to wait for its reader.
pub(super) const PIPE_BYTES: usize = 64 * KIB;

/// A descriptor that gives `payload` and then its end.
pub(super) fn stdin(payload: &[u8]) -> io::Result<OwnedFd> {
    if payload.is_empty() {
        return Ok(File::open("/dev/null")?.into());
    }
    if payload.len() <= PIPE_BYTES
        && let Some(pipe) = full_pipe(payload)?
    {
        return Ok(pipe);
    }
    sealed(payload)
}

/// `None` where the pipe is smaller than usual: a user with many pipes gets pipes of one page.
fn full_pipe(payload: &[u8]) -> io::Result<Option<OwnedFd>> {
    // Even the smallest new pipe takes this much at once, so that writing cannot wait.
    let fits = payload.len() <= PIPE_BUF;
    let (read, write) = pipe2(if fits { OFlag::O_CLOEXEC } else { OFlag::O_CLOEXEC | OFlag::O_NONBLOCK })?;
    let written = match nix::unistd::write(&write, payload) {
        Ok(written) => written,
        Err(Errno::EAGAIN) => 0,
        Err(error) => return Err(error.into()),
    };
    if written < payload.len() {
        return Ok(None);
    }
    if !fits {
        // The process reads as any other: waiting, though there is nothing to wait for.
        fcntl(&read, FcntlArg::F_SETFL(OFlag::empty()))?;
    }
    open_to_all(&read)?;
    Ok(Some(read))
}

fn sealed(payload: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create(c"flux-payload", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(memory);
    file.write_all(payload)?;
    lseek(&file, 0, Whence::SeekSet)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// A pipe to write to, and the end to read from, which never waits.
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    open_to_all(&write)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((write, read))
}

/// The function runs as another user, and opening `/dev/stdin` or `/dev/stdout` looks at the pipe's own mode. Nobody
/// else can reach a pipe, which has no name.
fn open_to_all(pipe: impl AsFd) -> io::Result<()> {
    fchmod(pipe, Mode::from_bits_truncate(0o666)).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn every_size_is_read_back_whole() {
        for size in [0, 1, 4096, PIPE_BYTES, PIPE_BYTES + 1, 3 << 20] {
            let payload: Vec<u8> = (0..size).map(|at| u8::try_from(at % 251).expect("below 251")).collect();
            let mut read = Vec::new();
            File::from(stdin(&payload).expect("a descriptor")).read_to_end(&mut read).expect("read");
            assert!(read == payload, "{size} bytes");
        }
    }
}
