//! One subscription for everything that is addressed to this process: deliveries and ends of pulls, and answers
//! of which several may come.
//!
//! `<inbox>.F.P.<token>.<stream>.<consumer>` is where the server answers a pull, `<inbox>.F.M.<token>` a mailbox,
//! `<inbox>.F.E.<time>` an echo. A router task hands each message to whom it belongs; nobody subscribes for a single pull.
//!
//! *Late deliveries.* What lay on its way while this process, its machine or its connection stood still may be another's
//! by the time that it is read. How old a delivery can be is known from what came before it on the same connection: it was
//! sent after an echo that was read before it had been sent, and after the pull that it answers was asked for. Of the latter
//! nothing follows while there may be older pulls at the server, which ended here without its word.
//!
//! All that is said of one server. In a cluster a delivery takes a way between two of them, of which an echo tells nothing: where that
//! stood still, the ends of pulls and the heartbeats stood still with it. So what comes when one of those is overdue *may be
//! late*, and others are asked before it starts.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, Message, StatusCode, Subscriber};
use flux_protocol::{Timestamp, limits};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    ack_subject::{self, AckSubject},
    ledger::{Ledger, Place},
    link::Link,
};

/// Heartbeats asked for on long pulls, and the silence after which their consumer is taken for gone.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_secs(7);
/// What is late by as much says that something stood still.
const QUIET: Duration = Duration::from_millis(250);
/// When it goes on, all that lay there comes within this.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(2);
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// While invocations are pulled. Well below the ack wait, so that what is in time is not taken for late.
const ECHO_EVERY: Duration = Duration::from_millis(400);

/// A connection that stood still for longer is given up, and with it all that is on its way.
const STALLED_AT_MOST: Duration = Duration::from_secs(15);

/// What a pull hears.
#[derive(Debug)]
pub(super) enum PullEvent {
    Message(Message, Info),
    /// An invocation that may have been on its way for so long that the broker gave it to another.
    Late {
        stream_sequence: u64,
        age: Duration,
    },
    /// The pull ended before it was filled. Filled is the end of the channel.
    Ended(End),
}

/// What the reply subject of a delivery said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Info {
    pub(super) delivered: u64,
    pub(super) stream_sequence: u64,
    pub(super) stored_ns: u64,
    pub(super) pending: u64,
    /// It came from a server of which little was heard lately.
    pub(super) maybe_late: bool,
}

impl Info {
    pub(super) fn stored_at(&self) -> Timestamp {
        Timestamp::from_micros(i64::try_from(self.stored_ns / 1_000).unwrap_or(i64::MAX))
    }
}

/// Why a pull ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Its time passed, or nothing waited.
    Expired,
    /// There is no such consumer.
    Missing,
    /// The consumer was there and was deleted.
    Deleted,
    /// The connection or the consumer's server went away.
    Lost,
    /// As many pulls as may wait wait there already.
    Covered,
    Refused(String),
}

type Events = mpsc::Sender<PullEvent>;

#[derive(Default)]
struct Routes {
    /// By `<stream>.<consumer>`.
    pulls: HashMap<Box<str>, Ledger<Events>>,
    mailboxes: HashMap<u64, mpsc::Sender<Message>>,
    questions: HashMap<u128, mpsc::Sender<Message>>,
}

pub(super) struct Inbox {
    prefix: String,
    /// Where those answer who may not publish into the inbox itself.
    answers: Option<String>,
    next_token: AtomicU64,
    routes: Mutex<Routes>,
    given_back: mpsc::Sender<String>,
    late: AtomicU64,
    started: Instant,
    /// When the newest echo that was read had been sent, in milliseconds since then.
    echoed_ms: AtomicU64,
    /// Pulls that ended here may be open at the server until then, in the same milliseconds.
    untold_ms: AtomicU64,
    /// Until then what comes may have been sent before a silence, in the same milliseconds.
    silent_ms: AtomicU64,
}

impl Inbox {
    /// The inbox, and what its router works on.
    pub(super) fn new(prefix: &str, answers: Option<String>) -> (Arc<Self>, mpsc::Receiver<String>) {
        let (given_back, to_give_back) = mpsc::channel(limits::CHANNEL);
        let inbox = Self {
            prefix: format!("{prefix}.F"),
            answers,
            next_token: AtomicU64::new(1),
            routes: Mutex::default(),
            given_back,
            late: AtomicU64::new(0),
            started: Instant::now(),
            echoed_ms: AtomicU64::new(0),
            untold_ms: AtomicU64::new(0),
            silent_ms: AtomicU64::new(0),
        };
        (Arc::new(inbox), to_give_back)
    }

    pub(super) fn pattern(&self) -> String {
        format!("{}.>", self.prefix)
    }

    /// Where answers of others come, if that is not the inbox.
    pub(super) fn answers_pattern(&self) -> Option<String> {
        Some(format!("{}.*", self.answers.as_ref()?))
    }

    /// Messages that came when their pull had ended, and were given back.
    pub(super) fn late_messages(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Opens a pull on `<stream>.<consumer>`; the caller sends the request with the reply subject it gets.
    pub(super) fn open_pull(
        self: &Arc<Self>,
        consumer: &str,
        batch: usize,
        expires: Duration,
        beats: bool,
    ) -> OpenPull {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let (events, received) = mpsc::channel(batch + 1);
        let now = Instant::now();
        let mut routes = self.routes.lock();
        let ledger = match routes.pulls.get_mut(consumer) {
            Some(ledger) => ledger,
            None => routes.pulls.entry(consumer.into()).or_insert_with(|| Ledger::new(now)),
        };
        ledger.opened(token, batch, now + expires, beats, now, events);
        drop(routes);
        let reply_to = format!("{}.P.{token:x}.{consumer}", self.prefix);
        OpenPull { inbox: Arc::clone(self), token, consumer: consumer.into(), reply_to, received, ended: false }
    }

    /// A place for up to `capacity` answers that nobody took yet.
    pub(super) fn mailbox(self: &Arc<Self>, capacity: usize) -> Mailbox {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let (sender, received) = mpsc::channel(capacity);
        self.routes.lock().mailboxes.insert(token, sender);
        Mailbox { inbox: Arc::clone(self), token, subject: format!("{}.M.{token:x}", self.prefix), received }
    }

    /// The same for answers of those who may know nothing of this process but this subject.
    pub(super) fn question(self: &Arc<Self>, capacity: usize) -> Question {
        let Some(answers) = &self.answers else { return Question::Own(self.mailbox(capacity)) };
        let token = rand::random();
        let (sender, received) = mpsc::channel(capacity);
        self.routes.lock().questions.insert(token, sender);
        Question::Elsewhere { inbox: Arc::clone(self), token, subject: format!("{answers}.{token:032x}"), received }
    }

    /// Takes answers until the connection is closed. Their subject is the permission to give one.
    pub(super) async fn answers(self: Arc<Self>, mut messages: Subscriber, closed: CancellationToken) {
        while let Some(message) = tokio::select! {
            message = messages.next() => message,
            () = closed.cancelled() => None,
        } {
            let token = message.subject.rsplit('.').next().and_then(|token| u128::from_str_radix(token, 16).ok());
            if let Some(question) = token.and_then(|token| self.routes.lock().questions.get(&token).cloned()) {
                let _ = question.try_send(message);
            }
        }
    }

    /// Routes until the connection is closed.
    pub(super) async fn run(
        self: Arc<Self>,
        mut messages: Subscriber,
        mut link: watch::Receiver<Link>,
        closed: CancellationToken,
    ) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                message = messages.next() => match message {
                    Some(message) => self.route(message),
                    None => break,
                },
                _ = link.changed() => {
                    if !link.borrow_and_update().up {
                        self.end_pulls(Ledger::all_ended);
                    }
                }
                now = sweep.tick() => self.end_overdue(now),
                () = closed.cancelled() => break,
            }
        }
        self.end_pulls(Ledger::all_ended);
    }

    fn end_overdue(&self, now: Instant) {
        if self.end_pulls(|ledger| ledger.overdue(now, SILENCE)) {
            self.ended_untold(now);
            self.silent_ms.fetch_max(self.ms(now + STALLED_AT_MOST), Ordering::Relaxed);
        }
    }

    /// Whether a delivery that is read now may have been on its way for as long as something stood still.
    fn may_be_late(&self, now: Instant, ledger: Option<&Ledger<Events>>) -> bool {
        if ledger.is_some_and(|ledger| ledger.is_quiet(now, HEARTBEAT, QUIET)) {
            self.silent_ms.fetch_max(self.ms(now + CAUGHT_UP_WITHIN), Ordering::Relaxed);
        }
        self.ms(now) < self.silent_ms.load(Ordering::Relaxed)
    }

    /// Whether there were any.
    fn end_pulls(&self, which: impl Fn(&mut Ledger<Events>) -> Vec<Events>) -> bool {
        let mut ended = Vec::new();
        let mut routes = self.routes.lock();
        routes.pulls.retain(|_, ledger| {
            ended.extend(which(ledger));
            !ledger.is_empty()
        });
        drop(routes);
        let any = !ended.is_empty();
        tell(ended, &End::Lost);
        any
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// A pull ended here, and may be open at the server until then.
    fn ended_untold(&self, until: Instant) {
        self.untold_ms.fetch_max(self.ms(until), Ordering::Relaxed);
    }

    /// How long a delivery that is read now can have been on its way.
    fn age_at_most(&self, now: Instant, asked_at: Option<Instant>) -> Duration {
        let (echoed_ms, untold_ms) = (self.echoed_ms.load(Ordering::Relaxed), self.untold_ms.load(Ordering::Relaxed));
        let older_are_open = untold_ms > echoed_ms
            && now < self.started + Duration::from_millis(untold_ms).saturating_add(STALLED_AT_MOST);
        let echoed_at = self.started + Duration::from_millis(echoed_ms);
        let since = asked_at.filter(|_| !older_are_open).map_or(echoed_at, |asked_at| asked_at.max(echoed_at));
        now.duration_since(since)
    }

    fn route(&self, message: Message) {
        // A delivery comes on the subject of what was stored; all else on one of ours.
        let Some(message) = self.deliver(message) else { return };
        let Some(rest) = message.subject.strip_prefix(self.prefix.as_str()) else { return };
        let mut tokens = rest.splitn(4, '.').skip(1);
        let (Some(kind), Some(token)) = (tokens.next(), tokens.next().and_then(|t| u64::from_str_radix(t, 16).ok()))
        else {
            return;
        };
        match (kind, tokens.next()) {
            ("M", None) => {
                if let Some(mailbox) = self.routes.lock().mailboxes.get(&token) {
                    // A full mailbox belongs to one who asked for fewer answers than came.
                    let _ = mailbox.try_send(message);
                }
            }
            ("E", None) => drop(self.echoed_ms.fetch_max(token, Ordering::Relaxed)),
            ("P", Some(consumer)) => self.pull_status(token, consumer, &message),
            _ => {}
        }
    }

    /// Takes the message if it is a delivery.
    fn deliver(&self, message: Message) -> Option<Message> {
        let Some(ack) = message.reply.as_deref().and_then(AckSubject::parse) else { return Some(message) };
        let (now, mut routes) = (Instant::now(), self.routes.lock());
        let mut ledger = routes.pulls.get_mut(ack.consumer);
        let age = self.age_at_most(now, ledger.as_ref().and_then(|ledger| ledger.asked_at()));
        let info = Info {
            delivered: ack.delivered,
            stream_sequence: ack.stream_sequence,
            stored_ns: ack.stored_ns,
            pending: ack.pending,
            maybe_late: self.may_be_late(now, ledger.as_deref()),
        };
        let late = age >= limits::ACK_WAIT && is_of_a_queue(ack.consumer);
        let place = ledger.as_mut().map_or(Place::Nobody, |ledger| ledger.delivered(now));
        let events = match place {
            Place::Open(events) => events,
            Place::Last(events) => {
                if routes.pulls.get(ack.consumer).is_some_and(Ledger::is_empty) {
                    routes.pulls.remove(ack.consumer);
                }
                events
            }
            Place::Nobody => {
                drop(routes);
                self.give_back(ack_reply(message));
                return None;
            }
        };
        drop(routes);
        if late {
            let _ = events.try_send(PullEvent::Late { stream_sequence: info.stream_sequence, age });
            return None;
        }
        if let Err(unsent) = events.try_send(PullEvent::Message(message, info))
            && let PullEvent::Message(message, _) = unsent.into_inner()
        {
            self.give_back(ack_reply(message));
        }
        None
    }

    fn pull_status(&self, token: u64, consumer: &str, message: &Message) {
        let Some(status) = message.status else { return };
        let mut routes = self.routes.lock();
        let Some(ledger) = routes.pulls.get_mut(consumer) else { return };
        let said = message.description.as_deref().unwrap_or_default();
        let (ended, why) = match status {
            StatusCode::IDLE_HEARTBEAT => return ledger.heard(Instant::now()),
            StatusCode::NOT_FOUND | StatusCode::TIMEOUT => {
                (ledger.request_ended(token, missing(message)), End::Expired)
            }
            StatusCode::NO_RESPONDERS => (ledger.request_ended(token, None), End::Missing),
            StatusCode::REQUEST_TERMINATED if said.contains("Consumer Deleted") => (ledger.all_ended(), End::Deleted),
            StatusCode::REQUEST_TERMINATED if said.contains("Leadership") || said.contains("Shutdown") => {
                (ledger.all_ended(), End::Lost)
            }
            StatusCode::REQUEST_TERMINATED if said.contains("MaxWaiting") => {
                (ledger.request_ended(token, None), End::Covered)
            }
            _ => (ledger.request_ended(token, missing(message)), End::Refused(format!("{status} {said}"))),
        };
        if ledger.is_empty() {
            routes.pulls.remove(consumer);
        }
        drop(routes);
        tell(ended, &why);
    }

    /// The subject of the next echo; `None` while no invocations are pulled.
    fn next_echo(&self) -> Option<String> {
        if !self.routes.lock().pulls.keys().any(|consumer| is_of_a_queue(consumer)) {
            return None;
        }
        Some(format!("{}.E.{:x}", self.prefix, self.ms(Instant::now())))
    }

    /// A message that nobody waits for any more goes to another agent at once.
    fn give_back(&self, reply: String) {
        let late = self.late.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(%reply, late, "a message came for a pull that had ended; giving it back");
        // Where this channel is full the ack wait does the same.
        let _ = self.given_back.try_send(reply);
    }
}

/// Whether it delivers invocations, of whatever pool.
fn is_of_a_queue(consumer: &str) -> bool {
    ["FLUX_INVOKE", "FLUX_CALL"].iter().any(|stream| consumer.starts_with(stream))
}

/// Sends echoes to this process itself, until the connection is closed.
pub(super) async fn echo(client: Client, inbox: Arc<Inbox>, closed: CancellationToken) {
    let mut echoes = tokio::time::interval(ECHO_EVERY);
    echoes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = echoes.tick() => {}
            () = closed.cancelled() => return,
        }
        if let Some(subject) = inbox.next_echo()
            && let Err(error) = client.publish(subject, bytes::Bytes::new()).await
        {
            tracing::debug!(%error, "an echo was not sent");
        }
    }
}

/// Gives back what came too late, until the connection is closed.
pub(super) async fn give_back(client: Client, mut replies: mpsc::Receiver<String>, closed: CancellationToken) {
    while let Some(reply) = tokio::select! {
        reply = replies.recv() => reply,
        () = closed.cancelled() => None,
    } {
        if let Err(error) = client.publish(reply, "-NAK".into()).await {
            tracing::debug!(%error, "a late message was not given back");
        }
    }
}

fn ack_reply(message: Message) -> String {
    message.reply.map(async_nats::Subject::into_string).unwrap_or_default()
}

fn tell(ended: Vec<Events>, why: &End) {
    for events in ended {
        // There is room: a channel holds its batch and one more. An error is a reader that has gone.
        let _ = events.try_send(PullEvent::Ended(why.clone()));
    }
}

/// How many messages of its batch a request did not get.
fn missing(message: &Message) -> Option<usize> {
    message.headers.as_ref()?.get("Nats-Pending-Messages")?.as_str().parse().ok()
}

/// A pull that was opened here. The end of its channel means that it was filled.
pub(super) struct OpenPull {
    inbox: Arc<Inbox>,
    token: u64,
    consumer: Box<str>,
    pub(super) reply_to: String,
    received: mpsc::Receiver<PullEvent>,
    ended: bool,
}

impl OpenPull {
    /// Safe to cancel. `None` once it was filled or told to have ended.
    pub(super) async fn next(&mut self) -> Option<PullEvent> {
        let event = self.received.recv().await;
        self.ended |= matches!(event, None | Some(PullEvent::Ended(_)));
        event
    }

    /// What is there already.
    pub(super) fn try_next(&mut self) -> Option<PullEvent> {
        let event = self.received.try_recv().ok()?;
        self.ended |= matches!(event, PullEvent::Ended(_));
        Some(event)
    }
}

impl Drop for OpenPull {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let mut routes = self.inbox.routes.lock();
        if let Some(ledger) = routes.pulls.get_mut(&self.consumer) {
            if let Some(until) = ledger.abandoned(self.token) {
                self.inbox.ended_untold(until);
            }
            if ledger.is_empty() {
                routes.pulls.remove(&self.consumer);
            }
        }
        drop(routes);
        self.received.close();
        while let Ok(event) = self.received.try_recv() {
            if let PullEvent::Message(message, _) = event
                && let Some(reply) = message.reply.filter(|reply| reply.starts_with(ack_subject::PREFIX))
            {
                self.inbox.give_back(reply.into_string());
            }
        }
    }
}

/// Answers to one question.
pub(super) struct Mailbox {
    inbox: Arc<Inbox>,
    token: u64,
    pub(super) subject: String,
    received: mpsc::Receiver<Message>,
}

impl Mailbox {
    /// Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Message> {
        self.received.recv().await
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.inbox.routes.lock().mailboxes.remove(&self.token);
    }
}

/// Answers of others to one question.
pub(super) enum Question {
    Own(Mailbox),
    Elsewhere { inbox: Arc<Inbox>, token: u128, subject: String, received: mpsc::Receiver<Message> },
}

impl Question {
    pub(super) fn subject(&self) -> &str {
        match self {
            Self::Own(mailbox) => &mailbox.subject,
            Self::Elsewhere { subject, .. } => subject,
        }
    }

    /// Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Message> {
        match self {
            Self::Own(mailbox) => mailbox.next().await,
            Self::Elsewhere { received, .. } => received.recv().await,
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if let Self::Elsewhere { inbox, token, .. } = self {
            inbox.routes.lock().questions.remove(token);
        }
    }
}

#[cfg(test)]
mod tests;
