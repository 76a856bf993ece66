//! The connection over its ups and downs: one task makes it, and makes it again.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use flux_protocol::limits;
use flux_runtime::Tasks;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    error::{into_broker, is_denied, soft},
    listeners::Listeners,
    names::Names,
    options::RabbitOptions,
    session::{Confirmed, Session},
};
use crate::BrokerError;

/// How long a call waits for the connection and for its answer.
pub(super) const WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may take to be made, with the twenty round trips that it takes.
const OPEN_WITHIN: Duration = Duration::from_secs(15);
/// How long a silence is believed after the last publish into it.
const SAYS_WITHIN: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone, Default)]
struct State {
    session: Option<Arc<Session>>,
    closed: bool,
}

/// Publishes that the server has not confirmed.
#[derive(Default)]
struct Storing {
    pending: usize,
    /// Since when there are some, or the last of them was confirmed.
    since: Option<Instant>,
    /// When one last was not confirmed in time, if none was confirmed after it.
    in_vain: Option<Instant>,
}

pub(super) struct Link {
    options: RabbitOptions,
    pub(super) names: Names,
    pub(super) tasks: Tasks,
    pub(super) listeners: Arc<Listeners>,
    /// Cancelled when the broker is closed or the process is killed.
    pub(super) closed: CancellationToken,
    state: watch::Sender<State>,
    connection: watch::Sender<u64>,
    storing: Mutex<Storing>,
}

impl Link {
    /// Connects, trying again until `connect_within` passed.
    pub(super) async fn connect(options: RabbitOptions, tasks: Tasks) -> Result<Arc<Self>, BrokerError> {
        let closed = tasks.shutdown().kill_token().child_token();
        let link = Arc::new(Self {
            names: Names::new(&options.namespace),
            listeners: Arc::new(Listeners::new(options.answers.clone())),
            options,
            tasks,
            closed,
            state: watch::Sender::default(),
            connection: watch::channel(0).0,
            storing: Mutex::default(),
        });
        let until = Instant::now() + link.options.connect_within;
        let mut pause = FIRST_PAUSE;
        let session = loop {
            match link.open(1).await {
                Ok(session) => break session,
                // Waiting does not change who this is.
                Err(error) if is_denied(&error) => return Err(into_broker("connect", error)),
                Err(error) if Instant::now() + pause >= until => {
                    return Err(match soft(&error) {
                        Some(_) => into_broker("connect", error),
                        None => BrokerError::unavailable("connect", error),
                    });
                }
                Err(error) => tracing::debug!(%error, "no connection to RabbitMQ yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        link.publish_session(&session);
        link.tasks.spawn("rabbitmq connection", Arc::clone(&link).keep(session));
        Ok(link)
    }

    async fn open(self: &Arc<Self>, number: u64) -> Result<Arc<Session>, lapin::Error> {
        let mut failed = None;
        for url in &self.options.urls {
            let opened = tokio::time::timeout(OPEN_WITHIN, async {
                let session = Arc::new(Session::open(&self.options, url, number, &self.names).await?);
                self.listeners.restore(self, &session).await?;
                Ok::<_, lapin::Error>(session)
            });
            match opened.await {
                Ok(Ok(session)) => return Ok(session),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => {
                    let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer came in time");
                    failed = Some(late.into());
                }
            }
        }
        Err(failed.unwrap_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidInput, "no URL of a RabbitMQ server is given").into()
        }))
    }

    fn publish_session(&self, session: &Arc<Session>) {
        self.state.send_modify(|state| state.session = Some(Arc::clone(session)));
        self.connection.send_replace(session.number);
    }

    async fn keep(self: Arc<Self>, mut session: Arc<Session>) {
        loop {
            tokio::select! {
                () = session.ended() => {}
                () = self.closed.cancelled() => {
                    session.close().await;
                    return;
                }
            }
            self.state.send_modify(|state| state.session = None);
            self.connection.send_replace(0);
            *self.storing.lock() = Storing::default();
            tracing::warn!("the connection to RabbitMQ is lost; connecting again");
            // Channels that still work would keep deliveries from others.
            session.close().await;
            let mut pause = FIRST_PAUSE;
            session = loop {
                let opened = tokio::select! {
                    opened = self.open(session.number + 1) => opened,
                    () = self.closed.cancelled() => return,
                };
                match opened {
                    Ok(session) => break session,
                    Err(error) => tracing::debug!(%error, "still no connection to RabbitMQ"),
                }
                tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            };
            self.publish_session(&session);
            tracing::info!(connects = session.number, "connected to RabbitMQ again");
        }
    }

    pub(super) fn connection(&self) -> watch::Receiver<u64> {
        self.connection.subscribe()
    }

    /// The connection that is up, waiting for it as long as a call may take.
    pub(super) async fn session(&self, attempted: &'static str) -> Result<Arc<Session>, BrokerError> {
        match tokio::time::timeout(WITHIN, self.session_whenever()).await {
            Ok(session) => session.ok_or(BrokerError::Closed),
            Err(_) => Err(BrokerError::unavailable(attempted, "there is no connection")),
        }
    }

    /// The same, however long it takes. `None`: it is closed for good.
    pub(super) async fn session_whenever(&self) -> Option<Arc<Session>> {
        let mut states = self.state.subscribe();
        let state = states.wait_for(|state| state.closed || state.session.as_ref().is_some_and(|s| s.is_up())).await;
        state.ok()?.session.clone()
    }

    /// Waits for an answer no longer than a call may take.
    pub(super) async fn within<T>(
        &self,
        attempted: &'static str,
        work: impl Future<Output = Result<T, lapin::Error>>,
    ) -> Result<T, BrokerError> {
        match tokio::time::timeout(WITHIN, work).await {
            Ok(done) => done.map_err(|error| into_broker(attempted, error)),
            Err(_) => Err(BrokerError::unavailable(attempted, "no answer came in time")),
        }
    }

    /// Publishes to an exchange; done once the server has stored it.
    pub(super) async fn store(
        &self,
        attempted: &'static str,
        exchange: &str,
        key: &str,
        properties: lapin::BasicProperties,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let session = self.session(attempted).await?;
        self.store_on(&session, attempted, exchange, key, properties, body).await
    }

    pub(super) async fn store_on(
        &self,
        session: &Session,
        attempted: &'static str,
        exchange: &str,
        key: &str,
        properties: lapin::BasicProperties,
        body: &[u8],
    ) -> Result<(), BrokerError> {
        let begun = Begun::new(&self.storing);
        let done = self.within(attempted, session.publish(exchange, key, properties, body)).await;
        begun.end(done.is_ok());
        match done? {
            Confirmed::Stored | Confirmed::Unroutable => Ok(()),
            Confirmed::Full => Err(BrokerError::Full { what: format!("{exchange} ({key})") }),
        }
    }

    pub(super) fn stores_nothing_for(&self) -> Option<Duration> {
        self.storing.lock().nothing_for(Instant::now())
    }

    pub(super) async fn close(&self) {
        self.state.send_modify(|state| state.closed = true);
        let session = self.state.borrow().session.clone();
        if let Some(session) = session {
            session.close().await;
        }
        self.state.send_modify(|state| state.session = None);
        self.connection.send_replace(0);
        self.closed.cancel();
    }
}

impl Storing {
    fn begin(&mut self, now: Instant) {
        if self.is_old(now) {
            (self.since, self.in_vain) = (None, None);
        }
        self.pending += 1;
        self.since.get_or_insert(now);
    }

    /// One that was not confirmed in time leaves the silence as long as it was. One that its caller gave up says nothing.
    fn end(&mut self, how: Ended, now: Instant) {
        self.pending = self.pending.saturating_sub(1);
        match how {
            Ended::Confirmed => (self.since, self.in_vain) = ((self.pending > 0).then_some(now), None),
            Ended::InVain => self.in_vain = Some(now),
            Ended::Dropped if self.pending == 0 && self.in_vain.is_none() => self.since = None,
            Ended::Dropped => {}
        }
    }

    /// What nobody tried since says nothing of now.
    fn is_old(&self, now: Instant) -> bool {
        self.pending == 0 && self.in_vain.is_none_or(|at| now.saturating_duration_since(at) > SAYS_WITHIN)
    }

    fn nothing_for(&self, now: Instant) -> Option<Duration> {
        let since = self.since.filter(|_| !self.is_old(now))?;
        let until = if self.pending > 0 { now } else { self.in_vain? };
        Some(until.saturating_duration_since(since))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Confirmed,
    InVain,
    Dropped,
}

/// A publish on its way, which ends when its future is dropped too.
struct Begun<'a> {
    storing: &'a Mutex<Storing>,
    how: Ended,
}

impl<'a> Begun<'a> {
    fn new(storing: &'a Mutex<Storing>) -> Self {
        storing.lock().begin(Instant::now());
        Self { storing, how: Ended::Dropped }
    }

    fn end(mut self, confirmed: bool) {
        self.how = if confirmed { Ended::Confirmed } else { Ended::InVain };
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.storing.lock().end(self.how, Instant::now());
    }
}

/// What may be published at all.
pub(super) fn check_size(body: &[u8]) -> Result<(), BrokerError> {
    if body.len() > limits::MESSAGE {
        return Err(BrokerError::TooLarge { size: body.len(), limit: limits::MESSAGE });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_whose_caller_went_is_no_silence() {
        let storing = Mutex::<Storing>::default();
        drop(Begun::new(&storing));
        let storing = storing.lock();
        assert_eq!((storing.pending, storing.nothing_for(Instant::now())), (0, None));
    }

    #[test]
    fn a_silence_grows_until_something_is_stored() {
        let (mut storing, begun) = (Storing::default(), Instant::now());
        let after = |seconds| begun + Duration::from_secs(seconds);
        storing.begin(begun);
        storing.end(Ended::InVain, after(5));
        assert_eq!(storing.nothing_for(after(8)), Some(Duration::from_secs(5)));
        storing.begin(after(8));
        assert_eq!(storing.nothing_for(after(9)), Some(Duration::from_secs(9)));
        storing.end(Ended::Dropped, after(9));
        assert_eq!(storing.nothing_for(after(10)), Some(Duration::from_secs(5)), "it told nothing");
        storing.begin(after(10));
        storing.end(Ended::Confirmed, after(11));
        assert_eq!(storing.nothing_for(after(11)), None);
    }

    #[test]
    fn a_silence_that_nobody_asks_into_is_forgotten() {
        let (mut storing, begun) = (Storing::default(), Instant::now());
        storing.begin(begun);
        storing.end(Ended::InVain, begun + WITHIN);
        let later = begun + WITHIN + SAYS_WITHIN + WITHIN;
        assert_eq!(storing.nothing_for(later), None);
        storing.begin(later);
        assert_eq!(storing.nothing_for(later), Some(Duration::ZERO), "it begins anew");
    }
}
