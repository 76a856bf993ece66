//! A blocking client of the guest's agent.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, SystemTime},
};

use flux_shim::{
    Decoder, Exit, FromShim, Start, Stream, ToShim,
    frame::{CHUNK, SEED},
    guest::PORT,
};

/// Of the answer to `CONNECT`: what was asked before the guest had its device may never be answered.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);
/// Of a word of the guest, which runs without KVM beside other tests.
const ANSWERS_WITHIN: Duration = Duration::from_secs(170);

#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
    decoder: Decoder,
}

/// A process that ran.
#[derive(Debug)]
pub struct Finished {
    pub stdout: String,
    pub stderr: String,
    pub exit: Exit,
}

impl Line {
    /// A connection that somebody else woke.
    ///
    /// # Panics
    /// The guest does not greet.
    pub fn woken(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(ANSWERS_WITHIN)).expect("a timeout");
        let mut line = Self { stream, decoder: Decoder::default() };
        assert!(matches!(line.hear(), FromShim::Hello { .. }));
        line
    }

    /// `None`: nobody listens yet.
    pub(crate) fn open(stream: UnixStream) -> Option<Self> {
        stream.set_read_timeout(Some(CONNECTS_WITHIN)).ok()?;
        let mut line = Self { stream, decoder: Decoder::default() };
        line.stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).ok()?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while line.stream.read(&mut byte).ok()? == 1 && byte[0] != b'\n' {
            answer.push(byte[0]);
        }
        if !answer.starts_with(b"OK ") {
            return None;
        }
        line.stream.set_read_timeout(Some(ANSWERS_WITHIN)).ok()?;
        // In a test the clock is no time of the product's.
        #[allow(clippy::disallowed_methods)]
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let now_us = u64::try_from(now.as_micros()).ok()?;
        line.say(&ToShim::Wake { now_us, seed: Box::new([now_us.to_le_bytes()[0]; SEED]) });
        match line.hear() {
            FromShim::Hello { version } => assert_eq!(version, flux_shim::frame::VERSION),
            other => panic!("its first word is {other:?}"),
        }
        Some(line)
    }

    /// # Panics
    /// The guest is gone.
    pub fn say(&mut self, said: &ToShim) {
        let mut bytes = Vec::new();
        said.encode(&mut bytes);
        self.stream.write_all(&bytes).expect("the guest hears");
    }

    /// # Panics
    /// The guest is gone, or says nothing in time.
    pub fn hear(&mut self) -> FromShim {
        loop {
            if let Some(said) = self.decoder.next_from_shim().expect("a frame") {
                return said;
            }
            let mut piece = vec![0; CHUNK];
            let count = self.stream.read(&mut piece).expect("a word in time");
            assert!(count > 0, "the guest's agent ended");
            self.decoder.push(&piece[..count]);
        }
    }

    /// Starts a process; its number in the guest.
    ///
    /// # Panics
    /// It is refused.
    pub fn start(&mut self, start: Start) -> u32 {
        self.say(&ToShim::Start(Box::new(start)));
        match self.hear() {
            FromShim::Started { pid, .. } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a process to its end, with this as its stdin.
    ///
    /// # Panics
    /// It is refused, or the guest ends.
    pub fn run(&mut self, start: Start, stdin: &[u8]) -> Finished {
        self.start(start);
        for piece in stdin.chunks(CHUNK) {
            self.say(&ToShim::Stdin(piece.to_vec()));
        }
        self.say(&ToShim::Stdin(Vec::new()));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.hear() {
                FromShim::Output(Stream::Stdout, bytes) => stdout.extend(bytes),
                FromShim::Output(Stream::Stderr, bytes) => stderr.extend(bytes),
                FromShim::Exited(exit) => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    return Finished { stdout: text(&stdout), stderr: text(&stderr), exit };
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
