//! One list of requests and answers, run against the stand-in, and against the real one where the environment's
//! `FLUX_FIRECRACKER` names it: what the stand-in refuses is what Firecracker refuses.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use flux_testkit::firecracker::StandIn;

/// Request, body, status, and a part of the answer.
type Case = (&'static str, &'static str, u16, &'static str);

const BEFORE: &str = "not supported before starting the microVM";
const AFTER: &str = "not supported after starting the microVM";

const CASES: &[Case] = &[
    ("GET /", "", 200, r#""state":"Not started""#),
    ("GET /", "{}", 400, "GET request cannot have a body."),
    ("GET /version", "", 200, "firecracker_version"),
    ("PUT /nothing", "{}", 400, "Invalid request method and/or path: PUT nothing."),
    ("PUT /machine-config", "", 400, "Empty PUT request."),
    ("PUT /machine-config", "{", 400, "EOF while parsing an object"),
    ("PUT /machine-config", r#"{"vcpu_count":1,"mem_size_mib":128,"x":1}"#, 400, "unknown field `x`"),
    ("PUT /machine-config", r#"{"vcpu_count":1}"#, 400, "missing field `mem_size_mib`"),
    (
        "PUT /machine-config",
        r#"{"vcpu_count":0,"mem_size_mib":128}"#,
        400,
        "The number of vCPUs must be greater than 0",
    ),
    ("PUT /machine-config", r#"{"vcpu_count":33,"mem_size_mib":128}"#, 400, "less than 32"),
    ("PUT /machine-config", r#"{"vcpu_count":1,"mem_size_mib":0}"#, 400, "The memory size (MiB) is either 0"),
    ("PUT /boot-source", r#"{"kernel_image_path":"nope"}"#, 400, "The kernel file cannot be opened"),
    (
        "PUT /boot-source",
        r#"{"kernel_image_path":"kernel","initrd_path":"nope"}"#,
        400,
        "The initrd file cannot be opened",
    ),
    ("PUT /boot-source", r#"{"kernel_image":"kernel"}"#, 400, "unknown field `kernel_image`"),
    (
        "PUT /drives/a",
        r#"{"drive_id":"b","path_on_host":"disk","is_root_device":false}"#,
        400,
        "does not match the id from the body",
    ),
    (
        "PUT /drives/a-b",
        r#"{"drive_id":"a-b","path_on_host":"disk","is_root_device":false}"#,
        400,
        "alphanumeric characters and underscores",
    ),
    ("PUT /drives/a", r#"{"drive_id":"a","path_on_host":"nope","is_root_device":false}"#, 400, "Drive config error"),
    ("PUT /drives/a", r#"{"drive_id":"a","path_on_host":"disk"}"#, 400, "missing field `is_root_device`"),
    ("PUT /vsock", r#"{"guest_cid":3}"#, 400, "missing field `uds_path`"),
    ("PUT /vsock", r#"{"guest_cid":3,"uds_path":"/nope/v.sock"}"#, 400, "Error binding to the host-side Unix socket"),
    ("PATCH /vm", r#"{"state":"Paused"}"#, 400, BEFORE),
    ("PATCH /vm", r#"{"state":"paused"}"#, 400, "unknown variant `paused`"),
    ("PUT /snapshot/create", r#"{"snapshot_path":"s","mem_file_path":"m"}"#, 400, BEFORE),
    ("PUT /snapshot/create", r#"{"snapshot_path":"s","mem_file_path":"m","x":1}"#, 400, "unknown field `x`"),
    ("PUT /snapshot/other", "{}", 400, "Invalid request method and/or path: PUT /snapshot/other."),
    ("PUT /snapshot/load", r#"{"snapshot_path":"s"}"#, 400, "missing field: either `mem_backend` or `mem_file_path`"),
    (
        "PUT /snapshot/load",
        r#"{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"File","backend_path":"m"}}"#,
        400,
        "too many fields: either `mem_backend` or `mem_file_path`",
    ),
    ("PUT /actions", r#"{"action_type":"Nothing"}"#, 400, "unknown variant `Nothing`"),
    ("PUT /actions", r#"{"action_type":"InstanceStart"}"#, 400, "Cannot start microvm without kernel configuration."),
    // What the driver sends, in its order.
    ("PUT /machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#, 204, ""),
    ("PUT /boot-source", r#"{"kernel_image_path":"kernel","boot_args":"reboot=k panic=-1"}"#, 204, ""),
    (
        "PUT /snapshot/load",
        LOAD,
        400,
        "Loading a microVM snapshot not allowed after configuring boot-specific resources.",
    ),
    (
        "PUT /drives/rootfs",
        r#"{"drive_id":"rootfs","path_on_host":"disk","is_root_device":false,"is_read_only":true}"#,
        204,
        "",
    ),
    ("PUT /vsock", r#"{"guest_cid":3,"uds_path":"v.sock"}"#, 204, ""),
    ("PUT /entropy", "{}", 204, ""),
    ("PUT /actions", r#"{"action_type":"InstanceStart"}"#, 204, ""),
    ("GET /", "", 200, r#""state":"Running""#),
    ("PUT /machine-config", r#"{"vcpu_count":1,"mem_size_mib":128}"#, 400, AFTER),
    ("PUT /boot-source", r#"{"kernel_image_path":"kernel"}"#, 400, AFTER),
    ("PUT /drives/a", r#"{"drive_id":"a","path_on_host":"disk","is_root_device":false}"#, 400, "PCI is not enabled"),
    ("PUT /vsock", r#"{"guest_cid":3,"uds_path":"v2.sock"}"#, 400, AFTER),
    ("PUT /entropy", "{}", 400, AFTER),
    ("PUT /actions", r#"{"action_type":"InstanceStart"}"#, 400, AFTER),
    ("PUT /snapshot/create", CREATE, 400, "save/restore unavailable while running"),
    ("PATCH /vm", r#"{"state":"Paused"}"#, 204, ""),
    ("GET /", "", 200, r#""state":"Paused""#),
    ("PATCH /vm", r#"{"state":"Paused"}"#, 204, ""),
    (
        "PUT /snapshot/create",
        r#"{"snapshot_path":"/nope/s","mem_file_path":"m"}"#,
        400,
        "Cannot perform open on the snapshot backing file",
    ),
    ("PUT /snapshot/create", CREATE, 204, ""),
    ("PATCH /vm", r#"{"state":"Resumed"}"#, 204, ""),
    ("PATCH /vm", r#"{"state":"Resumed"}"#, 204, ""),
    ("PUT /snapshot/load", LOAD, 400, AFTER),
];

const CREATE: &str = r#"{"snapshot_type":"Full","snapshot_path":"s","mem_file_path":"m"}"#;
const LOAD: &str = r#"{"snapshot_path":"s","mem_backend":{"backend_type":"File","backend_path":"m"},"resume_vm":true}"#;
const LOAD_NOTHING: &str =
    r#"{"snapshot_path":"nope","mem_backend":{"backend_type":"File","backend_path":"m"},"resume_vm":true}"#;

struct Running {
    child: Child,
    folder: PathBuf,
}

impl Running {
    fn start(program: &Path, folder: &Path) -> Self {
        let child = Command::new(program)
            .args(["--id", "a-1", "--api-sock", "api.sock"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, folder: folder.to_owned() }
    }

    fn send(&self, request: &str, body: &str) -> (u16, String) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stream = loop {
            match UnixStream::connect(self.folder.join("api.sock")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "not listening: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut said = String::new();
        let mut piece = [0; 4096];
        loop {
            let read = stream.read(&mut piece).unwrap();
            said.push_str(&String::from_utf8_lossy(&piece[..read]));
            let Some((head, body)) = said.split_once("\r\n\r\n") else {
                assert!(read > 0, "it ended within an answer to {request}: {said}");
                continue;
            };
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return (head[9..12].parse().unwrap(), body.to_owned());
            }
            assert!(read > 0, "it ended within an answer to {request}: {said}");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for socket in ["api.sock", "v.sock"] {
            let _ = fs::remove_file(self.folder.join(socket));
        }
    }
}

fn all_cases(program: &Path, folder: &Path) {
    fs::write(folder.join("disk"), vec![0; 1 << 20]).unwrap();
    let first = Running::start(program, folder);
    for (number, (request, body, status, part)) in CASES.iter().enumerate() {
        let (got, said) = first.send(request, body);
        assert_eq!(got, *status, "{number}: {request} {body}: {said}");
        assert!(said.contains(part), "{number}: {request} {body}: `{said}` has no `{part}`");
    }
    drop(first);
    let clone = Running::start(program, folder);
    assert_eq!(clone.send("PUT /snapshot/load", LOAD), (204, String::new()));
    assert!(clone.send("GET /", "").1.contains(r#""state":"Running""#));
    drop(clone);
    // One that cannot load a snapshot ends.
    let mut broken = Running::start(program, folder);
    let (status, said) = broken.send("PUT /snapshot/load", LOAD_NOTHING);
    assert_eq!(status, 400, "{said}");
    assert!(said.contains("Failed to open snapshot file"), "{said}");
    assert!(!broken.child.wait().unwrap().success());
}

#[test]
fn the_stand_in_answers_as_firecracker_does() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), "a kernel").unwrap();
    all_cases(&StandIn::make(folder.path(), &[], None).program, folder.path());
}

/// `FLUX_FIRECRACKER` is the program, `FLUX_FIRECRACKER_KERNEL` an uncompressed kernel (`make test-microvm` sets both).
/// Nothing needs to boot for it, but the machine's KVM must let a guest be made.
#[test]
#[ignore = "needs a real firecracker: make test-microvm"]
fn firecracker_answers_as_the_list_says() {
    let program = PathBuf::from(std::env::var_os("FLUX_FIRECRACKER").expect("FLUX_FIRECRACKER names it"));
    let kernel = PathBuf::from(std::env::var_os("FLUX_FIRECRACKER_KERNEL").expect("FLUX_FIRECRACKER_KERNEL names it"));
    let folder = tempfile::tempdir().unwrap();
    fs::copy(kernel, folder.path().join("kernel")).unwrap();
    all_cases(&program, folder.path());
}
