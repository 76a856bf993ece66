//! The connection itself: made within a deadline, then kept for ever, its ups and downs counted and logged once each.

use std::{collections::HashSet, sync::Arc, time::Duration};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::options::{NatsAuth, NatsOptions};
use crate::BrokerError;

/// Longest pause between two attempts: a server that is back is found within a tenth of a second.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// A server that accepts and then says nothing is given up on after this long.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(2);
/// A server that swallows packets is noticed after two of these.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Commands waiting while the connection is down. More wait at their sender.
const COMMANDS: usize = 16 * 1024;
/// Messages waiting in one subscription. What comes on top is lost, and said in the log.
const SUBSCRIPTION: usize = 64 * 1024;
/// Different refusals that are logged; a broken identity may cause any number of them.
const REFUSALS_LOGGED: usize = 256;

/// The state of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Link {
    /// How often it was made.
    pub(super) connects: u64,
    pub(super) up: bool,
    /// It will not come back.
    pub(super) closed: bool,
}

/// Subjects that this identity may not publish to, as the server said. It says so beside the request, which then
/// waits for its answer in vain.
pub(super) type Refused = Arc<Mutex<HashSet<String>>>;

/// What connecting gives.
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) link: watch::Receiver<Link>,
    pub(super) public: watch::Receiver<u64>,
    pub(super) refused: Refused,
}

/// Connects, trying again until `options.connect_within` passed.
pub(super) async fn connect(options: &NatsOptions, inbox_prefix: &str) -> Result<Connected, BrokerError> {
    let (link_sender, link) = watch::channel(Link::default());
    let (public_sender, public) = watch::channel(0);
    let refused = Refused::default();
    let watcher = Arc::new(Watcher {
        name: options.name.clone(),
        link: link_sender,
        public: public_sender,
        refusals: Mutex::new(HashSet::new()),
        refused: Arc::clone(&refused),
    });
    let deadline = Instant::now() + options.connect_within;
    let client = loop {
        let attempt = client_options(options, inbox_prefix, &watcher).connect(options.urls.as_slice());
        let Err(error) = (match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(client)) => break client,
            Ok(Err(error)) => Err::<(), _>(error),
            Err(_) => return Err(BrokerError::unavailable("connect", "no server answered in time")),
        }) else {
            continue;
        };
        match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                return Err(BrokerError::Denied { attempted: "connect".to_owned() });
            }
            ConnectErrorKind::ServerParse => return Err(BrokerError::refused("read the server's address", error)),
            _ if Instant::now() + RECONNECT_PAUSE >= deadline => {
                return Err(BrokerError::unavailable("connect", error));
            }
            _ => tokio::time::sleep(RECONNECT_PAUSE).await,
        }
    };
    // The event that says so is on its way.
    let mut first = link.clone();
    let _ = tokio::time::timeout(HANDSHAKE_WITHIN, first.wait_for(|link| link.connects > 0)).await;
    Ok(Connected { client, link, public, refused })
}

fn client_options(options: &NatsOptions, inbox_prefix: &str, watcher: &Arc<Watcher>) -> ConnectOptions {
    let watcher = Arc::clone(watcher);
    let made = match &options.auth {
        NatsAuth::None => ConnectOptions::new(),
        NatsAuth::Certificate(tls) => ConnectOptions::new().tls_client_config((**tls).clone()).require_tls(true),
        NatsAuth::Token(token) => ConnectOptions::with_token(token.clone()),
        NatsAuth::User { name, password } => ConnectOptions::with_user_and_password(name.clone(), password.clone()),
    };
    made.name(&options.name)
        .custom_inbox_prefix(inbox_prefix)
        .connection_timeout(HANDSHAKE_WITHIN)
        .request_timeout(None)
        .ping_interval(PING_EVERY)
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| match attempts {
            0 | 1 => Duration::ZERO,
            2..=5 => Duration::from_millis(20),
            _ => RECONNECT_PAUSE,
        })
        .client_capacity(COMMANDS)
        .subscription_capacity(SUBSCRIPTION)
        .event_callback(move |event| {
            let watcher = Arc::clone(&watcher);
            async move { watcher.note(&event) }
        })
}

struct Watcher {
    name: String,
    link: watch::Sender<Link>,
    public: watch::Sender<u64>,
    refusals: Mutex<HashSet<String>>,
    refused: Refused,
}

impl Watcher {
    fn note(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.change(|link| {
                    link.connects += 1;
                    link.up = true;
                });
                tracing::info!(name = %self.name, connects = self.link.borrow().connects, "connected to the queue");
            }
            Event::Disconnected => {
                if self.change(|link| link.up = false) {
                    tracing::warn!(name = %self.name, "the connection to the queue was lost; connecting again");
                }
            }
            Event::Closed => {
                self.change(|link| {
                    link.up = false;
                    link.closed = true;
                });
            }
            Event::ServerError(error) => {
                let text = error.to_string();
                let mut refusals = self.refusals.lock();
                if refusals.len() < REFUSALS_LOGGED && refusals.insert(text.clone()) {
                    drop(refusals);
                    self.refused.lock().extend(refused_subject(&text));
                    tracing::warn!(name = %self.name, refusal = %text, "the queue refused something");
                }
            }
            Event::SlowConsumer(subscription) => {
                tracing::warn!(name = %self.name, subscription, "messages came faster than they were read and were lost");
            }
            Event::LameDuckMode => tracing::info!(name = %self.name, "the server is going away"),
            Event::Draining | Event::ClientError(_) => {}
        }
    }

    /// Whether anything changed.
    fn change(&self, change: impl FnOnce(&mut Link)) -> bool {
        let changed = self.link.send_if_modified(|link| {
            let before = *link;
            change(link);
            *link != before
        });
        let link = *self.link.borrow();
        self.public.send_replace(if link.up { link.connects } else { 0 });
        changed
    }
}

/// The subject in `Permissions Violation for Publish to "subject"`.
fn refused_subject(said: &str) -> Option<String> {
    let lower = said.to_ascii_lowercase();
    let at = lower.find("permissions violation for publish to ")? + "permissions violation for publish to ".len();
    let subject = said.get(at..)?.trim_matches(|c| matches!(c, '"' | '\'' | ' '));
    (!subject.is_empty()).then(|| subject.to_owned())
}

#[cfg(test)]
mod tests {
    use super::refused_subject;

    #[test]
    fn the_subject_of_a_refusal_is_found() {
        let said = "nats: Permissions Violation for Publish to \"$JS.API.STREAM.INFO.X\"";
        assert_eq!(refused_subject(said).as_deref(), Some("$JS.API.STREAM.INFO.X"));
        assert_eq!(refused_subject("Permissions Violation for Subscription to \"a\""), None);
        assert_eq!(refused_subject("stale connection"), None);
    }
}
