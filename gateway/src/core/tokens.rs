//! JSON Web Tokens of configured issuers.
//!
//! A token never chooses how it is checked. Its `iss` only says which issuer's keys to try, its `kid` which of them; the
//! algorithm is the key's, and a token that says another is refused before anything is computed. `jku`, `jwk`, `x5u` and
//! `x5c` are read by nobody; `crit`, which asks for what is not known here, is refused.

use std::{collections::HashMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use flux_protocol::{Scope, Scopes, limits};
use flux_runtime::{Tasks, settings::IssuerSettings};
use jsonwebtoken::{Validation, decode, decode_header};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use self::{jwks::Jwks, key::VerifyingKey};
use super::{Gateway, rate::Rate};

mod jwks;
mod key;

pub(crate) use key::KeyError;

/// What a token that was checked says of its bearer.
#[derive(Debug)]
pub struct Token {
    pub subject: String,
    pub issuer: String,
    pub scopes: Scopes,
    /// All tokens of a subject share one.
    pub rate: Arc<Rate>,
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    #[error("it is not a JSON Web Token that can be read")]
    Malformed,
    #[error("its `iss` names no issuer that this gateway knows")]
    Issuer,
    #[error("its `kid` names no key of its issuer")]
    Key,
    #[error("its `alg` is not that of the key")]
    Algorithm,
    #[error("its signature is not valid")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet (`nbf`)")]
    NotYet,
    #[error("its `aud` is not this gateway")]
    Audience,
    #[error("it lacks `exp`, `iss` or `aud`")]
    Incomplete,
    #[error("the keys of its issuer cannot be read now")]
    KeysAway,
}

/// By issuer and subject.
type Rates = HashMap<(String, String), Arc<Rate>>;

pub(crate) struct Tokens {
    issuers: Vec<Issuer>,
    requests_per_second: Option<u32>,
    /// The younger and the older generation.
    rates: Mutex<[Rates; 2]>,
}

struct Issuer {
    name: String,
    audience: String,
    keys: Vec<VerifyingKey>,
    jwks: Option<Arc<Jwks>>,
    scopes_claim: String,
    scopes: HashMap<String, Vec<Scope>>,
}

impl Tokens {
    pub(crate) fn try_new(
        settings: &[IssuerSettings],
        requests_per_second: Option<u32>,
        tasks: &Tasks,
    ) -> Result<Self, KeyError> {
        let issuers = settings.iter().map(|settings| Issuer::try_new(settings, tasks)).collect::<Result<_, _>>()?;
        Ok(Self { issuers, requests_per_second, rates: Mutex::default() })
    }

    pub(crate) async fn check(&self, text: &str) -> Result<Token, BadToken> {
        if text.len() > limits::CREDENTIAL_BYTES {
            return Err(BadToken::Malformed);
        }
        let header = decode_header(text).map_err(|_| BadToken::Malformed)?;
        if header.crit.is_some() {
            return Err(BadToken::Malformed);
        }
        // Not believed yet: it only says whose keys to try.
        let said = unchecked_issuer(text).ok_or(BadToken::Malformed)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.name == said).ok_or(BadToken::Issuer)?;
        let key = issuer.key(header.kid.as_deref()).await?;
        if header.alg != key.algorithm {
            return Err(BadToken::Algorithm);
        }
        let claims = decode::<Map<String, Value>>(text, &key.key, &issuer.validation(&key)).map_err(why)?.claims;
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default().to_owned();
        let scopes = issuer.scopes(claims.get(&issuer.scopes_claim));
        let rate = self.rate(&issuer.name, &subject);
        Ok(Token { subject, issuer: issuer.name.clone(), scopes, rate })
    }

    /// Subjects are bounded by two generations: the older one goes when the younger is full.
    fn rate(&self, issuer: &str, subject: &str) -> Arc<Rate> {
        if self.requests_per_second.is_none() {
            return Arc::new(Rate::new(None));
        }
        let who = (issuer.to_owned(), subject.to_owned());
        let mut rates = self.rates.lock();
        let [young, old] = &mut *rates;
        if let Some(rate) = young.get(&who) {
            return Arc::clone(rate);
        }
        let rate = old.remove(&who).unwrap_or_else(|| Arc::new(Rate::new(self.requests_per_second)));
        if young.len() >= limits::RATED_SUBJECTS {
            *old = std::mem::take(young);
        }
        young.insert(who, Arc::clone(&rate));
        rate
    }
}

impl Issuer {
    fn try_new(settings: &IssuerSettings, tasks: &Tasks) -> Result<Self, KeyError> {
        let wrong = |problem: String| KeyError::Settings { issuer: settings.issuer.clone(), problem };
        if settings.issuer.is_empty() || settings.audience.is_empty() {
            return Err(wrong(
                "`issuer` and `audience` must both be set: tokens for somebody else are not for us".into(),
            ));
        }
        if settings.keys.is_empty() && settings.jwks_url.is_none() {
            return Err(wrong("it has neither `keys` nor `jwks_url`".into()));
        }
        let mut scopes = HashMap::new();
        for (said, given) in &settings.scopes {
            let given = given.iter().map(|scope| scope.parse()).collect::<Result<Vec<Scope>, _>>();
            scopes.insert(said.clone(), given.map_err(|error| wrong(error.to_string()))?);
        }
        Ok(Self {
            name: settings.issuer.clone(),
            audience: settings.audience.clone(),
            keys: settings
                .keys
                .iter()
                .map(|key| VerifyingKey::read(&settings.issuer, key))
                .collect::<Result<_, _>>()?,
            jwks: settings.jwks_url.as_deref().map(|url| Jwks::try_new(&settings.issuer, url, tasks)).transpose()?,
            scopes_claim: settings.scopes_claim.clone().unwrap_or_else(|| "scope".to_owned()),
            scopes,
        })
    }

    async fn key(&self, id: Option<&str>) -> Result<VerifyingKey, BadToken> {
        if let Some(key) = self.keys.iter().find(|key| key.id.as_deref() == id) {
            return Ok(key.clone());
        }
        match &self.jwks {
            Some(jwks) => jwks.find(id).await,
            None => Err(BadToken::Key),
        }
    }

    fn validation(&self, key: &VerifyingKey) -> Validation {
        let mut validation = Validation::new(key.algorithm);
        // Not what the crate does by itself: a missing `aud` passes, `nbf` is not looked at, the leeway is 60 s.
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&self.name]);
        validation.set_audience(&[&self.audience]);
        validation.validate_nbf = true;
        validation.leeway = limits::JWT_LEEWAY.as_secs();
        validation
    }

    /// What the claim's words stand for; a word that stands for nothing gives nothing.
    fn scopes(&self, claim: Option<&Value>) -> Scopes {
        let words: Vec<&str> = match claim {
            Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
            Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let scopes = words.into_iter().flat_map(|word| match self.scopes.is_empty() {
            true => word.parse().into_iter().collect(),
            false => self.scopes.get(word).cloned().unwrap_or_default(),
        });
        Scopes::try_new(scopes.collect()).unwrap_or_default()
    }
}

fn unchecked_issuer(text: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(text.split('.').nth(1)?).ok()?;
    #[derive(serde::Deserialize)]
    struct Said {
        iss: String,
    }
    serde_json::from_slice::<Said>(&payload).ok().map(|said| said.iss)
}

fn why(error: jsonwebtoken::errors::Error) -> BadToken {
    use jsonwebtoken::errors::ErrorKind as K;
    match error.kind() {
        K::ExpiredSignature => BadToken::Expired,
        K::ImmatureSignature => BadToken::NotYet,
        K::InvalidAudience => BadToken::Audience,
        K::InvalidIssuer => BadToken::Issuer,
        K::MissingRequiredClaim(_) => BadToken::Incomplete,
        K::InvalidAlgorithm => BadToken::Algorithm,
        K::InvalidSignature => BadToken::Signature,
        _ => BadToken::Malformed,
    }
}

impl Gateway {
    /// Whether tokens are taken at all.
    pub fn takes_tokens(&self) -> bool {
        !self.inner.tokens.issuers.is_empty()
    }

    /// What a token says of its bearer.
    ///
    /// # Errors
    /// It opens nothing.
    pub async fn check_token(&self, text: &str) -> Result<Token, BadToken> {
        self.inner.tokens.check(text).await
    }
}

#[cfg(test)]
mod tests;
