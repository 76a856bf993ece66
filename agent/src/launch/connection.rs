//! The two sockets, and who waits for what on them.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use flux_launcher::Capabilities;
use flux_launcher::socket::{self, Packet};
use flux_launcher::wire::{
    Control, ControlReply, EndedReport, INLINE_REQUEST, MAX_REPLY, RefusedReport, Reply, SpawnRequest, memfd_stub,
};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot, watch};

use super::running::Running;
use super::{Driver, LaunchError};

const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// What was started travels as [`Running`], which kills when nobody takes it.
type StartedSender = oneshot::Sender<Result<Running, RefusedReport>>;

/// The launcher was gone before it could have the request: no attempt was lost with it, and there will be another one.
const NEVER_SENT: LaunchError = LaunchError::Unavailable { waited_ms: 0 };

/// Signals that may wait for a launcher that does not read them: one that has stood still for so long is ended.
const UNSENT: usize = 16_384;

/// One execution that the launcher has not finished with.
#[derive(Debug)]
struct Pending {
    /// Until `Started`, `Ran` or `Refused` came; and what the started one will hear its end by.
    started: Option<(StartedSender, oneshot::Receiver<EndedReport>)>,
    /// A worker that listens: its socket comes first of what comes with `Started`.
    listens: bool,
    ended: oneshot::Sender<EndedReport>,
}

#[derive(Debug)]
pub(super) struct Connection {
    spawn: AsyncFd<OwnedFd>,
    control: AsyncFd<OwnedFd>,
    /// `None` once the launcher is gone: nothing can be added that nobody would ever resolve.
    pending: Mutex<Option<HashMap<u64, Pending>>>,
    /// By nonce: pings, and questions whether a worker is alone or what it left is gone. The answer to a ping is `true`.
    asked: Mutex<HashMap<u64, oneshot::Sender<bool>>>,
    /// Signals for which the control socket had no room.
    unsent: Mutex<VecDeque<Control>>,
    has_unsent: Notify,
    next_id: AtomicU64,
    closed: watch::Sender<bool>,
}

/// A socket as the event loop wants it.
// Deprecated for descriptors that may be closed behind the loop's back; an `OwnedFd` is not, and the replacement is an
// unsafe function, which this crate does not allow itself.
#[allow(deprecated)]
pub(super) fn async_fd(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    socket::set_nonblocking(socket.as_fd())?;
    // Readable only: room to write comes back with every packet that the other end takes, and each would wake a thread
    // for nobody. Who finds no room waits on a registration of its own.
    AsyncFd::with_interest(socket, Interest::READABLE)
}

pub(super) async fn send(socket: &AsyncFd<OwnedFd>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    // There is nearly always room: asking the event loop first would only cost a turn of it.
    match socket::send(socket.get_ref().as_fd(), bytes, fds) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done,
    }
    #[allow(deprecated)]
    let writable = AsyncFd::with_interest(socket.get_ref().try_clone()?, Interest::WRITABLE)?;
    loop {
        let mut ready = writable.writable().await?;
        match ready.try_io(|s| socket::send(s.as_fd(), bytes, fds)) {
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

pub(super) async fn recv(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<Packet> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|s| socket::recv(s.as_fd(), buffer)) {
            // A launcher that died with unread requests; said once, before what it had written, which still counts.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

impl Connection {
    pub(super) fn try_new(spawn: OwnedFd, control: OwnedFd) -> io::Result<Self> {
        Ok(Connection {
            spawn: async_fd(spawn)?,
            control: async_fd(control)?,
            pending: Mutex::new(Some(HashMap::new())),
            asked: Mutex::new(HashMap::new()),
            unsent: Mutex::default(),
            has_unsent: Notify::new(),
            next_id: AtomicU64::new(1),
            closed: watch::Sender::new(false),
        })
    }

    /// The launcher's first word.
    pub(super) async fn hello(&self) -> Result<Capabilities, LaunchError> {
        let mut buffer = vec![0; MAX_REPLY];
        let packet = recv(&self.control, &mut buffer).await.map_err(LaunchError::Socket)?;
        if packet.len == 0 {
            return Err(LaunchError::start("it ended before its hello; its own message is on stderr", None));
        }
        let bytes = buffer.get(..packet.len).unwrap_or_default();
        match ControlReply::decode(bytes) {
            Ok(ControlReply::Hello(capabilities)) => Ok(*capabilities),
            Ok(other) => Err(LaunchError::start(format!("it said {other:?}"), None)),
            Err(error) => Err(LaunchError::start(error.to_string(), None)),
        }
    }

    pub(super) async fn spawn(
        this: &Arc<Self>,
        mut request: SpawnRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Running, LaunchError> {
        let id = this.next_id.fetch_add(1, Ordering::Relaxed);
        request.id = id;
        let encoded = request.encode().map_err(LaunchError::Request)?;
        let (started_tx, started_rx) = oneshot::channel();
        let (ended_tx, ended_rx) = oneshot::channel();
        match this.pending.lock().as_mut() {
            Some(pending) => {
                let listens = request.listens;
                pending.insert(id, Pending { started: Some((started_tx, ended_rx)), listens, ended: ended_tx })
            }
            None => return Err(NEVER_SENT),
        };
        let sent = this.send_request(&encoded, &descriptors).await;
        drop(descriptors);
        if let Err(error) = sent {
            this.forget(id);
            return Err(match error.raw_os_error() {
                Some(code) if code == nix::libc::EPIPE || code == nix::libc::ECONNRESET => NEVER_SENT,
                _ => LaunchError::Socket(error),
            });
        }
        match started_rx.await {
            Ok(Ok(running)) => Ok(running),
            Ok(Err(refused)) => Err(LaunchError::Refused(refused)),
            Err(_) => Err(LaunchError::LauncherLost),
        }
    }

    async fn send_request(&self, encoded: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
        let mut fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        if encoded.len() <= INLINE_REQUEST {
            return send(&self.spawn, encoded, &fds).await;
        }
        let memfd = socket::memfd(encoded)?;
        fds.push(memfd.as_fd());
        send(&self.spawn, &memfd_stub(encoded.len()), &fds).await
    }

    fn forget(&self, id: u64) {
        if let Some(pending) = self.pending.lock().as_mut() {
            pending.remove(&id);
        }
    }

    /// Sends a signal to an execution. One that ended already, or a launcher that is gone, is no error.
    pub(super) fn kill(&self, id: u64, signal: i32) {
        self.tell(Control::Kill { id, signal });
    }

    /// As [`Self::clear`], without waiting for what comes of it.
    pub(super) fn start_clearing(&self, id: u64) {
        let nonce = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.tell(Control::Clear { id, nonce });
    }

    fn tell(&self, control: Control) {
        let mut unsent = self.unsent.lock();
        let full = unsent.is_empty()
            && socket::try_send(self.control.get_ref().as_fd(), &control.encode(), &[])
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        if !full && unsent.is_empty() {
            return;
        }
        if unsent.len() >= UNSENT {
            tracing::error!(unsent = unsent.len(), "the launcher does not read its control socket; it is replaced");
            return self.end_launcher();
        }
        if unsent.is_empty() {
            tracing::warn!(?control, "the launcher is slow to read its control socket; signals wait");
        }
        unsent.push_back(control);
        self.has_unsent.notify_one();
    }

    /// Sends the signals that found the socket full, in their order. Ends by an error alone.
    async fn send_unsent(&self) -> io::Result<()> {
        loop {
            let next = self.unsent.lock().front().copied();
            let Some(kill) = next else {
                self.has_unsent.notified().await;
                continue;
            };
            send(&self.control, &kill.encode(), &[]).await?;
            self.unsent.lock().pop_front();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    pub(super) async fn closed(&self) {
        // The sender lives in `self`, so waiting can only end by the value.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    pub(super) async fn ping(&self) -> Result<Duration, LaunchError> {
        let sent_at = Instant::now();
        match self.ask(|nonce| Control::Ping { nonce }).await {
            Some(_) => Ok(sent_at.elapsed()),
            None => Err(LaunchError::LauncherLost),
        }
    }

    /// Whether nothing lives of an execution but its main process; `None` when the launcher does not say.
    pub(super) async fn is_alone(&self, id: u64) -> Option<bool> {
        self.ask(|nonce| Control::IsAlone { id, nonce }).await
    }

    /// Ends what lives of an execution beside its main process, and makes its slot as new; whether nothing is left of it.
    pub(super) async fn clear(&self, id: u64) -> bool {
        // One that waits to be sent would be overtaken, and end what begins after this one.
        if !self.unsent.lock().is_empty() {
            return false;
        }
        self.ask(|nonce| Control::Clear { id, nonce }).await.unwrap_or(false)
    }

    async fn ask(&self, question: impl FnOnce(u64) -> Control) -> Option<bool> {
        let nonce = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tx, rx) = oneshot::channel();
        self.asked.lock().insert(nonce, tx);
        let sent = send(&self.control, &question(nonce).encode(), &[]).await;
        let answer = match sent {
            Ok(()) => tokio::time::timeout(PING_TIMEOUT, rx).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        self.asked.lock().remove(&nonce);
        answer
    }

    fn on_reply(self: &Arc<Self>, reply: Reply, fds: Vec<OwnedFd>) {
        let mut guard = self.pending.lock();
        let Some(pending) = guard.as_mut() else {
            return;
        };
        let mut fds = fds.into_iter();
        let mut running = |id, pid, started_at_us, ended, listens: bool| {
            let listener = if listens { fds.next() } else { None };
            Running::new(Arc::clone(self), id, pid, started_at_us, ended).listening_on(listener).in_cgroup(fds.next())
        };
        match reply {
            Reply::Ran { pid, started_at_us, ended } => {
                if let Some(entry) = pending.remove(&ended.id) {
                    let _ = entry.ended.send(ended);
                    if let Some((waiter, heard)) = entry.started {
                        let _ = waiter.send(Ok(running(ended.id, pid, started_at_us, heard, false)));
                    }
                }
            }
            Reply::Started { id, pid, started_at_us } => {
                match pending.get_mut(&id).and_then(|entry| Some((entry.started.take()?, entry.listens))) {
                    // Dropped, here or on its way, by a caller that gave up: it is killed.
                    Some(((waiter, heard), listens)) => {
                        drop(waiter.send(Ok(running(id, pid, started_at_us, heard, listens))));
                    }
                    // The caller gave up before the request was sent whole.
                    None => self.kill(id, nix::libc::SIGKILL),
                }
            }
            Reply::Ended(report) => {
                if let Some(entry) = pending.remove(&report.id) {
                    let _ = entry.ended.send(report);
                }
            }
            Reply::Refused(report) => {
                if let Some((waiter, _)) = pending.remove(&report.id).and_then(|entry| entry.started) {
                    let _ = waiter.send(Err(report));
                }
            }
        }
    }

    fn on_control(&self, reply: ControlReply) {
        let (nonce, answer) = match reply {
            ControlReply::Pong { nonce } => (nonce, true),
            ControlReply::Alone { nonce, alone } => (nonce, alone),
            ControlReply::Cleared { nonce, clean } => (nonce, clean),
            ControlReply::Hello(_) => return,
        };
        if let Some(waiter) = self.asked.lock().remove(&nonce) {
            let _ = waiter.send(answer);
        }
    }

    /// The end of its control socket is a launcher's end.
    fn end_launcher(&self) {
        // Fails only where the other end is gone already.
        let _ = nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(self.control.get_ref()),
            nix::sys::socket::Shutdown::Both,
        );
    }

    /// Resolves everything that waits (dropping the senders is what tells them) and ends a launcher that still lives.
    fn close(&self) {
        self.end_launcher();
        // Taken out of the lock first: what was started is dropped with it, and kills.
        let pending = self.pending.lock().take();
        drop(pending);
        self.unsent.lock().clear();
        self.asked.lock().clear();
        self.closed.send_replace(true);
    }
}

/// Marks the connection closed however its driver ends, a dropped one included.
struct CloseOnDrop(Weak<Connection>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(connection) = self.0.upgrade() {
            connection.close();
        }
    }
}

/// Reads replies until the launcher is gone.
pub(super) fn drive(connection: &Arc<Connection>) -> Driver {
    let connection = Arc::clone(connection);
    let guard = CloseOnDrop(Arc::downgrade(&connection));
    Box::pin(async move {
        let _guard = guard;
        let mut spawn_buffer = vec![0; MAX_REPLY];
        let mut control_buffer = vec![0; MAX_REPLY];
        let mut control_open = true;
        let unsent = connection.send_unsent();
        tokio::pin!(unsent);
        loop {
            tokio::select! {
                // Only by an error: the launcher is going, which reading will tell.
                _ = &mut unsent, if control_open => control_open = false,
                packet = recv(&connection.spawn, &mut spawn_buffer) => {
                    let Some((bytes, fds)) = taken(packet, &spawn_buffer) else { return };
                    match Reply::decode(bytes) {
                        Ok(reply) => connection.on_reply(reply, fds),
                        Err(error) => tracing::error!(%error, "ignored a launcher's reply"),
                    }
                }
                packet = recv(&connection.control, &mut control_buffer), if control_open => {
                    // The spawn socket may still hold replies; its own end is what ends this.
                    let Some((bytes, _)) = taken(packet, &control_buffer) else {
                        control_open = false;
                        continue;
                    };
                    match ControlReply::decode(bytes) {
                        Ok(reply) => connection.on_control(reply),
                        Err(error) => tracing::error!(%error, "ignored a launcher's reply"),
                    }
                }
            }
        }
    })
}

fn taken(packet: io::Result<Packet>, buffer: &[u8]) -> Option<(&[u8], Vec<OwnedFd>)> {
    match packet {
        Ok(packet) if packet.len > 0 => Some((buffer.get(..packet.len)?, packet.fds)),
        Ok(_) => None,
        Err(error) => {
            tracing::debug!(%error, "the launcher's socket ended");
            None
        }
    }
}
