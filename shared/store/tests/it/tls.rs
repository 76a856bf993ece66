//! TLS to stores that are servers: who is believed to be whom.

use flux_store::{Durability, Tuning};
use flux_testkit::{PostgresServer, RedisServer, free_port};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

/// A CA, a server's certificate of it for `localhost` alone, and another CA.
struct Certificates {
    dir: TempDir,
    certificate: String,
    key: String,
}

impl Certificates {
    fn make() -> Self {
        let authority = || {
            let mut params = CertificateParams::new(Vec::new()).expect("a CA");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
        };
        let (ca, stranger) = (authority(), authority());
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &ca).expect("a certificate").pem();
        let made = Self { dir: tempfile::tempdir().expect("a directory"), certificate, key: key.serialize_pem() };
        for (name, content) in [
            ("ca.pem", &ca.pem()),
            ("stranger.pem", &stranger.pem()),
            ("cert.pem", &made.certificate),
            ("key.pem", &made.key),
        ] {
            std::fs::write(made.dir.path().join(name), content).expect("a file");
        }
        made
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

async fn opens(url: &str) -> bool {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tuning = Tuning { durability: Durability::Process, ..Tuning::default() };
    match flux_store::open(url, &tuning).await {
        Ok(store) => {
            store.ping().await.expect("ping");
            true
        }
        Err(_) => false,
    }
}

#[tokio::test]
async fn postgres_is_checked_as_far_as_sslmode_says() {
    let made = Certificates::make();
    let server = PostgresServer::start_with(
        "ssl = on\nssl_cert_file = 'cert.pem'\nssl_key_file = 'key.pem'",
        &[
            ("cert.pem", &made.certificate),
            ("key.pem", &made.key),
            ("pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\nhostnossl all all 127.0.0.1/32 reject\n"),
        ],
    )
    .await;
    let (ca, stranger, port) = (made.path("ca.pem"), made.path("stranger.pem"), server.port());
    let url = |host: &str, parameters: &str| format!("postgres://flux@{host}:{port}/postgres?{parameters}");
    let cases = [
        ("127.0.0.1", "sslmode=disable".to_owned(), false),
        ("127.0.0.1", "sslmode=prefer".to_owned(), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={stranger}"), false),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ca}"), true),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={stranger}"), false),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ca}"), false),
        ("localhost", format!("sslmode=verify-full&sslrootcert={ca}"), true),
        ("localhost", format!("sslmode=verify-full&sslrootcert={stranger}"), false),
    ];
    let opened = cases.map(async |(host, parameters, expected)| {
        let url = url(host, &parameters);
        assert_eq!(opens(&url).await, expected, "{url}");
    });
    futures::future::join_all(opened).await;
}

#[tokio::test]
async fn rediss_checks_certificate_and_name() {
    let made = Certificates::make();
    let port = free_port();
    let _server = RedisServer::start_with(&format!(
        "tls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no",
        made.path("cert.pem"),
        made.path("key.pem"),
        made.path("ca.pem"),
    ))
    .await;
    let (ca, stranger) = (made.path("ca.pem"), made.path("stranger.pem"));
    let cases = [
        ("localhost", format!("?sslrootcert={ca}"), true),
        ("127.0.0.1", format!("?sslrootcert={ca}"), false),
        ("localhost", format!("?sslrootcert={stranger}"), false),
        ("localhost", String::new(), false),
    ];
    let opened = cases.map(async |(host, parameters, expected)| {
        let url = format!("rediss://{host}:{port}{parameters}");
        assert_eq!(opens(&url).await, expected, "{url}");
    });
    futures::future::join_all(opened).await;
}
