//! Slots: what is dear to make, made ahead.

use crate::sys::process;

/// The launcher's end of a holder.
#[derive(Debug)]
pub(crate) struct HolderLink {
    pub(crate) pid: i32,
}

impl HolderLink {
    /// Ends everything in the slot but its holder.
    pub(crate) fn kill_all(&self) {
        let _ = process::kill(self.pid, 0);
    }
}
