//! What every process of Flux needs before it can do its own work: configuration, telemetry, a
//! supervisor for its tasks, and shutdown.
//!
//! **Architecture Invariant:** nothing here knows what a function is.

pub mod config;
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
