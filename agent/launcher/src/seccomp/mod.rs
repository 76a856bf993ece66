//! The system calls that functions may make: a list of what they may not, as a program that the kernel runs.
//!
//! The filter is loaded once by each thread that starts functions, and inherited by them, so a start pays nothing for it:
//! loading even a short one in the child would cost a quarter of a bare start. The price is that the thread itself, and
//! the child before its `execve`, live under it. All that they need beyond a function is `setns`, with the exact flags of a
//! slot; slots are made by threads without a filter (`slot::makers`).
//!
//! Numbers newer than this list answer ENOSYS, as on the older kernel that programs must cope with anyhow. Calls that only
//! root may make are mostly refused by the kernel itself; here they are refused a second time, before any of their code runs.
//!
//! On kernels since 5.11 a call whose answer does not depend on its arguments costs a look at a bitmap.

mod program;
mod rules;

use std::io;

use crate::sys::filter;
use rules::Architecture;

/// Why functions are not filtered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    #[error("there is no list of system calls for this processor's architecture")]
    Architecture,
    #[error("the kernel did not take the filter: {0}; it needs CONFIG_SECCOMP_FILTER")]
    Refused(#[source] io::Error),
    #[error("the filter is loaded but `keyctl` is answered: something stands between this process and its kernel")]
    NoEffect,
}

/// The filter, ready to be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Filter(Vec<libc::sock_filter>);

impl Filter {
    pub(crate) fn try_new() -> Result<Self, SeccompError> {
        let architecture = Architecture::of_this_machine().ok_or(SeccompError::Architecture)?;
        Ok(Filter(rules::filter(architecture)))
    }

    /// Puts the calling thread, and all that it starts from now on, under the filter; for ever.
    pub(crate) fn load(&self) -> Result<(), SeccompError> {
        filter::load(&self.0).map_err(SeccompError::Refused)
    }

    /// Loads it in a thread of its own, and makes a call that it refuses.
    pub(crate) fn try_out(&self) -> Result<(), SeccompError> {
        let filter = self.clone();
        let tried = std::thread::spawn(move || {
            filter.load()?;
            if filter::keyctl_is_refused() { Ok(()) } else { Err(SeccompError::NoEffect) }
        });
        tried.join().unwrap_or(Err(SeccompError::NoEffect))
    }
}
