use std::time::Duration;

use flux_pki::{Certs, JoinToken, PkiError, Trust, request};
use flux_protocol::PoolName;

use crate::{agent, certs};

const URL: &str = "http://127.0.0.1:7227";
const LIFE: Duration = Duration::from_secs(60);

#[test]
fn a_machine_joins_once_with_a_key_of_its_own() {
    let (dir, home) = certs();
    let token = home.create_token(URL, vec![PoolName::default()], LIFE).expect("a token").to_string();
    let token = JoinToken::parse(&token).expect("it can be read");
    let id = agent("far");
    let (key, csr) = request().expect("a request");
    let proof = token.proof(&id, &csr).expect("a proof");

    // On its way the request is changed, or made another's.
    let (_, other) = request().expect("a request");
    for (id, csr, proof) in [(&agent("root"), &csr, &proof), (&id, &other, &proof), (&id, &csr, &"AAAA".to_owned())] {
        assert!(matches!(home.join(&token.id, id, csr, proof), Err(PkiError::Token { .. })));
    }
    let certificate = home.join(&token.id, &id, &csr, &proof).expect("it is let in");
    let again = home.join(&token.id, &id, &csr, &proof).expect_err("once");
    assert!(matches!(again, PkiError::Token { .. }), "{again}");
    assert!(!home.dir().join("agents/far/agent-key.pem").exists(), "the key stays where it was made");

    let far = Certs::at(dir.path().join("far"));
    let ca = home.trust().expect("a CA");
    let (_other_dir, stranger) = certs_of_a_stranger();
    let wrong = far.keep_joined(&id, &token.ca, stranger.pem(), &certificate, &key).expect_err("another CA");
    assert!(matches!(wrong, PkiError::Untrusted { .. }), "{wrong}");
    far.keep_joined(&agent("other"), &token.ca, ca.pem(), &certificate, &key).expect_err("not its certificate");
    far.keep_joined(&id, &token.ca, ca.pem(), &certificate, &key).expect("kept");
    let credential = far.agent(&id).expect("a credential");
    assert!(home.grants().expect("grants").admits(&credential.identity()));

    // And is renewed with the same key.
    let renewed = home.renew_agent(&id, &credential.renewal_request().expect("a request")).expect("renewed");
    far.keep_renewed(&id, &renewed).expect("kept");
    assert!(credential.reload().expect("read again"));
    home.revoke_agent(&id).expect("revoked");
    home.renew_agent(&id, &credential.renewal_request().expect("a request")).expect_err("it is shut out");
}

#[test]
fn a_renewal_is_for_the_key_that_was_let_in() {
    let (_dir, home) = certs();
    let id = agent("a-1");
    home.mint_agent(&id, vec![]).expect("minted");
    let request_of_now = || home.agent(&id).and_then(|own| own.renewal_request()).expect("a request");
    let stolen = request_of_now();
    home.renew_agent(&id, &stolen).expect("its own key");
    home.renew_agent(&id, &stolen).expect("which stays");
    let (_, other) = request().expect("a request");
    let error = home.renew_agent(&id, &other).expect_err("another key");
    assert!(matches!(error, PkiError::Untrusted { .. }), "{error}");

    // Who has the key of before does not get the name that it has now.
    home.revoke_agent(&id).expect("revoked");
    home.mint_agent(&id, vec![]).expect("let in anew");
    let error = home.renew_agent(&id, &stolen).expect_err("the key of before");
    assert!(matches!(error, PkiError::Untrusted { .. }), "{error}");
    home.renew_agent(&id, &request_of_now()).expect("the key of now");
}

fn certs_of_a_stranger() -> (tempfile::TempDir, Trust) {
    let (dir, certs) = certs();
    (dir, certs.trust().expect("a CA"))
}

#[test]
fn a_token_expires_and_takes_no_name_that_is_another_s() {
    let (_dir, home) = certs();
    let (_, csr) = request().expect("a request");
    let token = home.create_token(URL, vec![], Duration::ZERO).expect("a token");
    let proof = token.proof(&agent("late"), &csr).expect("a proof");
    assert!(matches!(home.join(&token.id, &agent("late"), &csr, &proof), Err(PkiError::Token { .. })));

    home.mint_agent(&agent("taken"), vec![]).expect("minted");
    let token = home.create_token(URL, vec![], LIFE).expect("a token");
    let proof = token.proof(&agent("taken"), &csr).expect("a proof");
    let error = home.join(&token.id, &agent("taken"), &csr, &proof).expect_err("it is another's");
    assert!(matches!(error, PkiError::Taken { .. }), "{error}");
}

#[test]
fn what_is_no_token_or_no_request_is_said_to_be_none() {
    for text in ["", "fluxjoin_", "fluxjoin_e30", "fluxjoin_!!!", "eyJ1cmwiOiIifQ"] {
        assert!(matches!(JoinToken::parse(text), Err(PkiError::Token { .. })), "{text}");
    }
    let (_dir, home) = certs();
    let token = home.create_token(URL, vec![], LIFE).expect("a token");
    let junk = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    let proof = token.proof(&agent("a"), junk).expect("a proof");
    assert!(matches!(home.join(&token.id, &agent("a"), junk, &proof), Err(PkiError::Untrusted { .. })));
}
