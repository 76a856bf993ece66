//! A worker that loads its handler before anybody calls it, so that a snapshot can be taken of it.
//!
//! Its caller notices nothing: what it says first is left out, since the worker has heard it, and what the worker answered to
//! that is heard when the caller listens.

use std::time::Duration;

use flux_protocol::limits;
use flux_shim::{FromShim, ToShim, frame};
use flux_worker::{Decoder, FromWorker, ToWorker};
use rand::{TryRngCore as _, rngs::OsRng};
use tokio::io::AsyncWriteExt as _;

use super::remote::{Met, Told};

/// Of what a handler's module may print while it is loaded and a snapshot can still be taken.
const PRINTED: usize = limits::MIB;

/// What came of loading.
pub(super) enum Loaded {
    /// The handler can be called.
    Ready(Told),
    /// It cannot, or nobody knows: its caller hears of it as of any worker.
    Otherwise(Told),
}

/// Has the worker load its handler.
pub(super) async fn load(met: &mut Met, loads: &[u8], within: Duration) -> Loaded {
    let mut told = Told { bytes: loads.len(), heard: Vec::new() };
    match tokio::time::timeout(within, until_ready(met, loads, &mut told.heard)).await {
        Ok(true) => Loaded::Ready(told),
        Ok(false) | Err(_) => Loaded::Otherwise(told),
    }
}

async fn until_ready(met: &mut Met, loads: &[u8], heard: &mut Vec<FromShim>) -> bool {
    let mut frames = Vec::new();
    for piece in loads.chunks(frame::CHUNK) {
        frame::encode_channel(piece, &mut frames);
    }
    if met.to_shim.write_all(&frames).await.is_err() {
        return false;
    }
    let mut decoder = Decoder::default();
    let mut printed = 0;
    while let Ok(Some(said)) = met.from_shim.next().await {
        let ready = match &said {
            FromShim::Channel { bytes, .. } => {
                decoder.buffer().extend_from_slice(bytes);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(FromWorker::Hello { .. })) => {}
                        Ok(Some(FromWorker::Ready { .. })) => break Some(true),
                        Ok(None) => break None,
                        _ => break Some(false),
                    }
                }
            }
            FromShim::Output(_, bytes) => {
                printed += bytes.len();
                (printed > PRINTED).then_some(false)
            }
            _ => Some(false),
        };
        heard.push(said);
        if let Some(ready) = ready {
            return ready;
        }
    }
    false
}

/// For a worker that was loaded before its guest was cloned: its caller hears what it would have said.
pub(super) fn of_clone(loads: &[u8]) -> Told {
    let mut bytes = Vec::new();
    FromWorker::encode_hello_and_ready("restored", &mut bytes);
    let heard = vec![FromShim::Channel { beside: 0, resident_bytes: 0, bytes }];
    Told { bytes: loads.len(), heard }
}

/// Has a worker that was cloned, or may be, begin its own randomness anew.
pub(super) async fn reseed(met: &mut Met) -> std::io::Result<()> {
    let mut seed = [0; flux_worker::frame::SEED];
    OsRng.try_fill_bytes(&mut seed).map_err(std::io::Error::other)?;
    let (mut said, mut frames) = (Vec::new(), Vec::new());
    ToWorker::Reseed(&seed).encode_head(&mut said);
    ToShim::Channel(said).encode(&mut frames);
    met.to_shim.write_all(&frames).await
}
