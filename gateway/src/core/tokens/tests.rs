//! Every attack on how tokens are checked, each beside the honest token that it was made from.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{self, KeySize},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::engine::general_purpose::STANDARD;
use flux_protocol::time::now;
use flux_runtime::{Shutdown, settings::IssuerKey};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::json;

use super::*;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "flux";
const HMAC: &[u8] = b"0123456789abcdef0123456789abcdef";

fn pem(what: &str, der: &[u8]) -> String {
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", STANDARD.encode(der))
}

/// A private key to sign with, and its public half as PEM.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    public: String,
}

impl Signer {
    fn rsa() -> Self {
        let pair = rsa::KeyPair::generate(KeySize::Rsa2048).expect("a key");
        let private = aws_lc_rs::encoding::AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).expect("its form");
        let public = aws_lc_rs::encoding::AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).expect("its form");
        let key = EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).expect("a key");
        Self { algorithm: Algorithm::RS256, key, public: pem("PUBLIC KEY", public.as_ref()) }
    }

    fn ec() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let private = pair.to_pkcs8v1().expect("its form");
        let public: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("its form");
        let key = EncodingKey::from_ec_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes()).expect("a key");
        Self { algorithm: Algorithm::ES256, key, public: pem("PUBLIC KEY", public.as_ref()) }
    }

    fn jwk(&self, id: &str) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).expect("a JWK");
        jwk.common.key_id = Some(id.to_owned());
        serde_json::to_value(jwk).expect("JSON")
    }

    fn sign(&self, id: &str, claims: &Value) -> String {
        sign(self.algorithm, &self.key, id, claims)
    }
}

fn sign(algorithm: Algorithm, key: &EncodingKey, id: &str, claims: &Value) -> String {
    encode(&Header { kid: Some(id.to_owned()), ..Header::new(algorithm) }, claims, key).expect("a token")
}

fn seconds(from_now: i64) -> i64 {
    now().as_millis() / 1000 + from_now
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "exp": seconds(300), "sub": "alice", "scope": "read invoke:img-*" })
}

fn with(field: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[field] = value;
    claims
}

fn without(field: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().expect("an object").remove(field);
    claims
}

struct World {
    dir: tempfile::TempDir,
    settings: IssuerSettings,
    shutdown: Arc<Shutdown>,
}

impl World {
    fn new() -> Self {
        let settings =
            IssuerSettings { issuer: ISSUER.to_owned(), audience: AUDIENCE.to_owned(), ..IssuerSettings::default() };
        Self { dir: tempfile::tempdir().expect("a directory"), settings, shutdown: Shutdown::new() }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    fn key(mut self, id: &str, algorithm: &str, content: &[u8]) -> Self {
        let file = self.file(id, content);
        self.settings.keys.push(IssuerKey { id: Some(id.to_owned()), algorithm: algorithm.to_owned(), file });
        self
    }

    fn tokens(&self) -> Tokens {
        self.try_tokens().expect("they can be used")
    }

    fn try_tokens(&self) -> Result<Tokens, KeyError> {
        Tokens::try_new(std::slice::from_ref(&self.settings), None, &Tasks::new(Arc::clone(&self.shutdown)))
    }
}

async fn refused(tokens: &Tokens, text: &str) -> BadToken {
    tokens.check(text).await.expect_err("it is refused")
}

#[tokio::test]
async fn honest_tokens_of_each_algorithm_open_what_they_say() {
    let (rsa, ec) = (Signer::rsa(), Signer::ec());
    let world = World::new()
        .key("r", "RS256", rsa.public.as_bytes())
        .key("e", "ES256", ec.public.as_bytes())
        .key("h", "HS256", HMAC);
    let tokens = world.tokens();
    let hmac = sign(Algorithm::HS256, &EncodingKey::from_secret(HMAC), "h", &claims());
    for text in [rsa.sign("r", &claims()), ec.sign("e", &claims()), hmac] {
        let token = tokens.check(&text).await.expect("taken");
        assert_eq!((token.subject.as_str(), token.issuer.as_str()), ("alice", ISSUER));
        assert_eq!(token.scopes.to_string(), "read invoke:img-*");
    }
    let many = tokens.check(&rsa.sign("r", &with("aud", json!(["other", AUDIENCE])))).await;
    many.expect("one of its audiences is this");
}

#[tokio::test]
async fn a_token_cannot_choose_its_algorithm() {
    let (rsa, ec) = (Signer::rsa(), Signer::ec());
    let world = World::new().key("r", "RS256", rsa.public.as_bytes()).key("h", "HS256", HMAC);
    let tokens = world.tokens();
    let honest = rsa.sign("r", &claims());
    let (_, rest) = honest.split_once('.').expect("a token");
    let (payload, signature) = rest.split_once('.').expect("a token");
    let header = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    // `none`, in every way that it was ever written.
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let head = header(json!({"alg": none, "kid": "r", "typ": "JWT"}));
        for text in [format!("{head}.{payload}."), format!("{head}.{payload}.{signature}"), format!("{head}.{payload}")]
        {
            assert_eq!(refused(&tokens, &text).await, BadToken::Malformed, "{none}");
        }
    }
    // Key confusion: the public key, which everybody has, as the secret of an HMAC.
    for secret in [rsa.public.as_bytes(), rsa.public.trim().as_bytes()] {
        let forged = sign(Algorithm::HS256, &EncodingKey::from_secret(secret), "r", &claims());
        assert_eq!(refused(&tokens, &forged).await, BadToken::Algorithm);
    }
    // Another algorithm of the same family, and of another with another key.
    let other = sign(Algorithm::RS512, &rsa.key, "r", &claims());
    assert_eq!(refused(&tokens, &other).await, BadToken::Algorithm);
    assert_eq!(refused(&tokens, &ec.sign("r", &claims())).await, BadToken::Algorithm);
    assert_eq!(refused(&tokens, &rsa.sign("h", &claims())).await, BadToken::Algorithm);
    // The signature's bytes under another name for the algorithm.
    let renamed = format!("{}.{payload}.{signature}", header(json!({"alg": "HS256", "kid": "r"})));
    assert_eq!(refused(&tokens, &renamed).await, BadToken::Algorithm);
    tokens.check(&honest).await.expect("the honest one");
}

#[tokio::test]
async fn a_key_in_a_token_is_not_believed() {
    let (rsa, mallory) = (Signer::rsa(), Signer::rsa());
    let tokens = World::new().key("r", "RS256", rsa.public.as_bytes()).tokens();
    let attacks: [fn(&mut Header, &Signer); 4] = [
        |header, mallory| header.jwk = serde_json::from_value(mallory.jwk("r")).ok(),
        |header, _| header.jku = Some("http://127.0.0.1:1/keys".to_owned()),
        |header, _| header.x5u = Some("http://127.0.0.1:1/cert".to_owned()),
        |header, _| header.x5c = Some(vec!["MIIB".to_owned()]),
    ];
    for attack in attacks {
        let mut header = Header { kid: Some("r".to_owned()), ..Header::new(Algorithm::RS256) };
        attack(&mut header, &mallory);
        let forged = encode(&header, &claims(), &mallory.key).expect("a token");
        assert_eq!(refused(&tokens, &forged).await, BadToken::Signature);
        // Nor does it do harm in an honest one.
        let honest = encode(&header, &claims(), &rsa.key).expect("a token");
        tokens.check(&honest).await.expect("taken by our own key");
    }
    let critical =
        Header { kid: Some("r".to_owned()), crit: Some(vec!["b64".to_owned()]), ..Header::new(Algorithm::RS256) };
    let signed = encode(&critical, &claims(), &rsa.key).expect("a token");
    assert_eq!(refused(&tokens, &signed).await, BadToken::Malformed, "crit");
}

#[tokio::test]
async fn what_a_token_must_say() {
    let rsa = Signer::rsa();
    let tokens = World::new().key("r", "RS256", rsa.public.as_bytes()).tokens();
    let check = async |claims: Value| tokens.check(&rsa.sign("r", &claims)).await.map(|_| ());
    let cases = [
        (without("exp"), Err(BadToken::Incomplete)),
        (without("aud"), Err(BadToken::Incomplete)),
        (without("iss"), Err(BadToken::Malformed)),
        (with("iss", json!("https://other.example")), Err(BadToken::Issuer)),
        (with("aud", json!("other")), Err(BadToken::Audience)),
        (with("aud", json!([])), Err(BadToken::Audience)),
        (with("exp", json!(seconds(-31))), Err(BadToken::Expired)),
        (with("exp", json!(seconds(-20))), Ok(())),
        (with("nbf", json!(seconds(60))), Err(BadToken::NotYet)),
        (with("nbf", json!(seconds(20))), Ok(())),
        (with("nbf", json!(seconds(-60))), Ok(())),
        (without("sub"), Ok(())),
    ];
    for (claims, expected) in cases {
        assert_eq!(check(claims.clone()).await, expected, "{claims}");
    }
    assert!(check(with("exp", json!("tomorrow"))).await.is_err());
    assert!(check(with("exp", Value::Null)).await.is_err());
    for text in ["", "a", "a.b", "a.b.c", "..", "eyJ.eyJ.", &format!("{}.", "x".repeat(10_000))] {
        assert_eq!(refused(&tokens, text).await, BadToken::Malformed, "{text}");
    }
}

#[tokio::test]
async fn a_changed_token_is_refused() {
    let ec = Signer::ec();
    let tokens = World::new().key("e", "ES256", ec.public.as_bytes()).tokens();
    let honest = ec.sign("e", &claims());
    let mut parts: Vec<&str> = honest.split('.').collect();
    let more = URL_SAFE_NO_PAD.encode(with("scope", json!("admin")).to_string());
    parts[1] = &more;
    assert_eq!(refused(&tokens, &parts.join(".")).await, BadToken::Signature);
    // A signature of nothing but zeros was once valid for everything.
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    let psychic = honest.rsplit_once('.').map(|(head, _)| format!("{head}.{zeros}")).expect("a token");
    assert_eq!(refused(&tokens, &psychic).await, BadToken::Signature);
    assert_eq!(refused(&tokens, &ec.sign("other", &claims())).await, BadToken::Key);
    assert_eq!(refused(&tokens, &ec.sign("../e", &claims())).await, BadToken::Key);
}

#[tokio::test]
async fn claims_become_scopes_by_the_map_and_no_others() {
    let mut world = World::new().key("h", "HS256", HMAC);
    world.settings.scopes_claim = Some("groups".to_owned());
    world.settings.scopes = BTreeMap::from([
        ("ops".to_owned(), vec!["admin".to_owned()]),
        ("dev".to_owned(), vec!["deploy".to_owned(), "read".to_owned()]),
    ]);
    let tokens = world.tokens();
    let scopes = async |groups: Value| {
        let text = sign(Algorithm::HS256, &EncodingKey::from_secret(HMAC), "h", &with("groups", groups));
        tokens.check(&text).await.expect("taken").scopes.to_string()
    };
    assert_eq!(scopes(json!(["dev", "admin", 7])).await, "deploy read", "`admin` is a word that the map lacks");
    assert_eq!(scopes(json!("ops")).await, "admin");
    assert_eq!(scopes(json!({"ops": true})).await, "");
    let none = sign(Algorithm::HS256, &EncodingKey::from_secret(HMAC), "h", &claims());
    assert!(tokens.check(&none).await.expect("taken").scopes.is_empty());
}

#[test]
fn keys_that_cannot_be_used_are_told_at_the_start() {
    let rsa = Signer::rsa();
    let problem = |world: World| world.try_tokens().err().expect("refused").to_string();
    assert!(problem(World::new()).contains("neither `keys` nor `jwks_url`"));
    assert!(problem(World::new().key("h", "HS256", b"short")).contains("32 random bytes"));
    assert!(problem(World::new().key("h", "HS256", rsa.public.as_bytes())).contains("no PEM file"));
    assert!(problem(World::new().key("r", "RS256", b"nonsense")).contains("no public key"));
    assert!(problem(World::new().key("r", "PS256", rsa.public.as_bytes())).contains("HS256, RS256 or ES256"));
    let with = |change: fn(&mut IssuerSettings)| {
        let mut world = World::new().key("h", "HS256", HMAC);
        change(&mut world.settings);
        problem(world)
    };
    assert!(with(|settings| settings.audience.clear()).contains("audience"));
    assert!(with(|settings| settings.jwks_url = Some("http://issuer.example/keys".into())).contains("https"));
    assert!(with(|settings| drop(settings.scopes.insert("x".into(), vec!["wrong".into()]))).contains("not a scope"));
}

/// An issuer's published keys, and how often they were asked for.
struct Published {
    url: String,
    keys: Arc<Mutex<Value>>,
    asked: Arc<AtomicUsize>,
}

async fn publish(keys: Value, tasks: &Tasks) -> Published {
    let (keys, asked) = (Arc::new(Mutex::new(keys)), Arc::new(AtomicUsize::new(0)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/keys", listener.local_addr().expect("bound"));
    let answer = {
        let (keys, asked) = (Arc::clone(&keys), Arc::clone(&asked));
        move || async move {
            asked.fetch_add(1, Ordering::SeqCst);
            axum::Json(keys.lock().clone())
        }
    };
    let router = axum::Router::new().route("/keys", axum::routing::get(answer));
    tasks.spawn("issuer", async move { axum::serve(listener, router).await.expect("serves") });
    Published { url, keys, asked }
}

#[tokio::test]
async fn published_keys_are_kept_and_read_again_for_a_new_one_but_not_at_will() {
    let (first, second, mallory) = (Signer::rsa(), Signer::ec(), Signer::rsa());
    let mut world = World::new();
    let tasks = Tasks::new(Arc::clone(&world.shutdown));
    let secret = json!({"kty": "oct", "kid": "oct", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(HMAC)});
    let odd = json!({"kty": "new", "kid": "odd"});
    let issuer = publish(json!({"keys": [odd, secret, first.jwk("one")]}), &tasks).await;
    world.settings.jwks_url = Some(issuer.url.clone());
    let tokens = world.tokens();
    let asked = || issuer.asked.load(Ordering::SeqCst);
    assert_eq!(asked(), 0);

    // Many at once ask once.
    let text = first.sign("one", &claims());
    let all = futures::future::join_all((0..20).map(|_| tokens.check(&text))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(asked(), 1);

    // Strangers name keys that nobody has: nothing is asked again so soon.
    for n in 0..50 {
        assert_eq!(refused(&tokens, &mallory.sign(&format!("k{n}"), &claims())).await, BadToken::Key);
    }
    let symmetric = sign(Algorithm::HS256, &EncodingKey::from_secret(HMAC), "oct", &claims());
    assert_eq!(refused(&tokens, &symmetric).await, BadToken::Key, "a published secret is none");
    assert_eq!(refused(&tokens, &mallory.sign("one", &claims())).await, BadToken::Signature);
    assert_eq!(asked(), 1);

    // The issuer has a new key: found as soon as asking is allowed again, and the old one is gone with it.
    *issuer.keys.lock() = json!({"keys": [second.jwk("two")]});
    let new = second.sign("two", &claims());
    assert_eq!(refused(&tokens, &new).await, BadToken::Key);
    let jwks = tokens.issuers[0].jwks.as_ref().expect("published");
    jwks.pretend_older(limits::JWKS_AGAIN);
    tokens.check(&new).await.expect("taken");
    assert_eq!(asked(), 2);
    assert_eq!(refused(&tokens, &text).await, BadToken::Key, "taken back");
    assert_eq!(asked(), 2);

    // An issuer that is away: what is known serves for a while, and then no more.
    *issuer.keys.lock() = json!("broken");
    jwks.pretend_older(limits::JWKS_KEPT);
    tokens.check(&new).await.expect("still taken");
    assert_eq!(asked(), 3, "it was asked again");
    jwks.pretend_older(std::time::Duration::from_secs(3600));
    assert_eq!(refused(&tokens, &new).await, BadToken::KeysAway);
    world.shutdown.start_kill();
}

#[tokio::test]
async fn a_subjects_tokens_share_one_rate() {
    let world = World::new().key("h", "HS256", HMAC);
    let tasks = Tasks::new(Arc::clone(&world.shutdown));
    let tokens = Tokens::try_new(std::slice::from_ref(&world.settings), Some(1), &tasks).expect("usable");
    let key = EncodingKey::from_secret(HMAC);
    let rate = async |who: &str| {
        let text = sign(Algorithm::HS256, &key, "h", &with("sub", json!(who)));
        tokens.check(&text).await.expect("taken").rate.take().is_ok()
    };
    assert_eq!((rate("alice").await, rate("alice").await, rate("bob").await), (true, false, true));
}
