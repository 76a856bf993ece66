//! A real Firecracker: `make test-microvm`. `FLUX_FIRECRACKER` names it, `FLUX_MICROVM_IMAGE` an image, and `FLUX_JAILER` a jailer of
//! the same release, for a driver that is root.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use flux_driver_link::OpenCode;
use flux_firecracker::{Driver, Guest, Jailer, Settings, Size, Wish};
use flux_guest_image::{INITRAMFS, KERNEL, ROOTFS};
use flux_testkit_guest::{Line, Python};

const WITHIN: Duration = Duration::from_secs(20);
const SIZE: Size = Size { vcpus: 1, memory_mib: 224, cpu_millicores: 0 };
const UID: u32 = 1_879_048_192;

const HANDLER: &str = "import random, time, os
loaded = time.monotonic_ns()
calls = 0

def handler(payload, context):
    global calls
    calls += 1
    return {\"calls\": calls, \"loaded\": loaded, \"random\": os.urandom(8).hex(), \"time\": time.time()}
";

struct Place {
    folder: tempfile::TempDir,
    settings: Settings,
    code: OpenCode,
}

fn given(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

impl Place {
    fn new() -> Self {
        let program = given("FLUX_FIRECRACKER").expect("FLUX_FIRECRACKER names it");
        let image = given("FLUX_MICROVM_IMAGE").expect("FLUX_MICROVM_IMAGE names it");
        let folder = tempfile::tempdir().unwrap();
        let code = folder.path().join("code");
        fs::create_dir(&code).unwrap();
        fs::write(code.join("main.py"), HANDLER).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&code, Some(65534), Some(65534)).unwrap();
        }
        let [kernel, initramfs, rootfs] = [KERNEL, INITRAMFS, ROOTFS].map(|name| image.join(name));
        let mut settings = Settings::new(program, kernel, initramfs, rootfs, folder.path().join("driver"));
        let jailer = given("FLUX_JAILER").filter(|_| nix::unistd::geteuid().is_root());
        settings.jailer = jailer.map(|program| Jailer { program, first_uid: UID, uids: 4, cgroups: None });
        Self { folder, settings, code: OpenCode::known(&code).unwrap() }
    }

    fn wish(&self) -> Wish<'_> {
        Wish { function: "f@1", code: &self.code, code_digest: "c1", size: SIZE, snapshot: true }
    }
}

async fn line(guest: &mut Guest) -> Line {
    let stream = guest.connect(WITHIN).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    Line::woken(stream)
}

/// Nothing needs to boot for it: a guest that hangs is stopped, written and gone on with as well.
#[tokio::test]
#[ignore = "needs a real firecracker: make test-microvm"]
async fn firecracker_takes_what_the_driver_sends() {
    let place = Place::new();
    let driver = Driver::try_new(place.settings.clone()).await.unwrap();
    let mut guest = driver.start(&place.wish()).await.unwrap();
    assert!(!guest.is_restored());
    assert_eq!(guest.uid(), place.settings.jailer.as_ref().map(|_| UID));
    driver.snapshot(&mut guest).await.unwrap();
    assert_eq!(driver.snapshot_count(), 1);
    let clones = [driver.start(&place.wish()).await.unwrap(), driver.start(&place.wish()).await.unwrap()];
    assert!(clones.iter().all(|clone| clone.is_restored() && clone.uid() == guest.uid()));
    for guest in clones {
        guest.end().await;
    }
    guest.end().await;
    let guests = place.folder.path().join("driver/guests").join(place.settings.firecracker.file_name().unwrap());
    assert_eq!(fs::read_dir(guests).unwrap().count(), 0, "nothing is left");
}

/// The machine's KVM must boot Linux.
#[tokio::test]
#[ignore = "needs a real firecracker and a KVM that boots Linux: make test-microvm"]
async fn firecracker_boots_a_guest_whose_worker_is_cloned() {
    let place = Place::new();
    let driver = Driver::try_new(place.settings.clone()).await.unwrap();
    let mut guest = driver.start(&place.wish()).await.unwrap();
    let (worker, pid) = Python::start(line(&mut guest).await);
    drop(worker);
    driver.snapshot(&mut guest).await.unwrap();
    let (mut first, same) = Python::again(line(&mut guest).await);
    assert_eq!(same, pid);
    let answer = first.call("null").unwrap();
    assert!(answer.contains("\"calls\":1"), "{answer}");
    let mut clone = driver.start(&place.wish()).await.unwrap();
    assert!(clone.is_restored());
    let (mut second, same) = Python::again(line(&mut clone).await);
    assert_eq!(same, pid);
    let cloned = second.call("null").unwrap();
    assert!(cloned.contains("\"calls\":1"), "it has served nobody before: {cloned}");
    let field = |json: &str, name: &str| {
        json.split_once(&format!("\"{name}\":")).unwrap().1.split([',', '}']).next().unwrap().to_owned()
    };
    assert_eq!(field(&cloned, "loaded"), field(&answer, "loaded"), "loaded once");
    assert_ne!(field(&cloned, "random"), field(&answer, "random"));
    let (now, theirs) = (flux_protocol::time::now().as_millis() / 1000, field(&cloned, "time").parse::<f64>().unwrap());
    assert!(
        (f64::from(u32::try_from(now).unwrap()) - theirs).abs() < 5.0,
        "its clock was set: {theirs}, here it is {now}"
    );
}
