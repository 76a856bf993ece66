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

/// Error messages end up in logs: no user, no password, and no parameters, which may be one. A password may have any
/// character in it that should have been written as `%XX`: so all up to the last `@` goes first.
pub(crate) fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("…@", rest));
    let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{user}{rest}").chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::without_password;

    #[test]
    fn no_part_of_a_password_is_shown() {
        for (url, shown) in [
            ("postgres://flux:secret@host/db", "postgres://…@host/db"),
            ("postgres://flux:sec?ret@host/db?sslmode=require", "postgres://…@host/db"),
            ("postgres://flux:sec@ret@host/db", "postgres://…@host/db"),
            ("redis://host:6379?sentinel_password=secret", "redis://host:6379"),
            ("redis://:secret@a:1,b:2/name", "redis://…@a:1,b:2/name"),
            ("flux.db", "flux.db"),
        ] {
            assert_eq!(without_password(url), shown);
        }
        let long = format!("postgres://flux:{}@host/db", "secret".repeat(100));
        assert_eq!(without_password(&long), "postgres://…@host/db");
    }
}
