//! What providers share that ask somebody else's API.

use std::{collections::HashSet, time::Duration};

use parking_lot::Mutex;

use crate::{ClientToken, ProviderError};

/// All that a method of [`Provider`](crate::Provider) asks, which is to come back within a minute.
const METHOD: Duration = Duration::from_secs(50);

/// A method's time, whatever it asks.
///
/// # Errors
/// The method's own, and `unavailable` where it is not over in time.
pub async fn within<T>(
    attempted: &str,
    method: impl Future<Output = Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    let late = |_| Err(ProviderError::unavailable(attempted, format!("no answer within {} s", METHOD.as_secs())));
    tokio::time::timeout(METHOD, method).await.unwrap_or_else(late)
}

/// Launches that are under way. Two of one token at once would both find that there is no node yet.
#[derive(Debug, Default)]
pub struct Launches(Mutex<HashSet<ClientToken>>);

impl Launches {
    /// Begins a launch, which is under way until what this returns is dropped.
    ///
    /// # Errors
    /// `unavailable`: one of the same token is.
    pub fn begin(&self, token: &ClientToken, attempted: &str) -> Result<Launching<'_>, ProviderError> {
        if !self.0.lock().insert(token.clone()) {
            return Err(ProviderError::unavailable(attempted, "the same launch is under way"));
        }
        Ok(Launching { all: self, token: token.clone() })
    }
}

/// One launch, as long as it goes on.
#[derive(Debug)]
#[must_use]
pub struct Launching<'a> {
    all: &'a Launches,
    token: ClientToken,
}

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_token_is_launched_once_at_a_time() {
        let (launches, token, other) = (Launches::default(), token("one"), token("other"));
        let first = launches.begin(&token, "launch it").expect("the first");
        let refused = launches.begin(&token, "launch it").expect_err("the same at once");
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        let _other = launches.begin(&other, "launch it").expect("another");
        drop(first);
        let _again = launches.begin(&token, "launch it").expect("after it");
        launches.begin(&other, "launch it").expect_err("that one still goes on");
    }

    fn token(text: &str) -> ClientToken {
        ClientToken::parse(text).expect("a token")
    }
}
