//! The AWS Lambda Runtime API (2018-06-01), as one worker sees it: the channel of a Lambda package's `bootstrap`.
//!
//! ```text
//!   agent                                     worker
//!     ◄──────────── GET  /invocation/next ──   it is initialised; or POST /init/error
//!     ── the event, and its id ────────────►
//!     ◄───── POST /invocation/<id>/response ── or …/error
//!     ◄──────────── GET  /invocation/next ──   it is done: what it printed until here belongs to the invocation
//! ```
//!
//! Nobody serves an idle worker: its last request waits in the socket's buffer, or in a future that is not polled. While an
//! invocation is under way the task that waits for it serves the connections too ([`RuntimeApi::exchange`]), so that a warm
//! call wakes one task. Why it is as it is: `docs/adr/0009-lambda-runtime.md`.

mod desk;
mod event;
mod links;
mod owner;

use std::{
    future::poll_fn,
    io,
    net::TcpListener,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flux_protocol::{FunctionSpec, function::Network, limits};
use flux_worker::{Call, Fault, Used};

use crate::{
    launch::Census,
    warm::{Exchange, Served},
};
use desk::{Desk, Said};
use event::Event;
pub(crate) use event::environment;
use links::Links;

/// The version of the API: what the agent says in its heartbeat.
pub(crate) const VERSION: &str = "2018-06-01";

/// What an agent has to do with one worker's runtime client.
pub(crate) struct RuntimeApi {
    links: Links,
    desk: Arc<Desk>,
    pid: u32,
    region: String,
    /// Who lives in its cgroup, where it has one.
    census: Option<Census>,
    /// How many did when it was initialised.
    at_first: usize,
    is_loaded: bool,
    is_handed_over: bool,
    /// An answer that was heard, while the request that ends its invocation is waited for.
    answered: Option<Served>,
    cpu: Duration,
}

impl RuntimeApi {
    /// `listener` is where the process `pid` finds it.
    pub(crate) fn new(
        listener: TcpListener,
        pid: u32,
        census: Option<Census>,
        spec: &FunctionSpec,
    ) -> io::Result<Self> {
        // In a network of its own nobody else can connect.
        let owner_of = (spec.network == Network::Host).then_some(pid);
        let desk = Arc::new(Desk::default());
        Ok(Self {
            links: Links::new(listener, owner_of, Arc::clone(&desk))?,
            desk,
            pid,
            region: event::region(spec).to_owned(),
            census,
            at_first: 1,
            is_loaded: false,
            is_handed_over: false,
            answered: None,
            cpu: Duration::ZERO,
        })
    }

    /// Whether it has asked for an invocation, and a connection to it is open.
    pub(crate) fn is_quiet(&self) -> bool {
        self.desk.is_asked() && self.links.is_one_open()
    }

    /// Whether it has asked for its next invocation.
    pub(crate) fn is_asked(&self) -> bool {
        self.desk.is_asked()
    }

    /// Whether it asked for an invocation at least once.
    pub(crate) fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// Whether it was told of the last invocation.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.is_handed_over
    }

    /// An answer that was heard before the exchange was given up because the process ended.
    pub(crate) fn take_answer(&mut self) -> Option<Served> {
        self.answered.take()
    }

    /// Whether more lives beside it than did when it was initialised; `None` where that cannot be seen.
    pub(crate) fn has_left_processes(&self) -> Option<bool> {
        self.census.as_ref().map(|census| census.count().is_none_or(|count| count > self.at_first))
    }

    /// Has one invocation served.
    pub(crate) async fn exchange(&mut self, call: &Call, payload: &Bytes) -> Exchange {
        let event = Event::new(call, payload, &self.region);
        self.is_handed_over = false;
        let said = poll_fn(|cx| {
            loop {
                self.links.serve(cx);
                if let Some(said) = self.desk.take_said() {
                    return Poll::Ready(said);
                }
                if self.is_handed_over || !self.desk.is_asked() {
                    return Poll::Pending;
                }
                if !self.is_loaded {
                    self.is_loaded = true;
                    self.at_first = self.census.as_ref().and_then(Census::count).unwrap_or(1);
                    self.desk.loaded();
                }
                // Then once more, so that it is sent.
                self.is_handed_over = self.desk.hand_over(&event);
            }
        })
        .await;
        match said {
            Said::Answer { loaded_at, answer } => {
                let used = self.used();
                self.answered = Some(Served { loaded_at, answered_at: Instant::now(), used, answer });
                self.until_it_asks_again().await;
                match self.answered.take() {
                    Some(served) => Exchange::Served(served),
                    None => Exchange::Closed,
                }
            }
            Said::NotInitialised(fault) => Exchange::NotLoaded(fault),
        }
    }

    /// What it prints until then is its own. One that never asks again ended, or is not used again.
    async fn until_it_asks_again(&mut self) {
        let asks = poll_fn(|cx| {
            self.links.serve(cx);
            if self.desk.is_asked() { Poll::Ready(()) } else { Poll::Pending }
        });
        let _ = tokio::time::timeout(limits::LAMBDA_ASKS_AGAIN, asks).await;
    }

    /// By its process; of children only what it waited for.
    fn used(&mut self) -> Used {
        let cpu = cpu_of(self.pid).unwrap_or(self.cpu);
        let spent = cpu.saturating_sub(self.cpu);
        self.cpu = cpu;
        let cpu_us = u64::try_from(spent.as_micros()).unwrap_or(u64::MAX);
        Used { cpu_us, peak_bytes: peak_bytes(self.pid).unwrap_or(0), ..Used::default() }
    }
}

fn cpu_of(pid: u32) -> Option<Duration> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).ok()?);
    let clock = nix::time::ClockId::pid_cpu_clock_id(pid).ok()?;
    Some(clock.now().ok()?.into())
}

fn peak_bytes(pid: u32) -> Option<u64> {
    let kib: u64 = status_field(pid, "VmHWM:")?;
    Some(kib * 1024)
}

/// The first number of a line of `/proc/<pid>/status`.
fn status_field<N: std::str::FromStr>(pid: u32, name: &str) -> Option<N> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What a runtime client says of an error, as a fault.
fn fault(kind: impl Into<String>, message: impl Into<String>) -> Fault {
    Fault { kind: kind.into(), message: message.into(), ..Fault::default() }
}
