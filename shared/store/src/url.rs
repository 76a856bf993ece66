//! URLs of stores that are servers: what is the engine's own, and what is ours.

use std::collections::BTreeMap;

use crate::StoreError;

/// A URL without the parameters that are Flux's own.
pub(crate) struct Taken {
    pub(crate) url: String,
    own: BTreeMap<String, String>,
}

impl Taken {
    /// Takes the parameters named in `own` out of `url`; the others stay, for the engine's client to judge.
    pub(crate) fn from(url: &str, own: &[&str]) -> Self {
        let Some((base, query)) = url.split_once('?') else {
            return Self { url: url.to_owned(), own: BTreeMap::new() };
        };
        let (ours, theirs): (Vec<&str>, Vec<&str>) =
            query.split('&').filter(|pair| !pair.is_empty()).partition(|pair| {
                let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
                own.contains(&name)
            });
        let own = ours.into_iter().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let own = own.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let url = if theirs.is_empty() { base.to_owned() } else { format!("{base}?{}", theirs.join("&")) };
        Self { url, own }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.own.get(name).map(String::as_str)
    }

    /// A number from 1 to `most`.
    pub(crate) fn number(&self, name: &str, most: usize) -> Result<Option<usize>, String> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => Err(format!("`{name}` is a number from 1 to {most}, and not `{text}`")),
        }
    }

    /// A name of lower case letters, digits and `_`.
    pub(crate) fn name(&self, name: &str, default: &str) -> Result<String, String> {
        let text = self.get(name).unwrap_or(default);
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if (1..=48).contains(&text.len()) && text.chars().all(fits) && !text.starts_with(|c: char| c.is_ascii_digit()) {
            return Ok(text.to_owned());
        }
        Err(format!("`{name}` is a name of at most 48 lower case letters, digits and `_`, and not `{text}`"))
    }
}

pub(crate) fn wrong(url: &str, problem: impl Into<String>) -> StoreError {
    StoreError::Url { url: without_password(url), problem: problem.into() }
}

/// Error messages end up in logs: no user, no password, and no parameters, which may be one.
pub(crate) fn without_password(url: &str) -> String {
    let shown: String = url.chars().take(200).collect();
    let shown = shown.split_once('?').map_or(shown.as_str(), |(before, _)| before);
    match (shown.find("://"), shown.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}://…{}", &shown[..scheme], &shown[at..]),
        _ => shown.to_owned(),
    }
}
