//! Who asks: found once, when a request comes in, and asked again where the answer hangs on what a record says.

use std::sync::{Arc, LazyLock};

use axum::http::{HeaderMap, header::AUTHORIZATION};
use flux_protocol::{ErrorCode, ExecutionId, FunctionName, Scope, Scopes};

use super::{
    Http,
    access::Need,
    api_key::{KeyHeader, KeyHeaders, X_API_KEY, bearer_token},
    ticket,
};
use crate::{
    core::{BadKey, KnownKey, Token},
    refusal::Refusal,
};

static ADMIN: LazyLock<Scopes> = LazyLock::new(Scopes::admin);
static NOTHING: LazyLock<Scopes> = LazyLock::new(Scopes::default);

/// In a request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    who: Who,
    /// Where keys and tokens were that open something: a function is handed none of them.
    pub(super) headers: KeyHeaders,
}

#[derive(Debug, Clone)]
enum Who {
    /// The key that the gateway was started with.
    Configured,
    Key(Arc<KnownKey>),
    Token(Arc<Token>),
    /// May watch this execution, and nothing else.
    Ticket(ExecutionId),
}

/// What a request shows.
pub(super) enum Shown {
    Nothing,
    /// It opens nothing; why, in words for its bearer.
    Wrong(String),
    Is(Caller),
}

/// Finds out who asks. `ticket` is that of a request that may come with one.
pub(super) async fn find(http: &Http, headers: &HeaderMap, ticket: Option<&str>) -> Shown {
    let mut wrong = None;
    for (header, shown) in shown_in(headers) {
        match identify(http, header, shown).await {
            Ok(who) => {
                let mut found = KeyHeaders::default();
                found.add(header);
                find_others(http, headers, &mut found).await;
                return Shown::Is(Caller { who, headers: found });
            }
            Err(why) => wrong = wrong.or(Some(why)),
        }
    }
    match (wrong, ticket) {
        (Some(why), _) => Shown::Wrong(why),
        (None, None) => Shown::Nothing,
        (None, Some(ticket)) => match ticket::check(http.gateway.ticket_key(), ticket, flux_protocol::time::now()) {
            Some(execution) => Shown::Is(Caller { who: Who::Ticket(execution), headers: KeyHeaders::default() }),
            None => Shown::Wrong("this ticket is not valid, or its minute is over: POST /tickets gives another".into()),
        },
    }
}

/// What opens something besides the one by which the caller was found; nothing that a stranger can have looked for.
async fn find_others(http: &Http, headers: &HeaderMap, found: &mut KeyHeaders) {
    for header in [KeyHeader::XApiKey, KeyHeader::Authorization] {
        for value in headers.get_all(header.name()) {
            let shown = match header {
                KeyHeader::XApiKey => Some(value.as_bytes()),
                KeyHeader::Authorization => bearer_token(value.as_bytes()),
            };
            let Some(shown) = shown.filter(|_| !found.has(header)) else { continue };
            if identify(http, header, shown).await.is_ok() {
                found.add(header);
            }
        }
    }
}

fn shown_in(headers: &HeaderMap) -> impl Iterator<Item = (KeyHeader, &[u8])> {
    let key = headers.get(&X_API_KEY).map(|value| (KeyHeader::XApiKey, value.as_bytes()));
    let bearer = headers.get(AUTHORIZATION).and_then(|value| bearer_token(value.as_bytes()));
    key.into_iter().chain(bearer.map(|token| (KeyHeader::Authorization, token)))
}

async fn identify(http: &Http, header: KeyHeader, shown: &[u8]) -> Result<Who, String> {
    if http.options.api_key.is(shown) {
        return Ok(Who::Configured);
    }
    let unknown = || "this key is not known here: it was never made, was revoked, or was rotated away".to_owned();
    let text = std::str::from_utf8(shown).map_err(|_| unknown())?;
    let bad = match http.gateway.check_key(text) {
        Ok(key) => return Ok(Who::Key(key)),
        Err(BadKey::Expired { at }) => return Err(format!("this key expired at {at}")),
        Err(BadKey::Unknown) => unknown(),
    };
    let is_token = header == KeyHeader::Authorization && http.gateway.takes_tokens() && text.split('.').count() == 3;
    if !is_token {
        return Err(bad);
    }
    match http.gateway.check_token(text).await {
        Ok(token) => Ok(Who::Token(Arc::new(token))),
        Err(why) => Err(format!("this token is not taken: {why}")),
    }
}

impl Caller {
    pub(super) fn scopes(&self) -> &Scopes {
        match &self.who {
            Who::Configured => &ADMIN,
            Who::Key(key) => &key.record.scopes,
            Who::Token(token) => &token.scopes,
            Who::Ticket(_) => &NOTHING,
        }
    }

    /// As the audit log names it.
    pub(super) fn name(&self) -> String {
        match &self.who {
            Who::Configured => "the configured key".to_owned(),
            Who::Key(key) => format!("key {} ({})", key.record.id, key.record.name),
            Who::Token(token) => format!("token {} of {}", token.subject, token.issuer),
            Who::Ticket(execution) => format!("ticket for {execution}"),
        }
    }

    /// # Errors
    /// It asks more often than it may.
    pub(super) fn take(&self) -> Result<(), Refusal> {
        let taken = match &self.who {
            Who::Configured | Who::Ticket(_) => Ok(()),
            Who::Key(key) => key.rate.take(),
            Who::Token(token) => token.rate.take(),
        };
        taken.map_err(|wait| {
            let mut refusal = Refusal::new(
                ErrorCode::TooManyRequests,
                format!("{} makes more requests a second than it may; come again", self.name()),
            );
            refusal.retry_after = Some(wait);
            refusal
        })
    }

    /// Whether a row of the API is open to it. `function` is the one that the path names.
    pub(super) fn require(&self, need: Need, function: Option<&FunctionName>) -> Result<(), Refusal> {
        let scopes = self.scopes();
        let allowed = match need {
            Need::Nothing => true,
            Need::Read => scopes.allow(&Scope::Read),
            Need::Deploy => scopes.allow(&Scope::Deploy),
            Need::ReadOrDeploy => scopes.allow(&Scope::Read) || scopes.allow(&Scope::Deploy),
            Need::Admin => scopes.allow(&Scope::Admin),
            // A name that no function can have is answered as one that is not there.
            Need::Invoke => function.map_or_else(|| scopes.allow_some_invoke(), |name| scopes.allow_invoke(name)),
            // What is left hangs on the record.
            Need::See => scopes.allow(&Scope::Read) || scopes.allow_some_invoke() || matches!(self.who, Who::Ticket(_)),
            Need::Stop => scopes.allow_some_invoke(),
        };
        if allowed { Ok(()) } else { Err(self.forbidden(need, function)) }
    }

    pub(super) fn is_admin(&self) -> bool {
        self.scopes().allow(&Scope::Admin)
    }

    /// Whether it may see everything of every execution: then no record has to be read first.
    pub(super) fn sees_all(&self) -> bool {
        self.scopes().allow(&Scope::Read)
    }

    pub(super) fn require_to_see(&self, function: &FunctionName) -> Result<(), Refusal> {
        if self.sees_all() || self.scopes().allow_invoke(function) {
            return Ok(());
        }
        Err(self.forbidden(Need::See, Some(function)))
    }

    pub(super) fn require_to_stop(&self, function: &FunctionName) -> Result<(), Refusal> {
        if self.scopes().allow_invoke(function) { Ok(()) } else { Err(self.forbidden(Need::Stop, Some(function))) }
    }

    /// The execution that a ticket is for, if that is what was shown.
    pub(super) fn ticket_for(&self) -> Option<ExecutionId> {
        match self.who {
            Who::Ticket(execution) => Some(execution),
            _ => None,
        }
    }

    fn forbidden(&self, need: Need, function: Option<&FunctionName>) -> Refusal {
        let scopes = self.scopes();
        let has = if scopes.is_empty() { "no scope".to_owned() } else { format!("`{scopes}`") };
        let what = function.map_or_else(String::new, |name| format!(" for the function `{name}`"));
        let or_admin = if need.scopes().contains(&"admin") { "" } else { " (or `admin`)" };
        let message = format!("{} has {has}, and this needs {}{what}{or_admin}", self.name(), need.said());
        Refusal::new(ErrorCode::Forbidden, message).with_details(serde_json::json!({ "needs": need.scopes() }))
    }
}
