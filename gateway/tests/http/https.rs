//! HTTPS by the gateway itself, and which browsers' pages may ask.

use std::path::{Path, PathBuf};

use flux_gateway::http::Tls;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use reqwest::{Certificate, Client, Method, Version};

use crate::{
    flux::{Flux, KEY},
    world::eventually,
};

struct Authority {
    ca: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        Self { ca, dir: tempfile::tempdir().expect("a directory") }
    }

    fn files(&self) -> (PathBuf, PathBuf) {
        (self.dir.path().join("cert.pem"), self.dir.path().join("key.pem"))
    }

    /// Writes a new certificate for `name` and its key, the key first.
    fn issue(&self, name: &str) {
        let (cert, key) = self.files();
        let pair = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).expect("names");
        let issued = params.signed_by(&pair, &self.ca).expect("issued");
        replace(&key, &pair.serialize_pem());
        replace(&cert, &issued.pem());
    }

    fn client(&self) -> Client {
        let ca = Certificate::from_pem(self.ca.pem().as_bytes()).expect("a certificate");
        Client::builder().no_proxy().add_root_certificate(ca).tls_info(true).build().expect("a client")
    }
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, path).expect("in place");
}

/// The certificate that the gateway shows now: to a new client, since one that was there before resumes its session, with
/// the certificate of then.
async fn shown(authority: &Authority, url: &str) -> Vec<u8> {
    let response = authority.client().get(format!("{url}/health")).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let info = response.extensions().get::<reqwest::tls::TlsInfo>().expect("TLS");
    info.peer_certificate().expect("a certificate").to_vec()
}

#[tokio::test]
async fn https_and_a_renewed_certificate_without_a_restart() {
    let authority = Authority::new();
    authority.issue("flux.example");
    let (cert, key) = authority.files();
    let tls = Tls::load(&cert, &key).expect("a pair");
    let flux = Flux::with(|options| options.tls = Some(tls)).await;
    let (url, client) = (format!("https://{}", flux.address), authority.client());
    let first = shown(&authority, &url).await;

    let answer = client
        .post(format!("{url}/execute/echo"))
        .header("X-API-Key", KEY)
        .header("Content-Type", "application/json")
        .body("{\"payload\": {\"n\": 1}}")
        .send()
        .await
        .expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));

    // Strangers are not trusted, and what speaks no TLS gets nothing.
    let stranger = Client::builder().no_proxy().build().expect("a client");
    stranger.get(format!("{url}/health")).send().await.expect_err("who signed that?");
    stranger.get(format!("http://{}/health", flux.address)).send().await.expect_err("no HTTP here");

    // Half of a renewal: the key is there, its certificate is not yet. What was there stays.
    let old = std::fs::read(&cert).expect("read");
    authority.issue("flux.example");
    let new = std::fs::read_to_string(&cert).expect("read");
    std::fs::write(&cert, old).expect("written");
    assert!(Tls::load(&cert, &key).is_err(), "no pair");
    assert_eq!(shown(&authority, &url).await, first);
    replace(&cert, &new);
    eventually("the renewed certificate is shown", || async { shown(&authority, &url).await != first }).await;
}

#[test]
fn what_cannot_be_used_is_said() {
    let authority = Authority::new();
    authority.issue("a");
    let (cert, key) = authority.files();
    let problem = |cert: &Path, key: &Path| Tls::load(cert, key).expect_err("refused").to_string();
    assert!(problem(Path::new(""), &key).contains("must name a file"));
    assert!(problem(&authority.dir.path().join("none"), &key).contains("cannot be read"));
    assert!(problem(&key, &key).contains("no certificate"));
    assert!(problem(&cert, &cert).contains("cannot be read"));
}

#[tokio::test]
async fn only_pages_of_the_origins_that_are_named_may_ask() {
    let preflight = async |flux: &Flux, origin: &str| {
        let request = flux.api.with_key("").request(Method::OPTIONS, "/execute/echo");
        let request = request
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "x-api-key");
        flux_testkit::Api::try_send(request).await.expect("an answer")
    };
    let leave = |reply: &flux_testkit::Reply| reply.header("access-control-allow-origin").to_owned();
    let none = Flux::start().await;
    assert_eq!(leave(&preflight(&none, "https://app.example").await), "", "nobody, unless it is said");

    let some = Flux::with(|options| options.cors = vec!["https://app.example".to_owned()]).await;
    let given = preflight(&some, "https://app.example").await.expect(200);
    assert_eq!(leave(&given), "https://app.example");
    assert_eq!(given.header("access-control-allow-headers"), "x-api-key");
    assert_eq!(given.header("access-control-allow-credentials"), "");
    assert_eq!(leave(&preflight(&some, "https://evil.example").await), "");
    let request = some.api.request(Method::GET, "/functions/nobody").header("Origin", "https://app.example");
    let refused = flux_testkit::Api::try_send(request).await.expect("an answer").expect(404);
    assert_eq!(leave(&refused), "https://app.example", "errors can be read too");

    let any = Flux::with(|options| options.cors = vec!["*".to_owned()]).await;
    assert_eq!(leave(&preflight(&any, "https://evil.example").await), "*");
}
