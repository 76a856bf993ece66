//! What every process of Flux needs before it can do its own work: configuration, telemetry, a
//! supervisor for its tasks, and shutdown.
//!
//! **Architecture Invariant:** nothing here knows what a function is.

pub mod autoscaler_settings;
pub mod config;
mod former;
pub mod settings;
pub mod shutdown;
pub mod tasks;
pub mod telemetry;

pub use settings::Settings;
pub use shutdown::{Shutdown, ShutdownSignal};
pub use tasks::Tasks;

/// Makes rustls on aws-lc-rs the one TLS provider of the process. First thing in every `main`:
/// where two providers are linked, rustls panics at the first handshake if none was chosen.
pub fn install_tls_provider() {
    // An error means that it was installed before, which is what is wanted.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The async runtime of a process, on half of the machine's cores.
///
/// The other half is the queue's server and the functions themselves. With a thread for every core each task that wakes
/// another also wakes an idle thread on a core that something else is running on: some six context switches of a call.
///
/// # Errors
/// The machine gives no threads, or no event queue.
pub fn async_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread().worker_threads((cores / 2).max(1)).enable_all().build()
}
