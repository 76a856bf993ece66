//! The guest: what is behind the vsock.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Who answers behind `CONNECT`.
#[derive(Debug)]
pub(super) struct Guest {
    inner: Mutex<Inner>,
    program: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What only this boot knows, and every clone of it.
    boot: Option<String>,
    restored: bool,
    listens: bool,
    process: Option<Child>,
    /// Open connections; a snapshot ends them.
    open: Vec<UnixStream>,
    /// What the host said on the first connection: a program as a guest is brought by it to where the snapshot was.
    heard: Vec<u8>,
    /// What was answered to that.
    answered: Said,
}

const BOOTS_WITHIN: Duration = Duration::from_secs(10);
const GUEST_SOCKET: &str = "guest.sock";

/// Bytes of streams that a guest's shim passed on: its frames without what says where they belong, since it cuts a stream wherever
/// it happens to be. A frame is a length of 4 bytes and a kind; see `flux_shim::frame`.
#[derive(Debug, Default)]
struct Said {
    buffer: Vec<u8>,
    content: usize,
}

impl Said {
    /// The kinds that carry pieces of streams, and what comes before those.
    const PIECES: [(u8, usize); 2] = [(19, 1), (20, 12)];

    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        while let Some((head, rest)) = self.buffer.split_first_chunk::<4>() {
            let size = u32::from_be_bytes(*head) as usize;
            let Some(frame) = rest.get(..size) else { break };
            let before = Self::PIECES.iter().find(|(kind, _)| frame.first() == Some(kind));
            self.content += before.map_or(0, |(_, fields)| size.saturating_sub(1 + fields));
            self.buffer.drain(..4 + size);
        }
    }
}

impl Guest {
    pub(super) fn new(program: Option<String>) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), program })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new guest.
    pub(super) fn boot(&self) -> io::Result<()> {
        let boot = uuid::Uuid::new_v4().to_string();
        self.start_program()?;
        let mut inner = self.inner();
        (inner.boot, inner.listens) = (Some(boot), true);
        Ok(())
    }

    fn start_program(&self) -> io::Result<()> {
        let Some(program) = &self.program else { return Ok(()) };
        let _ = std::fs::remove_file(GUEST_SOCKET);
        let mut words = program.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg(GUEST_SOCKET).stdin(Stdio::null()).stdout(Stdio::null());
        self.inner().process = Some(command.spawn()?);
        Ok(())
    }

    /// A connection to the guest's program, which may have begun just now: its socket is there before anybody listens.
    fn reach_program() -> io::Result<UnixStream> {
        let deadline = Instant::now() + BOOTS_WITHIN;
        loop {
            match UnixStream::connect(GUEST_SOCKET) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
                connected => return connected,
            }
        }
    }

    pub(super) fn set_listening(&self, listens: bool) {
        self.inner().listens = listens;
    }

    /// Writes what a clone needs, and ends the connections, as the real one does.
    pub(super) fn save(&self, memory: &str) -> io::Result<()> {
        let mut inner = self.inner();
        for open in inner.open.drain(..) {
            let _ = open.shutdown(Shutdown::Both);
        }
        let boot = inner.boot.clone().unwrap_or_default();
        let mut file = std::fs::File::create(memory)?;
        writeln!(file, "{boot} {}", inner.answered.content)?;
        file.write_all(&inner.heard)
    }

    /// The guest that was saved.
    pub(super) fn load(&self, memory: &str, resumed: bool) -> io::Result<()> {
        let mut file = BufReader::new(std::fs::File::open(memory)?);
        let mut line = String::new();
        file.read_line(&mut line)?;
        let (boot, answered) = line.trim().split_once(' ').ok_or_else(|| io::Error::other("no memory of a guest"))?;
        let answered: usize = answered.parse().map_err(io::Error::other)?;
        let mut heard = Vec::new();
        file.read_to_end(&mut heard)?;
        self.start_program()?;
        if self.program.is_some() && !heard.is_empty() {
            // As far as it had come.
            let mut stream = Self::reach_program()?;
            stream.set_read_timeout(Some(BOOTS_WITHIN))?;
            stream.write_all(&heard)?;
            let (mut said, mut piece) = (Said::default(), [0; 4096]);
            while said.content < answered {
                match stream.read(&mut piece)? {
                    0 => return Err(io::Error::other("the guest's program ended")),
                    more => said.push(&piece[..more]),
                }
            }
        }
        let mut inner = self.inner();
        (inner.boot, inner.restored, inner.listens) = (Some(boot.to_owned()), true, resumed);
        Ok(())
    }

    /// Serves the vsock's Unix socket.
    pub(super) fn serve(self: &Arc<Self>, listener: UnixListener) {
        let guest = Arc::clone(self);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let guest = Arc::clone(&guest);
                // A connection that is not well-behaved ends.
                std::thread::spawn(move || guest.connection(stream));
            }
        });
    }

    fn connection(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut line = Vec::new();
        let mut byte = [0];
        while stream.read(&mut byte)? == 1 && byte[0] != b'\n' && line.len() < 32 {
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let port: Option<u32> = line.strip_prefix("CONNECT ").and_then(|port| port.parse().ok());
        // Nobody listens there: it is closed without a word.
        let inside = match &self.program {
            Some(_) if self.inner().listens => Some(Self::reach_program()?),
            _ => None,
        };
        let (about, first) = {
            let mut inner = self.inner();
            let (Some(boot), true, Some(_)) = (inner.boot.clone(), inner.listens, port) else { return Ok(()) };
            inner.open.push(stream.try_clone()?);
            let about = format!("{} {boot}\n", if inner.restored { "restored" } else { "booted" });
            (about, inner.heard.is_empty() && !inner.restored)
        };
        stream.write_all(b"OK 1073741824\n")?;
        let Some(mut inside) = inside else {
            stream.write_all(about.as_bytes())?;
            let mut echo = stream.try_clone()?;
            return io::copy(&mut stream, &mut echo).map(drop);
        };
        let (mut out, mut back) = (inside.try_clone()?, stream.try_clone()?);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = self.pump(&mut inside, &mut back, |inner, bytes| {
                    if first {
                        inner.answered.push(bytes);
                    }
                });
                let _ = back.shutdown(Shutdown::Both);
            });
            let _ = self.pump(&mut stream, &mut out, |inner, bytes| {
                if first {
                    inner.heard.extend_from_slice(bytes);
                }
            });
            let _ = out.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    fn pump(&self, from: &mut UnixStream, to: &mut UnixStream, seen: impl Fn(&mut Inner, &[u8])) -> io::Result<()> {
        let mut piece = vec![0; 64 * 1024];
        loop {
            let read = from.read(&mut piece)?;
            if read == 0 {
                return Ok(());
            }
            seen(&mut self.inner(), &piece[..read]);
            to.write_all(&piece[..read])?;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(process) = &mut self.inner().process {
            let _ = process.kill();
        }
    }
}
