//! The program itself, as no PID 1: what is the same everywhere. As PID 1 of containers it is tested with the agent.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    process::{Child, Command},
    time::{Duration, Instant},
};

use flux_shim::{Decoder, Exit, FromShim, Start, Status, Stream, ToShim, frame::CHUNK};

/// A shim, and the agent's end of its stream.
struct Served {
    shim: Child,
    stream: UnixStream,
    decoder: Decoder,
    _dir: tempfile::TempDir,
}

const SOON: Duration = Duration::from_secs(20);

impl Served {
    fn new(flags: &[&str], how: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sock");
        let listener = (how == "connect").then(|| UnixListener::bind(&path).expect("a listener"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_flux-shim"));
        let shim = command.args(flags).arg(how).arg(&path).env("OF_THE_IMAGE", "1").spawn().expect("a shim");
        let stream = match listener {
            Some(listener) => listener.accept().expect("a connection").0,
            None => connect(&path),
        };
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        let mut served = Self { shim, stream, decoder: Decoder::default(), _dir: dir };
        assert_eq!(served.hear(), FromShim::Hello { version: 1 });
        served
    }

    fn say(&mut self, said: &ToShim) {
        let mut bytes = Vec::new();
        said.encode(&mut bytes);
        self.stream.write_all(&bytes).expect("it listens");
    }

    fn hear(&mut self) -> FromShim {
        loop {
            if let Some(said) = self.decoder.next_from_shim().expect("a frame") {
                return said;
            }
            let mut buffer = vec![0; CHUNK];
            let count = self.stream.read(&mut buffer).expect("a word in time");
            assert!(count > 0, "the shim ended");
            self.decoder.push(&buffer[..count]);
        }
    }

    fn start(&mut self, script: &str, channel: bool) {
        let args = vec!["-c".to_owned(), script.to_owned()];
        let env = vec![("OWN".to_owned(), "2".to_owned())];
        let directory = "/usr".to_owned();
        let start = Start { program: "sh".to_owned(), args, env, directory, channel, ..Start::default() };
        self.say(&ToShim::Start(Box::new(start)));
        assert!(matches!(self.hear(), FromShim::Started { .. }));
    }

    /// All that is printed until the end, and how it ends.
    fn end(&mut self) -> (String, String, Exit) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.hear() {
                FromShim::Output(Stream::Stdout, bytes) => stdout.extend(bytes),
                FromShim::Output(Stream::Stderr, bytes) => stderr.extend(bytes),
                FromShim::Exited(exit) => {
                    let text = |bytes| String::from_utf8(bytes).expect("text");
                    return (text(stdout), text(stderr), exit);
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.shim.kill();
        let _ = self.shim.wait();
    }
}

fn connect(path: &std::path::Path) -> UnixStream {
    let until = Instant::now() + SOON;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_process_gets_its_input_and_its_output_is_told_apart() {
    let mut served = Served::new(&[], "connect");
    served.start("cat; echo wrong >&2; echo $OWN $OF_THE_IMAGE; pwd; exit 3", false);
    served.say(&ToShim::Stdin(b"in\n".to_vec()));
    served.say(&ToShim::Stdin(Vec::new()));
    let (stdout, stderr, exit) = served.end();
    assert_eq!((stdout.as_str(), stderr.as_str()), ("in\n2 1\n/usr\n", "wrong\n"));
    assert_eq!((exit.status, exit.oom_killed), (Status::Exited(3), false));
    assert!(exit.ended_at_us > 0);
    // The next one, on the same stream.
    served.start("kill -SEGV $$", false);
    assert_eq!(served.end().2.status, Status::Signaled(11));
}

#[test]
fn an_answer_never_overtakes_what_was_printed() {
    let mut served = Served::new(&[], "listen");
    served.start("while read line <&3; do echo printed $line; echo wrong $line >&2; echo said $line >&3; done", true);
    for n in 0..200 {
        served.say(&ToShim::Channel(format!("{n}\n").into_bytes()));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let said = loop {
            match served.hear() {
                FromShim::Output(Stream::Stdout, bytes) => stdout.extend(bytes),
                FromShim::Output(Stream::Stderr, bytes) => stderr.extend(bytes),
                FromShim::Channel { resident_bytes, bytes, .. } => {
                    assert!(resident_bytes > 0);
                    break bytes;
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(said, format!("said {n}\n").into_bytes());
        assert_eq!((stdout, stderr), (format!("printed {n}\n").into_bytes(), format!("wrong {n}\n").into_bytes()));
    }
}

#[test]
fn a_worker_that_prints_before_it_reads_much_stands_still_for_nobody() {
    const MUCH: usize = 8 << 20;
    let mut served = Served::new(&[], "connect");
    // More than its pipe holds, before it reads; more than its socket holds is on its way to it meanwhile.
    served.start("head -c 1000000 /dev/zero; head -c 8388608 <&3 | wc -c; echo done >&3", true);
    let mut writer = served.stream.try_clone().expect("a copy");
    let feeding = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        for _ in 0..MUCH / CHUNK {
            flux_shim::frame::encode_channel(&[b'x'; CHUNK], &mut bytes);
        }
        writer.write_all(&bytes).expect("it listens");
    });
    let (mut printed, mut said) = (0, Vec::new());
    let exit = loop {
        match served.hear() {
            FromShim::Output(_, bytes) => printed += bytes.len(),
            FromShim::Channel { bytes, .. } => said.extend(bytes),
            FromShim::Exited(exit) => break exit,
            other => panic!("{other:?}"),
        }
    };
    feeding.join().expect("fed");
    assert_eq!(
        (exit.status, said.as_slice(), printed),
        (Status::Exited(0), &b"done\n"[..], 1_000_000 + "8388608\n".len())
    );
}

#[test]
fn signals_reach_the_group_and_who_holds_the_pipes_is_not_waited_for() {
    let mut served = Served::new(&[], "connect");
    served.start("trap 'echo asked; exit 5' TERM; echo ready; sleep 600 & wait", false);
    assert_eq!(served.hear(), FromShim::Output(Stream::Stdout, b"ready\n".to_vec()));
    served.say(&ToShim::Signal(15));
    let (stdout, _, exit) = served.end();
    assert_eq!((stdout.as_str(), exit.status), ("asked\n", Status::Exited(5)));
    served.start("sleep 600", false);
    served.say(&ToShim::Signal(9));
    assert_eq!(served.end().2.status, Status::Signaled(9));
    // In its group no more: only a namespace of the shim's own would end it.
    served.start("setsid sh -c 'echo $$; exec sleep 600' & read line", false);
    let FromShim::Output(Stream::Stdout, pid) = served.hear() else { panic!("no pid") };
    let left: i32 = String::from_utf8(pid).expect("text").trim().parse().expect("a pid");
    served.say(&ToShim::Stdin(b"go\n".to_vec()));
    assert_eq!(served.end().2.status, Status::Exited(0));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::Signal::SIGKILL).expect("it lives");
}

/// Its end comes while signals are let through for its start.
#[test]
fn one_that_ends_at_once_is_not_missed() {
    let mut served = Served::new(&[], "connect");
    for _ in 0..300 {
        let start = Start { program: "true".to_owned(), ..Start::default() };
        served.say(&ToShim::Start(Box::new(start)));
        assert!(matches!(served.hear(), FromShim::Started { .. }));
        assert_eq!(served.end().2.status, Status::Exited(0));
    }
}

#[test]
fn what_cannot_be_started_is_said() {
    let mut served = Served::new(&[], "connect");
    for (program, errno) in [("./nowhere", 2), ("no-such-program", 2), ("./bin", 13)] {
        let start = Start { program: program.to_owned(), directory: "/usr".to_owned(), ..Start::default() };
        served.say(&ToShim::Start(Box::new(start)));
        let FromShim::Refused { errno: said, message } = served.hear() else { panic!("{program} runs") };
        assert_eq!(said, errno, "{message}");
        assert!(message.contains(program), "{message}");
    }
}

#[test]
fn the_end_of_the_stream_is_the_end_of_all() {
    let mut served = Served::new(&[], "connect");
    served.start("exec sleep 601", false);
    served.stream.shutdown(std::net::Shutdown::Both).expect("closed");
    assert!(served.shim.wait().expect("its end").success());
}

#[test]
fn asked_to_end_by_others_it_passes_that_on_and_tells_no_end() {
    let mut served = Served::new(&[], "connect");
    served.start("trap 'echo asked; exit 5' TERM; echo ready; sleep 602 & wait", false);
    assert_eq!(served.hear(), FromShim::Output(Stream::Stdout, b"ready\n".to_vec()));
    let pid = i32::try_from(served.shim.id()).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).expect("asked");
    assert_eq!(served.hear(), FromShim::Output(Stream::Stdout, b"asked\n".to_vec()));
    assert_eq!(served.shim.wait().expect("its end").code(), Some(143));
    let mut rest = Vec::new();
    served.stream.read_to_end(&mut rest).expect("its end");
    assert_eq!(rest, []);
}

#[test]
fn one_that_stays_goes_on_with_the_next_connection() {
    let mut served = Served::new(&["--stay"], "listen");
    served.start("n=0; while read line <&3; do n=$((n+1)); echo $line $n >&3; done", true);
    served.say(&ToShim::Channel(b"a\n".to_vec()));
    let said = |served: &mut Served| match served.hear() {
        FromShim::Channel { bytes, .. } => String::from_utf8(bytes).expect("text"),
        other => panic!("{other:?}"),
    };
    assert_eq!(said(&mut served), "a 1\n");
    served.stream.shutdown(std::net::Shutdown::Both).expect("closed");
    served.stream = connect(&served._dir.path().join("sock"));
    served.decoder = Decoder::default();
    served.stream.set_read_timeout(Some(SOON)).expect("a timeout");
    assert_eq!(served.hear(), FromShim::Hello { version: 1 });
    assert!(matches!(served.hear(), FromShim::Started { .. }));
    served.say(&ToShim::Channel(b"b\n".to_vec()));
    assert_eq!(said(&mut served), "b 2\n");
}
