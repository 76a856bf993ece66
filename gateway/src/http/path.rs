//! What a path names. A name that no function could have is a function that is not there: 404, with the rule.

use std::str::FromStr;

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::request::Parts,
};
use flux_protocol::{AgentId, ErrorCode, ExecutionId, FunctionName, KeyId, SecretName};

use crate::refusal::Refusal;

/// `{name}` or `{function}` of a function that should be there.
pub(super) struct Known(pub(super) FunctionName);

/// `{name}` of a function that may be new.
pub(super) struct New(pub(super) FunctionName);

/// `{id}` of an execution.
pub(super) struct Id(pub(super) ExecutionId);

/// `{id}` of an agent.
pub(super) struct Agent(pub(super) AgentId);

/// `{id}` of an API key.
pub(super) struct Key(pub(super) KeyId);

/// `{name}` of a secret, once what else is wrong with the request was said.
pub(super) struct Secret(pub(super) Result<SecretName, Refusal>);

/// `{function}` and `{seq}` of a dead letter.
pub(super) struct Letter(pub(super) FunctionName, pub(super) u64);

async fn params(parts: &mut Parts) -> Result<RawPathParams, Refusal> {
    RawPathParams::from_request_parts(parts, &()).await.map_err(|_| {
        Refusal::new(ErrorCode::InvalidRequest, "the path is not UTF-8 after its percent signs were decoded")
    })
}

fn get<'a>(params: &'a RawPathParams, names: &[&str]) -> &'a str {
    params.iter().find(|(name, _)| names.contains(name)).map_or("", |(_, value)| value)
}

fn parse<T: FromStr>(text: &str, otherwise: ErrorCode) -> Result<T, Refusal>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| Refusal::new(otherwise, error.to_string()))
}

impl<S: Send + Sync> FromRequestParts<S> for Known {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parse(get(&params(parts).await?, &["name", "function"]), ErrorCode::FunctionNotFound).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for New {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let name = parse(get(&params(parts).await?, &["name"]), ErrorCode::InvalidRequest);
        name.map(Self).map_err(|refusal| refusal.with_field("name"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Agent {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parse(get(&params(parts).await?, &["id"]), ErrorCode::AgentNotFound).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parse(get(&params(parts).await?, &["id"]), ErrorCode::ExecutionNotFound).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        parse(get(&params(parts).await?, &["id"]), ErrorCode::KeyNotFound).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Secret {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        Ok(Self(parse(get(&params(parts).await?, &["name"]), ErrorCode::SecretNotFound)))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Letter {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let params = params(parts).await?;
        let function = parse(get(&params, &["function"]), ErrorCode::FunctionNotFound)?;
        let text = get(&params, &["seq"]);
        // They begin with 1: a queue that is asked for another one says that the question is wrong.
        let sequence = text.parse().ok().filter(|sequence| *sequence > 0).ok_or_else(|| {
            let shown: String = text.chars().take(64).collect();
            Refusal::new(ErrorCode::MessageNotFound, format!("`{shown}` is no sequence number of a dead letter"))
        })?;
        Ok(Self(function, sequence))
    }
}
