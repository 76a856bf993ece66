//! The work that goes on meanwhile: clients that call, invoke, publish, cancel, and someone who deploys and rolls back.
//!
//! A client does one thing after the other. What it draws is decided by the seed; when it comes to it is not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use flux_protocol::ExecutionId;
use flux_runtime::{Shutdown, Tasks};
use flux_testkit::{Api, Reply, Seed, archive};
use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::{
    function,
    history::{Answer, Ask, AskKind, Event, History, Seen},
    producer::Producer,
};

/// With its key an invocation is tried again this often.
const TRIES: u32 = 40;
/// After an answer that was none.
const PAUSE: Duration = Duration::from_millis(150);
/// The queue's ack of a direct publish.
const STORED_WITHIN: Duration = Duration::from_secs(5);
/// Beyond this an answer is none: what comes of it is in the records.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// An impatient caller's patience.
const IMPATIENT: Duration = Duration::from_millis(80);
/// Deployments follow each other by up to this.
const DEPLOY_EVERY_MS: u64 = 4_000;

/// What all clients share.
pub(crate) struct Load {
    pub(crate) history: Arc<History>,
    /// One for each gateway.
    pub(crate) apis: Vec<Api>,
    pub(crate) producer: Arc<Producer>,
    /// Where functions report.
    pub(crate) port: u16,
    pub(crate) stop: AtomicBool,
    pub(crate) ops: AtomicU64,
    pub(crate) editions: AtomicU64,
}

impl Load {
    /// Starts the clients; they end after [`Load::stop`].
    pub(crate) fn start(self: &Arc<Self>, mut seed: Seed, clients: usize) -> Tasks {
        let tasks = Tasks::new(Shutdown::new());
        for _ in 0..clients {
            let (load, seed) = (Arc::clone(self), seed.fork());
            tasks.spawn("client", async move { load.client(seed).await });
        }
        let (load, seed) = (Arc::clone(self), seed.fork());
        tasks.spawn("deployer", async move { load.deployer(seed).await });
        tasks
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Acquire)
    }

    async fn client(&self, mut seed: Seed) {
        while self.goes_on() {
            let answered = match seed.below(100) {
                0..40 => self.invoke(&mut seed).await,
                40..72 => self.call(&mut seed).await,
                72..88 => self.publish(&mut seed).await,
                _ => self.cancel(&mut seed).await,
            };
            if !answered {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn asked(&self, ask: Ask) -> u64 {
        let op = self.ops.fetch_add(1, Ordering::Relaxed);
        self.history.note(Event::Asked { op, ask });
        op
    }

    /// Whether that was an answer.
    fn answered(&self, op: u64, answer: Answer) -> bool {
        let is_answer = !matches!(answer, Answer::None { .. } | Answer::Refused { .. });
        self.history.note(Event::Answered { op, answer });
        is_answer
    }

    fn api(&self, seed: &mut Seed) -> &Api {
        seed.pick(&self.apis)
    }

    /// An asynchronous invocation, half of the time with a key and tried until it is accepted.
    async fn invoke(&self, seed: &mut Seed) -> bool {
        let work = Work::draw(seed);
        let keyed = seed.chance(50);
        let Some(execution) = self.accept(&work, keyed, seed).await else { return false };
        if seed.chance(50) {
            self.read(&execution, "?wait=5s", seed).await;
        }
        true
    }

    async fn accept(&self, work: &Work, keyed: bool, seed: &mut Seed) -> Option<String> {
        // Any text that no other operation has.
        let key = keyed.then(|| ExecutionId::new().to_string());
        let op = self.asked(Ask { key: key.clone(), ..work.ask(AskKind::Async) });
        for _ in 0..if keyed { TRIES } else { 1 } {
            let path = format!("/execute/{}/async", work.function);
            let mut request = self.api(seed).request(Method::POST, &path).json(&work.body(self.port, op));
            if let Some(key) = &key {
                request = request.header("Idempotency-Key", key);
            }
            let answer = answer(request, 202, |reply| Answer::Accepted { execution: execution_of(reply) }).await;
            let accepted = match &answer {
                Answer::Accepted { execution } => Some(execution.clone()),
                _ => None,
            };
            self.answered(op, answer);
            if accepted.is_some() {
                return accepted;
            }
            if !self.goes_on() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }

    async fn call(&self, seed: &mut Seed) -> bool {
        let impatient = seed.chance(6);
        let work = if impatient { Work::of_seconds("0.6") } else { Work::draw(seed) };
        let op = self.asked(Ask { attempts: 1, ..work.ask(AskKind::Call) });
        let path = format!("/execute/{}", work.function);
        let mut request = self.api(seed).request(Method::POST, &path).json(&work.body(self.port, op));
        request = request.timeout(if impatient { IMPATIENT } else { ANSWERED_WITHIN });
        let answer = match Api::try_send(request).await {
            Err(error) => no_answer(&error),
            Ok(reply) if reply.json["execution_id"].is_string() => {
                Answer::Outcome { execution: execution_of(&reply), seen: Seen::of(&reply.json) }
            }
            Ok(reply) => refused(&reply),
        };
        self.answered(op, answer) || impatient
    }

    /// Straight into the queue: half of them with an id of their own, the rest bare.
    async fn publish(&self, seed: &mut Seed) -> bool {
        let work = Work::draw(seed);
        let named = seed.chance(50) || self.producer.needs_an_id();
        let execution = named.then(ExecutionId::new);
        let said = execution.map(|id| id.to_string());
        let op = self.asked(Ask { execution: said, ..work.ask(AskKind::Direct) });
        let args = json!(function::args(self.port, &work.seconds, work.exit, op)).to_string();
        let stored = self.producer.publish(work.function, args, execution);
        let answer = match tokio::time::timeout(STORED_WITHIN, stored).await {
            Ok(Ok(place)) => Answer::Stored { place },
            Ok(Err(why)) => Answer::None { why },
            Err(_) => Answer::None { why: "no ack in time".to_owned() },
        };
        self.answered(op, answer)
    }

    /// Of something that runs for a while, at some moment of its life.
    async fn cancel(&self, seed: &mut Seed) -> bool {
        let work = Work::of_seconds("1.2");
        let Some(execution) = self.accept(&work, false, seed).await else { return false };
        tokio::time::sleep(Duration::from_millis(seed.below(1_400))).await;
        let function = work.function.to_owned();
        let op = self.asked(Ask {
            kind: AskKind::Cancel,
            function,
            exit: 0,
            attempts: 1,
            key: None,
            execution: Some(execution.clone()),
        });
        let request = self.api(seed).request(Method::DELETE, &format!("/executions/{execution}"));
        let answer = match send(request).await {
            Err(error) => no_answer(&error),
            Ok(reply) if reply.status == 200 => Answer::Confirmed,
            Ok(reply) => match reply.json["error"]["details"]["status"].as_str() {
                Some(status) if reply.status == 409 => Answer::AlreadyEnded { status: status.to_owned() },
                _ => refused(&reply),
            },
        };
        let answered = self.answered(op, answer);
        if seed.chance(50) {
            self.read(&execution, "", seed).await;
        }
        answered
    }

    async fn read(&self, execution: &str, query: &str, seed: &mut Seed) {
        let request = self.api(seed).request(Method::GET, &format!("/executions/{execution}{query}"));
        if let Ok(reply) = send(request).await
            && reply.status == 200
        {
            self.history.note(Event::Read { execution: execution.to_owned(), seen: Seen::of(&reply.json) });
        }
    }

    /// Deploys new code, or goes back to an older version, one after the other.
    async fn deployer(&self, mut seed: Seed) {
        let mut newest = [1_u32; function::NAMES.len()];
        while self.goes_on() {
            tokio::time::sleep(Duration::from_millis(500 + seed.below(DEPLOY_EVERY_MS))).await;
            let which = usize::from(seed.chance(50));
            let name = function::NAMES[which];
            let back = newest[which] > 1 && seed.chance(40);
            let ask = |kind| Ask { kind, function: name.to_owned(), exit: 0, attempts: 1, key: None, execution: None };
            let (op, request) = if back {
                let version = 1 + u32::try_from(seed.below(u64::from(newest[which] - 1))).unwrap_or_default();
                let path = format!("/functions/{name}/rollback");
                let request = self.api(&mut seed).request(Method::POST, &path).json(&json!({ "version": version }));
                (self.asked(ask(AskKind::Rollback)), request)
            } else {
                let edition = self.editions.fetch_add(1, Ordering::Relaxed);
                let zip = archive(&function::code(edition));
                let request = self.api(&mut seed).request(Method::PUT, &format!("/deploy/{name}"));
                (self.asked(ask(AskKind::Deploy)), request.header("Content-Type", "application/zip").body(zip))
            };
            let expected = if back { 200 } else { 201 };
            let answer = answer(request, expected, |reply| Answer::Current {
                version: Seen::of(&reply.json).version.unwrap_or(0),
            });
            let answer = answer.await;
            if let Answer::Current { version } = answer {
                newest[which] = newest[which].max(version);
            }
            self.answered(op, answer);
        }
    }
}

/// What a function is told to do.
struct Work {
    function: &'static str,
    seconds: String,
    exit: u8,
}

impl Work {
    fn draw(seed: &mut Seed) -> Self {
        let function = *seed.pick(&function::NAMES);
        let exit = if seed.chance(8) { 3 } else { 0 };
        // Most are short; some are sure to be running when something dies.
        let seconds = if seed.chance(20) { 400 + seed.below(900) } else { 5 + seed.below(120) };
        Self { function, seconds: format!("{}.{:03}", seconds / 1_000, seconds % 1_000), exit }
    }

    fn of_seconds(seconds: &str) -> Self {
        Self { function: function::NAMES[0], seconds: seconds.to_owned(), exit: 0 }
    }

    fn ask(&self, kind: AskKind) -> Ask {
        let attempts = if self.function == function::NAMES[1] { function::RETRIES } else { 1 };
        Ask { kind, function: self.function.to_owned(), exit: self.exit, attempts, key: None, execution: None }
    }

    fn body(&self, port: u16, op: u64) -> serde_json::Value {
        json!({ "args": function::args(port, &self.seconds, self.exit, op) })
    }
}

async fn send(request: RequestBuilder) -> Result<Reply, reqwest::Error> {
    Api::try_send(request.timeout(ANSWERED_WITHIN)).await
}

async fn answer(request: RequestBuilder, expected: u16, read: impl FnOnce(&Reply) -> Answer) -> Answer {
    match send(request).await {
        Err(error) => no_answer(&error),
        Ok(reply) if reply.status == expected => read(&reply),
        Ok(reply) => refused(&reply),
    }
}

fn execution_of(reply: &Reply) -> String {
    reply.json["execution_id"].as_str().unwrap_or_default().to_owned()
}

fn refused(reply: &Reply) -> Answer {
    let code = reply.json["error"]["code"].as_str().unwrap_or_default().to_owned();
    Answer::Refused { status: reply.status, code }
}

fn no_answer(error: &reqwest::Error) -> Answer {
    Answer::None { why: error.to_string() }
}
