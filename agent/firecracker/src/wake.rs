//! The first frame of a connection to a guest's agent.

/// Where the agent in a guest listens.
pub const PORT: u32 = 7227;
/// Random bytes in it.
pub const SEED: usize = 64;
const KIND: u8 = 5;

/// The time (`CLOCK_REALTIME`), and what the guest's randomness is to begin with.
pub(crate) fn frame(now_us: i64, seed: &[u8; SEED]) -> Vec<u8> {
    let length = u32::try_from(1 + 8 + SEED).unwrap_or(u32::MAX);
    let mut frame = length.to_be_bytes().to_vec();
    frame.push(KIND);
    frame.extend_from_slice(&now_us.to_be_bytes());
    frame.extend_from_slice(seed);
    frame
}
