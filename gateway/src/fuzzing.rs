//! What the fuzz target of the tokens does with its bytes (`fuzz/`), here so that a test can do it with the seeds.

use std::sync::LazyLock;

use flux_runtime::{
    Shutdown, Tasks,
    settings::{IssuerKey, IssuerSettings},
};
use futures::FutureExt as _;

use crate::core::Tokens;

const ISSUER: &str = "https://issuer.example";
/// As the seeds are signed.
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

static TOKENS: LazyLock<Tokens> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("secret");
    std::fs::write(&file, SECRET).expect("written");
    let key = IssuerKey { id: Some("h".to_owned()), algorithm: "HS256".to_owned(), file };
    let settings = IssuerSettings {
        issuer: ISSUER.to_owned(),
        audience: "flux".to_owned(),
        keys: vec![key],
        ..IssuerSettings::default()
    };
    Tokens::try_new(&[settings], None, &Tasks::new(Shutdown::new())).expect("they can be used")
});

/// A token is refused, or is of our issuer; and one that is taken is refused with any other signature.
pub fn jwt(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // With keys at hand nothing is waited for.
    let check = |text: &str| TOKENS.check(text).now_or_never().expect("it is judged at once");
    let Ok(token) = check(text) else { return };
    assert_eq!(token.issuer, ISSUER);
    let (said, _) = text.rsplit_once('.').expect("three parts");
    assert!(check(&format!("{said}.")).is_err() && check(&format!("{said}.AAAA")).is_err());
}
