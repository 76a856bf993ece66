//! An agent that keeps the protocol (pull, progress, running, reply, status, ack; control and cancel) and does with each
//! execution what the test says.

#![allow(clippy::unwrap_used)] // in a test an unwrap is an assertion

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use flux_broker::{
    Blobs as _, Change, Delivery, Queue as _, Signals as _, StatusLog as _, Table, Tables as _, memory::MemoryBroker,
};
use flux_protocol::{
    AgentId, ErrorKind, ExecutionError, ExecutionId, Invocation, Lane, Outcome, OutcomeStatus, OutputLog, Phase,
    PoolName, StatusMessage, Stream,
    agent::{
        AgentStatus, Budget, CancelReply, CancelRequest, Capabilities, ControlReply, ControlRequest, Heartbeat,
        NodeStatus, OutputMessage, RunningCount,
    },
    limits,
    output::OutputCollector,
    subject::{self, QueueName},
    time::now,
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What to do with an execution.
#[derive(Clone)]
pub(crate) enum Act {
    /// Print this and succeed.
    Succeed(String),
    /// Exit with 1.
    Fail,
    /// Write this and exit; what does not fit a message goes by reference.
    #[allow(dead_code)] // of the HTTP tests
    Exit { code: i32, stdout: Bytes, stderr: Bytes },
    /// Run until the test lets it end, or it is cancelled.
    Hold(Arc<Notify>),
    /// Die with it: no progress, no reply, nothing.
    Vanish,
    /// Reply with another execution's id and from another agent, then succeed.
    ReplyWronglyThenSucceed,
    /// Succeed with so many bytes of output, by reference.
    Large(usize),
    /// Succeed, and the reply is lost.
    SucceedSilently,
    /// Print these lines one by one as the test lets them, then succeed.
    Print(Vec<String>, Arc<Notify>),
}

pub(crate) type Script = Arc<dyn Fn(&Job) -> Act + Send + Sync>;

pub(crate) struct Job {
    pub(crate) id: ExecutionId,
    pub(crate) attempt: u32,
    pub(crate) payload: Bytes,
    pub(crate) invocation: Invocation,
    pub(crate) queue: QueueName,
}

#[derive(Clone)]
pub(crate) struct FakeAgent {
    inner: Arc<Inner>,
}

struct Inner {
    id: AgentId,
    broker: Arc<MemoryBroker>,
    script: Script,
    total: Budget,
    state: Mutex<State>,
    changed: Notify,
    tasks: TaskTracker,
    killed: CancellationToken,
    deaf: AtomicBool,
    loses_replies: AtomicBool,
    /// Versions' `retry.max_attempts`, which a real agent reads from the function.
    max_attempts: u32,
}

#[derive(Default)]
struct State {
    running: HashMap<ExecutionId, Held>,
    pulling: HashSet<QueueName>,
    holds_off: bool,
    taken: Vec<(ExecutionId, u32)>,
    /// With their reasons.
    remembered_cancels: HashMap<ExecutionId, String>,
}

struct Held {
    queue: QueueName,
    attempt: u32,
    cancel: Arc<Notify>,
    output: Arc<Mutex<OutputCollector>>,
}

impl FakeAgent {
    pub(crate) async fn start(
        broker: &Arc<MemoryBroker>,
        id: &str,
        tasks: u32,
        max_attempts: u32,
        script: Script,
    ) -> Self {
        let inner = Arc::new(Inner {
            id: AgentId::parse(id).unwrap(),
            broker: Arc::clone(broker),
            script,
            total: Budget { tasks, cpu_millicores: 100_000, memory_mb: 100_000 },
            state: Mutex::default(),
            changed: Notify::new(),
            tasks: TaskTracker::new(),
            killed: CancellationToken::new(),
            deaf: AtomicBool::new(false),
            loses_replies: AtomicBool::new(false),
            max_attempts,
        });
        let agent = Self { inner };
        let mut cancels = broker.listen(subject::cancels()).await.unwrap();
        let mut control = broker.listen(&subject::control(&agent.inner.id)).await.unwrap();
        let mut control_all = broker.listen(subject::control_all()).await.unwrap();
        agent.beat().await;
        let listening = agent.clone();
        agent.spawn(async move {
            loop {
                let (cancel, signal) = tokio::select! {
                    Some(signal) = cancels.next() => (true, signal),
                    Some(signal) = control.next() => (false, signal),
                    Some(signal) = control_all.next() => (false, signal),
                    else => return,
                };
                if listening.inner.deaf.load(Ordering::SeqCst) {
                    continue;
                }
                if cancel {
                    listening.cancel(&signal.subject, &signal.body, signal.reply_to).await;
                } else {
                    listening.answer(&signal.body, signal.reply_to).await;
                }
            }
        });
        let beating = agent.clone();
        agent.spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                beating.beat().await;
            }
        });
        let watching = agent.clone();
        let mut hot = broker.watch(Table::Hot, false).await.unwrap();
        agent.spawn(async move {
            while let Some(change) = hot.next().await {
                if let Ok(Change::Put(entry)) = change {
                    watching.pull(QueueName::from_key(&entry.key).unwrap());
                }
            }
        });
        agent
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let killed = self.inner.killed.clone();
        self.inner.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = killed.cancelled() => {}
            }
        });
    }

    pub(crate) fn id(&self) -> &AgentId {
        &self.inner.id
    }

    /// As `kill -9` does: nothing more is sent, and nothing acked.
    pub(crate) fn kill(&self) {
        self.inner.killed.cancel();
    }

    /// Whether signals pass it by, as while its connection is not back yet. It still says that it lives.
    pub(crate) fn set_deaf(&self, deaf: bool) {
        self.inner.deaf.store(deaf, Ordering::SeqCst);
    }

    /// Whether whoever waits for an execution hears nothing of it.
    #[allow(dead_code)] // of the core tests
    pub(crate) fn lose_replies(&self, lost: bool) {
        self.inner.loses_replies.store(lost, Ordering::SeqCst);
    }

    /// Whether it would not start this execution any more.
    pub(crate) fn refuses(&self, id: ExecutionId) -> bool {
        self.inner.state.lock().remembered_cancels.contains_key(&id)
    }

    /// Executions that it has taken from the queue, with the attempt, in order.
    pub(crate) fn taken(&self) -> Vec<(ExecutionId, u32)> {
        self.inner.state.lock().taken.clone()
    }

    pub(crate) fn running(&self) -> Vec<ExecutionId> {
        self.inner.state.lock().running.keys().copied().collect()
    }

    /// Whether it has room, says so, and pulls nothing.
    #[allow(dead_code)] // of the core tests
    pub(crate) fn hold_off(&self, holds_off: bool) {
        self.inner.state.lock().holds_off = holds_off;
    }

    /// Waits until something about what it runs is so.
    pub(crate) async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.inner.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if is(self) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("never so: {what}; taken {:?}", self.taken()));
    }

    pub(crate) async fn beat(&self) {
        let inner = &self.inner;
        let heartbeat = {
            let state = inner.state.lock();
            let used = u32::try_from(state.running.len()).unwrap();
            let mut running: Vec<RunningCount> = Vec::new();
            for held in state.running.values() {
                let at = match running.iter().position(|count| count.function == held.queue.function) {
                    Some(at) => at,
                    None => {
                        let function = held.queue.function.clone();
                        running.push(RunningCount { function, calls: 0, invokes: 0, warm: 0 });
                        running.len() - 1
                    }
                };
                match held.queue.lane {
                    Lane::Call => running[at].calls += 1,
                    Lane::Invoke => running[at].invokes += 1,
                }
            }
            Heartbeat {
                agent_id: inner.id.clone(),
                pool: PoolName::default(),
                address: "here".to_owned(),
                status: if used < inner.total.tasks { AgentStatus::Online } else { AgentStatus::Busy },
                release: "0".to_owned(),
                started_at: flux_protocol::Timestamp::from_micros(1),
                at: now(),
                node: NodeStatus {
                    cpu_percent: 0.0,
                    memory_percent: 0.0,
                    memory_total_mb: 1,
                    memory_used_mb: 0,
                    active_tasks: used,
                    uptime_seconds: 1,
                    collected_at: now(),
                },
                total: inner.total,
                free: Budget { tasks: inner.total.tasks.saturating_sub(used), ..inner.total },
                running,
                capabilities: Capabilities { tiers: vec!["process".to_owned()], ..Capabilities::default() },
                cached_digests: 0,
                secrets_key: None,
                finished: 0,
            }
        };
        let body = Bytes::from(serde_json::to_vec(&heartbeat).unwrap());
        let (pool, id) = (PoolName::default(), &inner.id);
        let _ = inner.broker.put(Table::Agents, &subject::agents_key(&pool, id), body.clone()).await;
        let _ = inner.broker.signal(subject::heartbeat(&pool, id), body).await;
    }

    fn pull(&self, queue: QueueName) {
        if !self.inner.state.lock().pulling.insert(queue.clone()) {
            return;
        }
        let agent = self.clone();
        self.spawn(async move {
            loop {
                let rests = {
                    let state = agent.inner.state.lock();
                    state.holds_off || state.running.len() >= agent.inner.total.tasks as usize
                };
                if rests {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                }
                let Ok(mut pull) = agent.inner.broker.pull(&queue, 1, Duration::from_secs(1)).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                while let Some(next) = pull.next().await {
                    match next {
                        Ok(delivery) => agent.take(delivery),
                        // Cold, or the connection is down: look again soon.
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                }
            }
        });
    }

    fn take(&self, delivery: Delivery) {
        let (mut invocation, _) = Invocation::from_message(|name| delivery.header(name), delivery.body.clone());
        let id = invocation.execution_id.unwrap_or_else(|| {
            ExecutionId::derived(&delivery.position.stream, delivery.position.sequence, delivery.stored_at)
        });
        invocation.execution_id = Some(id);
        let attempt = invocation.attempt + delivery.redeliveries;
        let cancel = Arc::new(Notify::new());
        let output = Arc::new(Mutex::new(OutputCollector::default()));
        let queue = delivery.queue.clone();
        let cancelled_before = {
            let mut state = self.inner.state.lock();
            if state.running.contains_key(&id) {
                return; // A redelivery of what runs already.
            }
            state.taken.push((id, attempt));
            let held = Held { queue: queue.clone(), attempt, cancel: Arc::clone(&cancel), output: Arc::clone(&output) };
            state.running.insert(id, held);
            state.remembered_cancels.contains_key(&id)
        };
        self.inner.changed.notify_waiters();
        let agent = self.clone();
        self.spawn(async move {
            let payload = match &invocation.payload {
                flux_protocol::Payload::Inline(bytes) => bytes.clone(),
                flux_protocol::Payload::Blob(blob) => {
                    let most = limits::PAYLOAD;
                    agent
                        .inner
                        .broker
                        .get_blob(subject::blob_bucket(&blob.key), &blob.key, most)
                        .await
                        .unwrap()
                        .unwrap()
                }
            };
            let job = Job { id, attempt, payload, invocation, queue };
            agent.run(job, delivery, &cancel, &output, cancelled_before).await;
            agent.inner.state.lock().running.remove(&id);
            agent.inner.changed.notify_waiters();
        });
    }

    async fn run(
        &self,
        job: Job,
        delivery: Delivery,
        cancel: &Notify,
        output: &Mutex<OutputCollector>,
        cancelled: bool,
    ) {
        let act = if cancelled { Act::Fail } else { (self.inner.script)(&job) };
        let mut silent = false;
        let mut cancelled = cancelled;
        let outcome = match act {
            Act::Vanish => return std::future::pending().await,
            Act::Succeed(text) => success(text.as_bytes()),
            Act::SucceedSilently => {
                silent = true;
                success(b"unheard")
            }
            Act::Fail => failure(),
            Act::Exit { code, stdout, stderr } => {
                self.exit(&job, code, &[(Stream::Stdout, stdout), (Stream::Stderr, stderr)]).await
            }
            Act::Large(bytes) => self.large(&job, bytes).await,
            Act::ReplyWronglyThenSucceed => {
                self.say(&job, self.status(&job, Phase::Running, None)).await;
                let mut forged = self.status(&job, Phase::Ended, Some(success(b"of another execution")));
                forged.execution_id = ExecutionId::new();
                self.say(&job, forged).await;
                let mut forged = self.status(&job, Phase::Ended, Some(success(b"of another agent")));
                forged.agent_id = Some(AgentId::parse("mallory").unwrap());
                self.say(&job, forged).await;
                success(b"genuine")
            }
            Act::Hold(end) => {
                self.say_running(&job).await;
                tokio::select! {
                    () = end.notified() => success(b"let go"),
                    () = cancel.notified() => {
                        cancelled = true;
                        failure()
                    }
                    () = keep(&delivery) => unreachable!("progress has no end"),
                }
            }
            Act::Print(lines, step) => {
                self.say_running(&job).await;
                for line in lines {
                    tokio::select! {
                        () = step.notified() => {}
                        () = keep(&delivery) => unreachable!("progress has no end"),
                    }
                    let chunk = output.lock().push(Stream::Stdout, Bytes::from(line));
                    let message = OutputMessage { attempt: job.attempt, chunk };
                    let body = serde_json::to_vec(&message).unwrap();
                    self.inner.broker.signal(subject::output(&self.inner.id, job.id), body.into()).await.unwrap();
                }
                let mut outcome = success(b"");
                outcome.output = output.lock().log();
                outcome
            }
        };
        let mut outcome = outcome;
        if cancelled {
            let reason = self.inner.state.lock().remembered_cancels.get(&job.id).cloned().unwrap_or_default();
            let error = ExecutionError::new(ErrorKind::Cancelled, reason);
            outcome = Outcome::without_process(OutcomeStatus::Cancelled, error);
        }
        let failed = outcome.status == OutcomeStatus::Failed;
        if failed && job.queue.lane == Lane::Invoke {
            outcome.will_retry = job.invocation.failures + 1 < self.inner.max_attempts;
        }
        let mut status = self.status(&job, Phase::Ended, Some(outcome));
        if failed && job.queue.lane == Lane::Invoke {
            status.invocation = Some(Box::new(job.invocation.clone()));
        }
        if !silent && !status.outcome.as_ref().unwrap().will_retry {
            self.say(&job, status.clone()).await;
        }
        while self.inner.broker.publish_status(self.inner.id.as_str(), &status).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = delivery.ack.ack().await;
    }

    /// Says that it runs: to whoever waits, and to the log.
    async fn say_running(&self, job: &Job) {
        let status = self.status(job, Phase::Running, None);
        self.say(job, status.clone()).await;
        self.inner.broker.publish_status(self.inner.id.as_str(), &status).await.unwrap();
    }

    async fn say(&self, job: &Job, status: StatusMessage) {
        if let Some(reply_to) = &job.invocation.reply_to
            && !self.inner.loses_replies.load(Ordering::SeqCst)
        {
            let body = serde_json::to_vec(&status).unwrap();
            let _ = self.inner.broker.signal(reply_to.clone(), body.into()).await;
        }
    }

    fn status(&self, job: &Job, phase: Phase, outcome: Option<Outcome>) -> StatusMessage {
        StatusMessage {
            execution_id: job.id,
            function: job.queue.function.clone(),
            version: job.invocation.version.unwrap_or(1),
            attempt: job.attempt,
            lane: job.queue.lane,
            pool: job.queue.pool.clone(),
            phase,
            agent_id: Some(self.inner.id.clone()),
            queued_at: job.id.created_at(),
            started_at: Some(now()),
            at: now(),
            deadline: job.invocation.deadline,
            traceparent: job.invocation.traceparent.clone(),
            outcome,
            invocation: None,
            notes: Vec::new(),
        }
    }

    /// Ends with a code after it wrote this.
    async fn exit(&self, job: &Job, code: i32, written: &[(Stream, Bytes)]) -> Outcome {
        let mut collector = OutputCollector::default();
        for (stream, bytes) in written.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            let mut rest = bytes.clone();
            while !rest.is_empty() {
                collector.push(*stream, rest.split_to(rest.len().min(limits::OUTPUT_CHUNK)));
            }
        }
        let output = collector.finish();
        let mut outcome = if code == 0 { success(b"") } else { failure() };
        if let Some(error) = &mut outcome.error {
            error.message = format!("it exited with code {code}");
            error.exit_code = Some(code);
        }
        self.place_output(job, &mut outcome, output).await;
        outcome
    }

    async fn place_output(&self, job: &Job, outcome: &mut Outcome, output: OutputLog) {
        if output.len() <= limits::INLINE_OUTPUT {
            outcome.output = output;
            return;
        }
        let encoded = output.encode();
        let blob = flux_protocol::execution::BlobRef {
            key: subject::output_blob(&self.inner.id, job.id, job.attempt),
            digest: flux_protocol::Digest::of(&encoded),
            size: encoded.len() as u64,
        };
        self.inner.broker.put_blob(subject::blob_bucket(&blob.key), &blob.key, encoded).await.unwrap();
        outcome.output_ref = Some(blob);
    }

    async fn large(&self, job: &Job, bytes: usize) -> Outcome {
        self.exit(job, 0, &[(Stream::Stdout, vec![b'x'; bytes].into())]).await
    }

    async fn cancel(&self, heard_on: &str, body: &[u8], reply_to: Option<String>) {
        let Some(id) = subject::execution_of_cancel(heard_on) else { return };
        let CancelRequest { reason } = serde_json::from_slice(body).unwrap();
        let held = {
            let mut state = self.inner.state.lock();
            state.remembered_cancels.insert(id, reason);
            self.inner.changed.notify_waiters();
            state.running.get(&id).map(|held| Arc::clone(&held.cancel))
        };
        let Some(cancel) = held else { return };
        cancel.notify_one();
        let agent = self.clone();
        self.spawn(async move {
            agent.until("the cancelled execution ended", |agent| !agent.running().contains(&id)).await;
            if let Some(reply_to) = reply_to {
                let reply = CancelReply { agent_id: agent.inner.id.clone(), cancelled: true };
                let _ = agent.inner.broker.signal(reply_to, serde_json::to_vec(&reply).unwrap().into()).await;
            }
        });
    }

    async fn answer(&self, body: &[u8], reply_to: Option<String>) {
        let (Ok(request), Some(reply_to)) = (serde_json::from_slice::<ControlRequest>(body), reply_to) else { return };
        let reply = {
            let mut state = self.inner.state.lock();
            match request {
                ControlRequest::Tail { execution_id } => match state.running.get(&execution_id) {
                    Some(held) => ControlReply::Tail { attempt: held.attempt, output: held.output.lock().log() },
                    None => ControlReply::NotHeld,
                },
                ControlRequest::Holds { execution_ids } => ControlReply::Holds {
                    agent_id: self.inner.id.clone(),
                    execution_ids: execution_ids.into_iter().filter(|id| state.running.contains_key(id)).collect(),
                },
                ControlRequest::Withdrawn { execution_id, reason } => {
                    let held = state.running.contains_key(&execution_id);
                    if !held {
                        state.remembered_cancels.insert(execution_id, reason);
                        self.inner.changed.notify_waiters();
                    }
                    let execution_ids = Vec::from_iter(held.then_some(execution_id));
                    ControlReply::Holds { agent_id: self.inner.id.clone(), execution_ids }
                }
                _ => ControlReply::Ok { agent_id: self.inner.id.clone() },
            }
        };
        let _ = self.inner.broker.signal(reply_to, serde_json::to_vec(&reply).unwrap().into()).await;
    }
}

async fn keep(delivery: &Delivery) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let _ = delivery.ack.progress().await;
    }
}

fn success(output: &[u8]) -> Outcome {
    let mut collector = OutputCollector::default();
    if !output.is_empty() {
        collector.push(Stream::Stdout, Bytes::copy_from_slice(output));
    }
    Outcome {
        status: OutcomeStatus::Success,
        error: None,
        output: collector.finish(),
        output_ref: None,
        duration_ms: Duration::from_millis(1).into(),
        start: None,
        usage: flux_protocol::Usage::default(),
        will_retry: false,
    }
}

fn failure() -> Outcome {
    let mut error = ExecutionError::new(ErrorKind::Exit, "it exited with code 1");
    error.exit_code = Some(1);
    Outcome::without_process(OutcomeStatus::Failed, error)
}
