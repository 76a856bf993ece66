//! API keys: all of them in memory, so that the path of a request meets no store.
//!
//! One task reads the store again: when a change is signalled, when one was made here (whoever made it waits for that), and
//! every [`limits::KEYS_READ_EVERY`], should a signal have been lost. What one read found replaces all that was known, but
//! a key that stays keeps its counters.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use flux_broker::{Broker, Signal};
use flux_protocol::{Digest, ErrorCode, KeyId, Scopes, Timestamp, limits, subject, time::now};
use flux_runtime::Tasks;
use flux_store::{ApiKeyRecord, SharedStore, StoreError};
use futures::{StreamExt as _, stream::BoxStream};
use parking_lot::RwLock;
use rand::RngCore as _;
use subtle::ConstantTimeEq as _;
use tokio::sync::{mpsc, oneshot};

use super::{Gateway, rate::Rate};
use crate::refusal::Refusal;

/// What every key begins with; then its id, `_`, and 256 random bits.
const PREFIX: &str = "flux_";
const SECRET_BYTES: usize = 32;
/// A watch that broke is tried again after this.
const LISTEN_AGAIN: Duration = Duration::from_millis(500);

/// A key as requests are judged by it.
#[derive(Debug)]
pub struct KnownKey {
    pub record: ApiKeyRecord,
    pub rate: Rate,
    /// In microseconds: when it was used last here, and what of that was written.
    used: AtomicI64,
    written: AtomicI64,
}

impl KnownKey {
    fn new(record: ApiKeyRecord, most: Option<u32>) -> Self {
        let rate = Rate::new(record.requests_per_second.or(most));
        Self { record, rate, used: AtomicI64::new(0), written: AtomicI64::new(0) }
    }
}

/// A key that opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadKey {
    /// Never made here, revoked, or rotated away.
    Unknown,
    /// It is the right one, and over.
    Expired { at: Timestamp },
}

/// What a new key is asked to be.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub name: String,
    pub scopes: Scopes,
    pub expires_at: Option<Timestamp>,
    pub requests_per_second: Option<u32>,
}

type All = Arc<HashMap<KeyId, Arc<KnownKey>>>;
type Read = oneshot::Sender<Result<(), StoreError>>;

pub(super) struct Keys {
    store: SharedStore,
    broker: Arc<dyn Broker>,
    known: RwLock<All>,
    /// Of keys that do not say how many requests they may make.
    requests_per_second: Option<u32>,
    reads: mpsc::Sender<Read>,
}

impl Keys {
    pub(super) async fn start(
        store: SharedStore,
        broker: Arc<dyn Broker>,
        requests_per_second: Option<u32>,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, StoreError> {
        let (reads, asked) = mpsc::channel(limits::CHANNEL);
        let keys = Arc::new(Self { store, broker, known: RwLock::default(), requests_per_second, reads });
        keys.read().await?;
        let killed = tasks.shutdown().kill_token();
        let reading = Arc::clone(&keys);
        tasks.spawn_essential("keys", {
            let killed = killed.clone();
            async move {
                tokio::select! {
                    () = reading.follow(asked) => {}
                    () = killed.cancelled() => {}
                }
            }
        });
        let writing = Arc::clone(&keys);
        tasks.spawn_essential("uses of keys", async move {
            loop {
                let last = tokio::time::timeout(limits::KEYS_USED_EVERY, killed.cancelled()).await.is_ok();
                writing.write_uses().await;
                if last {
                    return;
                }
            }
        });
        Ok(keys)
    }

    /// Whether a key opens anything now, and which it is. Its use is remembered.
    pub(super) fn check(&self, text: &str, at: Timestamp) -> Result<Arc<KnownKey>, BadKey> {
        let id = id_of(text).ok_or(BadKey::Unknown)?;
        let known = self.known.read().get(&id).cloned().ok_or(BadKey::Unknown)?;
        let given = Digest::of(text.as_bytes());
        let is = |digest: &Digest| bool::from(digest.as_bytes().ct_eq(given.as_bytes()));
        let record = &known.record;
        let is_current = is(&record.digest);
        let is_previous = record.previous.is_some_and(|previous| is(&previous.digest) && at < previous.until);
        if !is_current && !is_previous {
            return Err(BadKey::Unknown);
        }
        if let Some(expired) = record.expires_at.filter(|expires| *expires <= at) {
            return Err(BadKey::Expired { at: expired });
        }
        known.used.store(at.as_micros(), Ordering::Relaxed);
        Ok(known)
    }

    async fn follow(&self, mut asked: mpsc::Receiver<Read>) {
        let mut changes = self.listen().await;
        loop {
            let mut waiting = Vec::new();
            tokio::select! {
                change = changes.next() => {
                    if change.is_none() {
                        tokio::time::sleep(LISTEN_AGAIN).await;
                        changes = self.listen().await;
                    }
                }
                read = asked.recv() => waiting.extend(read),
                () = tokio::time::sleep(limits::KEYS_READ_EVERY) => {}
            }
            // Whoever asked before the read begins is answered by it.
            while let Ok(read) = asked.try_recv() {
                waiting.push(read);
            }
            let read = self.read().await;
            if let Err(error) = &read {
                tracing::warn!(error = error as &dyn std::error::Error, "the API keys cannot be read again now");
            }
            let told = read.is_ok();
            for asker in waiting {
                let _ = asker.send(if told { Ok(()) } else { Err(StoreError::Closed) });
            }
        }
    }

    async fn listen(&self) -> BoxStream<'static, Signal> {
        match self.broker.listen(subject::KEYS_CHANGED).await {
            Ok(changes) => changes,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot hear of changed keys; trying again");
                futures::stream::empty().boxed()
            }
        }
    }

    async fn read(&self) -> Result<(), StoreError> {
        let records = self.store.api_keys().await?;
        let before = Arc::clone(&self.known.read());
        let all: HashMap<_, _> = records.into_iter().map(|record| self.known_as(&before, record)).collect();
        *self.known.write() = Arc::new(all);
        Ok(())
    }

    fn known_as(&self, before: &All, mut record: ApiKeyRecord) -> (KeyId, Arc<KnownKey>) {
        let id = record.id.clone();
        // Every gateway has its own, newer.
        record.last_used_at = None;
        let kept = before.get(&id);
        if let Some(same) = kept.filter(|kept| kept.record == record) {
            return (id, Arc::clone(same));
        }
        let known = KnownKey::new(record, self.requests_per_second);
        if let Some(kept) = kept {
            known.used.store(kept.used.load(Ordering::Relaxed), Ordering::Relaxed);
            known.written.store(kept.written.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        (id, Arc::new(known))
    }

    /// A change was stored: tells every other gateway, and waits until it is in force here.
    async fn changed(&self) -> Result<(), Refusal> {
        if let Err(error) = self.broker.signal(subject::KEYS_CHANGED.to_owned(), Bytes::new()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "other gateways learn of a changed key a little later"
            );
        }
        let (reply, done) = oneshot::channel();
        let away = || Refusal::new(ErrorCode::StoreUnavailable, "it is stored, and in force within some seconds");
        self.reads.send(reply).await.map_err(|_| away())?;
        done.await.map_err(|_| away())?.map_err(|error| away().caused_by(error))
    }

    async fn write_uses(&self) {
        let known = Arc::clone(&self.known.read());
        let mut uses = Vec::new();
        for (id, key) in known.iter() {
            let used = key.used.load(Ordering::Relaxed);
            if used > key.written.load(Ordering::Relaxed) {
                uses.push((id.clone(), used, Arc::clone(key)));
            }
        }
        if uses.is_empty() {
            return;
        }
        let said = uses.iter().map(|(id, used, _)| (id.clone(), Timestamp::from_micros(*used))).collect();
        match self.store.keys_used(said).await {
            Ok(()) => uses.iter().for_each(|(_, used, key)| key.written.store(*used, Ordering::Relaxed)),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "when keys were used is written later");
            }
        }
    }
}

/// The id in a key's text.
fn id_of(text: &str) -> Option<KeyId> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (!secret.is_empty()).then(|| KeyId::parse(id).ok()).flatten()
}

/// A key of this id that nobody can guess.
fn draw(id: &KeyId) -> String {
    let mut secret = [0; SECRET_BYTES];
    rand::rng().fill_bytes(&mut secret);
    format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret))
}

fn key_not_found(id: &KeyId) -> Refusal {
    Refusal::new(ErrorCode::KeyNotFound, format!("there is no key `{id}`; GET /keys lists those that there are"))
}

impl Gateway {
    /// Which key this text is, if it opens anything now.
    ///
    /// # Errors
    /// It opens nothing.
    pub fn check_key(&self, text: &str) -> Result<Arc<KnownKey>, BadKey> {
        self.inner.keys.check(text, now())
    }

    /// Makes a key. Its text is told here and nowhere else.
    ///
    /// # Errors
    /// There are too many, or the store is out of reach.
    pub async fn create_key(&self, new: NewKey, created_by: String) -> Result<(ApiKeyRecord, String), Refusal> {
        let inner = &self.inner;
        let id = KeyId::random();
        let text = draw(&id);
        let NewKey { name, scopes, expires_at, requests_per_second } = new;
        let record = ApiKeyRecord {
            id,
            name,
            scopes,
            digest: Digest::of(text.as_bytes()),
            previous: None,
            created_at: now(),
            created_by,
            rotated_at: None,
            expires_at,
            requests_per_second,
            last_used_at: None,
        };
        if !inner.store.insert_key(&record).await? {
            let message = format!("there are {} keys, which is all that are kept: revoke some", limits::KEYS);
            return Err(Refusal::new(ErrorCode::LimitReached, message));
        }
        inner.keys.changed().await?;
        Ok((record, text))
    }

    /// Every key, oldest first. `last_used_at` is some seconds old.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn api_keys(&self) -> Result<Vec<ApiKeyRecord>, Refusal> {
        Ok(self.inner.store.api_keys().await?)
    }

    /// Gives a key a new text; the old one works for `overlap` more.
    ///
    /// # Errors
    /// It is unknown.
    pub async fn rotate_key(&self, id: &KeyId, overlap: Duration) -> Result<(ApiKeyRecord, String), Refusal> {
        let inner = &self.inner;
        let text = draw(id);
        let at = now();
        let rotated = inner.store.rotate_key(id, Digest::of(text.as_bytes()), at, at.plus(overlap)).await?;
        let record = rotated.ok_or_else(|| key_not_found(id))?;
        inner.keys.changed().await?;
        Ok((record, text))
    }

    /// # Errors
    /// It is unknown.
    pub async fn revoke_key(&self, id: &KeyId) -> Result<(), Refusal> {
        let inner = &self.inner;
        if !inner.store.delete_key(id).await? {
            return Err(key_not_found(id));
        }
        inner.keys.changed().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_id_is_in_its_text() {
        for _ in 0..200 {
            let id = KeyId::random();
            let text = draw(&id);
            assert_eq!(id_of(&text), Some(id), "{text}");
            assert!(text.len() == PREFIX.len() + 12 + 1 + 43, "{text}");
        }
        for wrong in ["", "flux_", "flux_abc", "flux_abc_", "flux__x", "flux_a.b_x", "abc_x", "Flux_abc_x"] {
            assert_eq!(id_of(wrong), None, "{wrong}");
        }
    }
}
