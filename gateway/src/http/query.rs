//! Query parameters. An unknown one is refused and the nearest known one named: a misspelt `?wiat=` that is
//! silently ignored costs its writer an hour.

use std::time::Duration;

use axum::{extract::FromRequestParts, http::request::Parts};
use flux_protocol::{
    ErrorCode,
    function::{format_duration, parse_duration},
    limits,
    suggest::nearest,
};

use crate::refusal::Refusal;

/// The parameters of a request, not looked at yet.
#[derive(Debug, Default)]
pub(super) struct RawQuery(Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for RawQuery {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.uri.query().filter(|query| !query.is_empty()).map(str::to_owned)))
    }
}

impl RawQuery {
    /// The parameters, which must all be among `known`.
    pub(super) fn of(&self, known: &[&str]) -> Result<Query, Refusal> {
        let Some(text) = &self.0 else { return Ok(Query::default()) };
        let pairs: Vec<(String, String)> = form_urlencoded::parse(text.as_bytes()).into_owned().collect();
        for (name, _) in &pairs {
            if !known.contains(&name.as_str()) {
                return Err(unknown(name, known));
            }
        }
        Ok(Query(pairs))
    }

    /// Every parameter, whatever its name.
    pub(super) fn any(&self) -> Vec<(String, String)> {
        let text = self.0.as_deref().unwrap_or_default();
        form_urlencoded::parse(text.as_bytes()).into_owned().collect()
    }

    pub(super) fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

fn unknown(name: &str, known: &[&str]) -> Refusal {
    let shown: String = name.chars().take(64).collect();
    let message = match (nearest(&shown, known.iter().copied()), known) {
        (_, []) => format!("`?{shown}=` is not known here; this takes no query parameters"),
        (Some(near), _) => format!("`?{shown}=` is not known here; did you mean `?{near}=`?"),
        (None, _) => format!("`?{shown}=` is not known here; the parameters are: {}", known.join(", ")),
    };
    Refusal::new(ErrorCode::InvalidRequest, message).with_field(&shown)
}

#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let mut values = self.all(name);
        let first = values.next();
        match values.next() {
            None => Ok(first),
            Some(_) => Err(invalid(name, "is given more than once")),
        }
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refusal>
    where
        T::Err: std::fmt::Display,
    {
        self.one(name)?.map(|text| text.parse().map_err(|error: T::Err| invalid(name, &error.to_string()))).transpose()
    }

    /// A duration above zero and up to `longest`.
    pub(super) fn duration(&self, name: &str, longest: Duration) -> Result<Option<Duration>, Refusal> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let duration = parse_duration(text).map_err(|problem| invalid(name, &problem))?;
        if duration.is_zero() {
            return Err(invalid(name, "must be above zero"));
        }
        if duration > longest {
            return Err(invalid(name, &format!("is at most {}", format_duration(longest))));
        }
        Ok(Some(duration))
    }

    pub(super) fn number(&self, name: &str, least: u64, most: u64) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| {
            let most = if most == u64::MAX { String::new() } else { format!(" to {most}") };
            invalid(name, &format!("must be a whole number from {least}{most}"))
        })
    }

    /// `?name`, `?name=true` or `?name=1`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.one(name)? {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(invalid(name, "must be true or false")),
        }
    }

    /// `?limit=`: rows of a page.
    pub(super) fn limit(&self) -> Result<usize, Refusal> {
        let given = self.number("limit", 1, limits::PAGE as u64)?;
        Ok(given.and_then(|given| usize::try_from(given).ok()).unwrap_or(limits::PAGE_DEFAULT))
    }
}

fn invalid(name: &str, problem: &str) -> Refusal {
    Refusal::new(ErrorCode::InvalidRequest, format!("`?{name}=` {problem}")).with_field(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> RawQuery {
        RawQuery(Some(text.to_owned()))
    }

    #[test]
    fn an_unknown_parameter_names_the_nearest() {
        let refusal = query("wiat=3s").of(&["wait", "limit"]).expect_err("refused");
        assert!(refusal.message.contains("`?wait=`"), "{refusal}");
        assert_eq!(refusal.details["field"], "wiat");
        assert!(query("x=1").of(&[]).expect_err("refused").message.contains("no query parameters"));
    }

    #[test]
    fn values_are_checked() {
        let known = &["wait", "limit", "dry_run"];
        let longest = Duration::from_secs(60);
        let read = |text: &str| query(text).of(known).expect("known");
        assert_eq!(read("wait=1.5s").duration("wait", longest).expect("ok"), Some(Duration::from_millis(1500)));
        assert_eq!(read("wait=20").duration("wait", longest).expect("ok"), Some(Duration::from_secs(20)));
        assert!(read("wait=61s").duration("wait", longest).expect_err("long").message.contains("at most 1m"));
        assert!(read("wait=0").duration("wait", longest).is_err());
        assert!(read("wait=soon").duration("wait", longest).is_err());
        assert!(read("wait=1&wait=2").duration("wait", longest).expect_err("twice").message.contains("more than once"));
        assert_eq!(read("").limit().expect("ok"), limits::PAGE_DEFAULT);
        assert!(read("limit=0").limit().is_err());
        assert!(read("limit=1001").limit().is_err());
        assert!(read("dry_run").flag("dry_run").expect("ok"));
        assert!(read("dry_run=perhaps").flag("dry_run").is_err());
    }
}
