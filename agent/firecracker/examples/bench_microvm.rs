//! `make bench-microvm`: from a wish to the first answer of a Python handler, cold and restored, and a warm call. Medians.
//!
//! The environment names a real Firecracker (`FLUX_FIRECRACKER`) and an image (`FLUX_MICROVM_IMAGE`).

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use flux_driver_link::OpenCode;
use flux_firecracker::{Driver, Guest, Settings, Size, Wish};
use flux_guest_image::{INITRAMFS, KERNEL, ROOTFS};
use flux_testkit_guest::{Line, Python};

const STARTS: usize = 10;
const CALLS: usize = 1000;
const WITHIN: Duration = Duration::from_secs(20);
const SIZE: Size = Size { vcpus: 1, memory_mib: 224, cpu_millicores: 0 };

fn given(name: &str) -> PathBuf {
    std::env::var_os(name).map(PathBuf::from).unwrap_or_else(|| panic!("{name} is not set: run `make bench-microvm`"))
}

async fn line(guest: &mut Guest) -> Line {
    let stream = guest.connect(WITHIN).await.expect("the guest answers").into_std().expect("a socket");
    stream.set_nonblocking(false).expect("changed");
    Line::woken(stream)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let code = folder.path().join("code");
    fs::create_dir(&code).expect("made");
    fs::write(code.join("main.py"), "def handler(payload, context):\n    return payload\n").expect("written");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&code, Some(65534), Some(65534)).expect("given");
    }
    let code = OpenCode::known(&code).expect("opened");
    let image = given("FLUX_MICROVM_IMAGE");
    let [kernel, initramfs, rootfs] = [KERNEL, INITRAMFS, ROOTFS].map(|name| image.join(name));
    let settings = Settings::new(given("FLUX_FIRECRACKER"), kernel, initramfs, rootfs, folder.path().join("driver"));
    let driver = Driver::try_new(settings).await.expect("a driver");
    let wish = |snapshot| Wish { function: "f@1", code: &code, code_digest: "c1", size: SIZE, snapshot };

    let mut cold = Vec::new();
    for _ in 0..STARTS {
        let began = Instant::now();
        let mut guest = driver.start(&wish(false)).await.expect("a guest");
        let (mut worker, _) = Python::start(line(&mut guest).await);
        worker.call("1").expect("an answer");
        cold.push(began.elapsed());
        guest.end().await;
    }
    let mut guest = driver.start(&wish(true)).await.expect("a guest");
    drop(Python::start(line(&mut guest).await));
    driver.snapshot(&mut guest).await.expect("a snapshot");
    guest.end().await;
    let (mut restored, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let began = Instant::now();
        let mut clone = driver.start(&wish(true)).await.expect("a clone");
        let (mut worker, _) = Python::again(line(&mut clone).await);
        worker.call("1").expect("an answer");
        restored.push(began.elapsed());
        for _ in 0..CALLS / STARTS {
            let began = Instant::now();
            worker.call("1").expect("an answer");
            warm.push(began.elapsed());
        }
        clone.end().await;
    }
    let (cold, restored, warm) = (median(cold), median(restored), median(warm));
    writeln!(std::io::stdout(), "cold {cold:.1} ms   restored {restored:.1} ms   warm {warm:.3} ms").expect("said");
}
