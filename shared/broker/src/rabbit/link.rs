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
        self.storing.lock().begin();
        let done = self.within(attempted, session.publish(exchange, key, properties, body)).await;
        self.storing.lock().end(done.is_ok());
        match done? {
            Confirmed::Stored | Confirmed::Unroutable => Ok(()),
            Confirmed::Full => Err(BrokerError::Full { what: format!("{exchange} ({key})") }),
        }
    }

    pub(super) fn stores_nothing_for(&self) -> Option<Duration> {
        let storing = self.storing.lock();
        storing.since.map(|since| since.elapsed())
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
    fn begin(&mut self) {
        self.pending += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    /// One that was not confirmed in time leaves the silence as long as it was.
    fn end(&mut self, confirmed: bool) {
        self.pending = self.pending.saturating_sub(1);
        if confirmed {
            self.since = (self.pending > 0).then(Instant::now);
        }
    }
}

/// What may be published at all.
pub(super) fn check_size(body: &[u8]) -> Result<(), BrokerError> {
    if body.len() > limits::MESSAGE {
        return Err(BrokerError::TooLarge { size: body.len(), limit: limits::MESSAGE });
    }
    Ok(())
}
