//! Secrets: encrypted before they reach the store. How agents come by them: [`super::secret_answers`].

use std::path::PathBuf;

use flux_protocol::{ErrorCode, FunctionSpec, SecretName, limits, time::now};
use flux_secrets::{AtRest, Keyring, KeyringError};
use flux_store::SealedSecret;
use parking_lot::Mutex;

use super::{Gateway, Inner};
use crate::refusal::Refusal;

/// The keys that secrets are encrypted with, once they were needed.
#[derive(Debug)]
pub(super) struct SecretKeys {
    path: Option<PathBuf>,
    ring: Mutex<Option<Keyring>>,
    /// Held while a value is set or all are encrypted anew: none is written down with a key that goes meanwhile.
    changing: tokio::sync::Mutex<()>,
}

impl SecretKeys {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, ring: Mutex::new(None), changing: tokio::sync::Mutex::new(()) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Keyring) -> Result<T, KeyringError>) -> Result<T, Refusal> {
        let mut ring = self.ring.lock();
        let opened = match &mut *ring {
            Some(opened) => opened,
            none => {
                let path = self.path.as_deref().ok_or_else(|| {
                    Refusal::new(
                        ErrorCode::SecretsUnavailable,
                        "`gateway.secrets_key` names no file to encrypt secrets with",
                    )
                })?;
                none.insert(Keyring::open(path).map_err(unavailable)?)
            }
        };
        work(opened).map_err(unavailable)
    }

    /// As the file is now: another gateway that shares it may have changed it.
    fn read_again(&self) -> Result<(), Refusal> {
        match &mut *self.ring.lock() {
            Some(ring) => ring.read_again().map_err(unavailable),
            // It is read when it is needed.
            None => Ok(()),
        }
    }

    pub(super) fn decrypt(&self, secret: &SealedSecret) -> Result<Vec<u8>, Refusal> {
        let at_rest = AtRest { key: secret.key.clone(), sealed: secret.sealed.clone() };
        let mut is_known = true;
        let opened = self.with(|ring| {
            is_known = ring.has(&at_rest.key);
            ring.decrypt(&secret.name, &at_rest)
        });
        if is_known {
            return opened;
        }
        self.read_again()?;
        self.with(|ring| ring.decrypt(&secret.name, &at_rest))
    }
}

fn unavailable(error: KeyringError) -> Refusal {
    Refusal::new(ErrorCode::SecretsUnavailable, error.to_string()).caused_by(error)
}

fn secret_not_found(name: &SecretName) -> Refusal {
    Refusal::new(ErrorCode::SecretNotFound, format!("there is no secret `{name}`; set it with PUT /secrets/{name}"))
}

impl Gateway {
    /// Sets a secret, and says which version of it this is. Agents end the workers that have the one before within seconds.
    ///
    /// # Errors
    /// It cannot be a variable's value, there are too many, or it cannot be encrypted or stored.
    pub async fn put_secret(&self, name: &SecretName, value: &[u8]) -> Result<u32, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        let wrong = |problem: String| Refusal::new(ErrorCode::InvalidRequest, problem).with_field("value");
        if value.len() > limits::SECRET {
            return Err(wrong(format!("a secret has at most {} bytes; this one has {}", limits::SECRET, value.len())));
        }
        if value.contains(&0) || std::str::from_utf8(value).is_err() {
            return Err(wrong("a secret becomes an environment variable: it is UTF-8, without NUL".to_owned()));
        }
        let _changing = inner.secret_keys.changing.lock().await;
        inner.secret_keys.read_again()?;
        inner.require_all_keys().await?;
        loop {
            let AtRest { key, sealed } = inner.secret_keys.with(|ring| ring.encrypt(name, value))?;
            let at = now();
            let used = key.clone();
            let secret = SealedSecret { name: name.clone(), key, sealed, version: 0, created_at: at, updated_at: at };
            let version = inner.store.put_secret(&secret).await?.ok_or_else(|| {
                let message = format!("there are {} secrets, which is all that are kept: remove some", limits::SECRETS);
                Refusal::new(ErrorCode::LimitReached, message)
            })?;
            // Other gateways may have rotated the key away meanwhile; one that has yet to forget it finds the value.
            inner.secret_keys.read_again()?;
            if inner.secret_keys.with(|ring| Ok(ring.has(&used)))? {
                return Ok(version);
            }
        }
    }

    /// Every secret, by name. The values are encrypted, and nothing here opens them.
    ///
    /// # Errors
    /// The store is out of reach.
    pub async fn secrets(&self) -> Result<Vec<SealedSecret>, Refusal> {
        Ok(self.inner.store.secrets().await?)
    }

    /// # Errors
    /// It is unknown.
    pub async fn secret(&self, name: &SecretName) -> Result<SealedSecret, Refusal> {
        self.inner.store.secret(name).await?.ok_or_else(|| secret_not_found(name))
    }

    /// # Errors
    /// It is unknown.
    pub async fn delete_secret(&self, name: &SecretName) -> Result<(), Refusal> {
        if self.inner.store.delete_secret(name).await? { Ok(()) } else { Err(secret_not_found(name)) }
    }

    /// Encrypts every secret with a new key, and then forgets the keys before but the last. How many there were.
    ///
    /// # Errors
    /// One does not open, the file cannot be written, or the store is out of reach. Then the old keys stay.
    pub async fn rotate_secrets_key(&self) -> Result<usize, Refusal> {
        let inner = &self.inner;
        inner.require_open()?;
        let _changing = inner.secret_keys.changing.lock().await;
        inner.secret_keys.read_again()?;
        inner.require_all_keys().await?;
        let (before, ring) = inner.secret_keys.with(|ring| Ok((ring.add_key()?, ring.clone())))?;
        inner.reseal(&before, &ring).await?;
        inner.secret_keys.with(|ring| ring.forget_keys(&before))?;
        // What another gateway wrote down between the last look and now.
        inner.reseal(&before, &ring).await?;
        Ok(inner.store.secrets().await?.len())
    }
}

impl Inner {
    /// Encrypts anew what is encrypted with one of these keys, which `ring` has, until there is none. A newer key than this
    /// rotation's is another gateway's, which rotates too.
    async fn reseal(&self, before: &[String], ring: &Keyring) -> Result<(), Refusal> {
        loop {
            let all = self.store.secrets().await?;
            let old: Vec<_> = all.into_iter().filter(|secret| before.contains(&secret.key)).collect();
            if old.is_empty() {
                return Ok(());
            }
            for secret in old {
                let at_rest = AtRest { key: secret.key.clone(), sealed: secret.sealed.clone() };
                let value = ring.decrypt(&secret.name, &at_rest).map_err(unavailable)?;
                let AtRest { key, sealed } = self.secret_keys.with(|ring| ring.encrypt(&secret.name, &value))?;
                self.store.reseal_secret(&SealedSecret { key, sealed, ..secret }).await?;
            }
        }
    }

    /// A key file of this gateway's own making beside secrets that it cannot open would split them in two.
    async fn require_all_keys(&self) -> Result<(), Refusal> {
        let secrets = self.store.secrets().await?;
        let lacks = |ring: &Keyring| secrets.iter().find(|secret| !ring.has(&secret.key)).cloned();
        if self.secret_keys.with(|ring| Ok(lacks(ring)))?.is_none() {
            return Ok(());
        }
        self.secret_keys.read_again()?;
        match self.secret_keys.with(|ring| Ok(lacks(ring)))? {
            None => Ok(()),
            Some(secret) => self.secret_keys.decrypt(&secret).map(|_| ()),
        }
    }

    /// Those of a function's secrets that are not set.
    pub(super) async fn missing_secrets(&self, spec: &FunctionSpec) -> Result<Vec<SecretName>, Refusal> {
        let mut missing = Vec::new();
        for name in &spec.secrets {
            if self.store.secret(name).await?.is_none() {
                missing.push(name.clone());
            }
        }
        Ok(missing)
    }
}
