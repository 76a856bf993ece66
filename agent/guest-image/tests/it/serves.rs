//! One guest is booted for all of it, since it takes seconds.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use flux_shim::{FromShim, Status, ToShim, frame::SEED, guest::USER};
use flux_testkit_guest::{Guest, Image, Python, function};

const HANDLER: &str = r#"
import os, socket, time
count = 0

def handler(payload, context):
    global count
    count += 1
    print("call", count)
    if payload.get("eat"):
        [bytearray(b"x" * (1 << 20)) for _ in range(payload["eat"])]
    return {
        "n": payload["n"], "count": count, "pid": os.getpid(), "uid": os.getuid(), "time": time.time(),
        "random": os.urandom(16).hex(), "kernel": os.uname().release,
        "loopback": socket.create_server(("127.0.0.1", 0)).getsockname()[0],
    }
"#;

fn code() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8], mode: u32| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    file("main.py", HANDLER.as_bytes(), 0o644);
    file(
        "script",
        b"#!/bin/sh\nread line; echo \"$line from $(id -u)\"; echo told >&2; touch here 2>/dev/null || exit 7\n",
        0o755,
    );
    file("held_in", include_bytes!("../../../tests/it/held_in.sh"), 0o755);
    // Any static program is a native function.
    file("native", flux_shim_binary::SHIM, 0o755);
    folder
}

/// A field of a flat JSON object.
fn field<'a>(json: &'a str, name: &str) -> &'a str {
    let (_, rest) = json.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {json}"));
    rest.trim_start().split([',', '}']).next().unwrap().trim_matches('"')
}

#[test]
fn a_guest_serves_and_is_still_there_for_the_next_connection() {
    let image = Image::of_tests();
    let mut guest = Guest::boot(&image, code().path(), 1, 256);
    let mut line = guest.connect();

    // Fresh processes: a script, and a program of the machine's own kind.
    let done = line.run(function("./script"), b"hello\n");
    assert_eq!(done.stdout, format!("hello from {USER}\n"));
    assert_eq!((done.stderr.as_str(), done.exit.status), ("told\n", Status::Exited(7)), "code cannot be written");
    let done = line.run(function("./native"), b"");
    assert!(done.stderr.starts_with("usage: flux-shim"), "{}", done.stderr);
    assert_eq!(done.exit.status, Status::Exited(2));

    // What holds it in, as in the other tiers.
    let done = line.run(function("./held_in"), b"");
    let said: Vec<&str> = done.stdout.lines().collect();
    assert!(said.iter().all(|line| !line.starts_with("wrote")), "{done:?}");
    for expected in [format!("user {USER}").as_str(), "privileges 1 1", "tmp", "full"] {
        assert!(said.contains(&expected), "{expected}: {done:?}");
    }
    let devices = said.last().unwrap();
    assert!(devices.contains("lo") && !devices.contains("eth") && !devices.contains("enp"), "{done:?}");

    // A worker: loaded, as before a snapshot.
    let (worker, pid) = Python::start(line);
    // A snapshot ends the connection. The guest is there for the next one, and so is its worker.
    drop(worker);
    let (mut worker, same) = Python::again(guest.connect());
    assert_eq!(same, pid);
    worker.reseed(&[7; 32]);
    let mut answers = Vec::new();
    for n in 1..=5 {
        let answer = worker.call(&format!("{{\"n\":{n}}}")).unwrap();
        assert_eq!((field(&answer, "n"), field(&answer, "count")), (n.to_string().as_str(), n.to_string().as_str()));
        assert_eq!(worker.printed, format!("call {n}\n"), "what is printed comes before the answer");
        worker.printed.clear();
        answers.push(answer);
    }
    assert!(answers.iter().all(|answer| field(answer, "pid") == pid.to_string()), "the same process");
    assert_eq!((field(&answers[0], "uid"), field(&answers[0], "loopback")), (USER.to_string().as_str(), "127.0.0.1"));
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(field(&answers[0], "kernel"), host.trim(), "a kernel of its own");

    // Woken as another time and with other bytes, as a clone is.
    let now = flux_protocol::time::now();
    let later = now.plus(Duration::from_secs(86_400));
    let now_us = u64::try_from(later.as_micros()).unwrap();
    worker.line.say(&ToShim::Wake { now_us, seed: Box::new([1; SEED]) });
    let woken = worker.call("{\"n\":6}").unwrap();
    let clock: f64 = field(&woken, "time").parse().unwrap();
    let before: f64 = field(&answers[4], "time").parse().unwrap();
    assert!((clock - before - 86_400.0).abs() < 600.0, "the clock was set: {before} to {clock}");
    assert_ne!(field(&woken, "random"), field(&answers[4], "random"));

    // More memory than there is.
    match worker.call("{\"n\":7,\"eat\":1024}") {
        Err(FromShim::Exited(exit)) => assert!(exit.oom_killed, "{exit:?}"),
        other => panic!("it lives: {other:?}"),
    }
    // And the next one in the same guest.
    let Python { mut line, .. } = worker;
    assert_eq!(line.run(function("./native"), b"").exit.status, Status::Exited(2));
    // Nobody talks to it any more: it ends by itself.
    drop(line);
    guest.ends_within(Duration::from_secs(60));
}

#[test]
fn an_image_of_other_packages_or_another_agent_is_another_image() {
    let folder = tempfile::tempdir().unwrap();
    let packages = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert!(!flux_guest_image::is_current(folder.path(), &packages(&["bash"])));
    let _ = Image::of_tests();
    let image = Image::of_tests();
    let made = image.kernel();
    let made = made.parent().unwrap();
    let manifest: String = fs::read_to_string(made.join(flux_guest_image::MANIFEST)).unwrap();
    for name in [flux_guest_image::KERNEL, flux_guest_image::INITRAMFS, flux_guest_image::ROOTFS] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let wanted: Vec<String> = serde_json::from_str::<flux_guest_image::Manifest>(&manifest).unwrap().wanted;
    fs::write(folder.path().join(flux_guest_image::MANIFEST), &manifest).unwrap();
    assert!(flux_guest_image::is_current(folder.path(), &wanted));
    assert!(!flux_guest_image::is_current(folder.path(), &packages(&["bash"])));
    fs::write(folder.path().join(flux_guest_image::MANIFEST), manifest.replace("\"agent\": \"", "\"agent\": \"9"))
        .unwrap();
    assert!(!flux_guest_image::is_current(folder.path(), &wanted));
    fs::remove_file(folder.path().join(flux_guest_image::ROOTFS)).unwrap();
    assert!(!flux_guest_image::is_current(folder.path(), &wanted));
}
