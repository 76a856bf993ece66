//! What a guest is told first: it may go on where another was.

use std::{fs::File, io, os::fd::AsRawFd as _};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};

use crate::frame::SEED;

/// `RNDADDENTROPY` of <linux/random.h>: adds to the pool, and counts it. A guest that has just booted has nothing else.
const ADD: nix::libc::Ioctl = 0x4008_5203;
/// `RNDRESEEDCRNG`: what was added is used from now on, and not within a minute.
const RESEED: nix::libc::Ioctl = 0x5207;

/// `struct rand_pool_info` with room for these bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    buffer: [u8; SEED],
}

/// Sets the clock, and has the kernel's generator begin anew with these bytes.
pub(crate) fn wake(now_us: u64, seed: &[u8; SEED]) -> io::Result<()> {
    let seconds = i64::try_from(now_us / 1_000_000).map_err(io::Error::other)?;
    let nanoseconds = i64::try_from(now_us % 1_000_000 * 1000).map_err(io::Error::other)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))?;
    let bytes = i32::try_from(SEED).map_err(io::Error::other)?;
    reseed(&File::open("/dev/urandom")?, &PoolInfo { entropy_bits: bytes * 8, bytes, buffer: *seed })
}

#[allow(unsafe_code)]
fn reseed(random: &File, pool: &PoolInfo) -> io::Result<()> {
    let random = random.as_raw_fd();
    // SAFETY: `pool` lives longer than the request, which reads as many bytes from its buffer as it says are there.
    let added = unsafe { nix::libc::ioctl(random, ADD, std::ptr::from_ref(pool)) };
    if added < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request takes no argument, and the descriptor is open for as long as it is borrowed.
    let reseeded = unsafe { nix::libc::ioctl(random, RESEED) };
    if reseeded < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
