//! HTTPS with a certificate of Flux's own CA: nobody made any file for it.

use std::{path::Path, process::Output, time::Duration};

use flux_testkit::{FluxCommand, eventually, eventually_some, free_port};

const ENDS: Duration = Duration::from_secs(120);

/// A place that the user `flux` can pass, and not write to.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("its mode");
    home
}

/// The certificate that a new connection is shown, to one who trusts the CA.
async fn shown(ca: &Path, url: &str) -> Option<Vec<u8>> {
    let ca = reqwest::Certificate::from_pem(&std::fs::read(ca).ok()?).expect("a certificate");
    let client = reqwest::Client::builder().no_proxy().add_root_certificate(ca).tls_info(true).build();
    let answer = client.expect("a client").get(format!("{url}/health")).send().await.ok()?;
    let info = answer.extensions().get::<reqwest::tls::TlsInfo>().expect("TLS");
    info.peer_certificate().map(<[u8]>::to_vec)
}

#[tokio::test]
async fn a_gateway_makes_its_own_certificate_and_commands_trust_it() {
    let home = home();
    let listen = format!("127.0.0.1:{}", free_port());
    let url = format!("https://{listen}");
    let data = home.path().join("data");
    let flux = |args: &[&str], config: &str| {
        let config = home.path().join(config);
        FluxCommand::new("flux").args(args).env("HOME", home.path()).env("XDG_CONFIG_HOME", config)
    };
    let data_dir = data.to_str().expect("UTF-8");
    let arguments = ["up", "--data-dir", data_dir, "--listen", &listen];
    let up = flux(&arguments, "own").env("FLUX_GATEWAY__TLS", "auto").spawn();
    eventually(ENDS, "it to be ready", || async { up.log().contains("Flux is ready") }).await;
    assert!(up.log().contains(&format!("export FLUX_URL={url}")), "{}", up.log());

    // Who started it needs to say nothing; who did not, who signed it: nobody believes a certificate of an unknown CA.
    let ca = data.join("certs/ca/ca.pem").display().to_string();
    let key = std::fs::read_to_string(data.join("api-key")).expect("a key");
    let works = |ran: &Output| ran.status.success();
    let listed = flux(&["functions", "--url", &url], "own").output(ENDS).await;
    assert!(works(&listed), "{listed:?}");
    let elsewhere = ["functions", "--url", &url, "--key", key.trim()];
    let unknown = flux(&elsewhere, "other").output(ENDS).await;
    assert!(!works(&unknown), "{unknown:?}");
    assert!(works(&flux(&[&elsewhere[..], &["--ca", &ca]].concat(), "other").output(ENDS).await));
    assert!(works(&flux(&elsewhere, "other").env("FLUX_CA", &ca).output(ENDS).await));
    let wrong = data.join("certs/queue/queue-key.pem").display().to_string();
    assert!(!works(&flux(&[&elsewhere[..], &["--ca", &wrong]].concat(), "other").output(ENDS).await));

    // A machine joins over it.
    let made = flux(&["agent", "token", "create", "--json", "--url", &url], "own").output(ENDS).await;
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).expect("JSON");
    let certs = home.path().join("far").display().to_string();
    let token = made["token"].as_str().expect("a token");
    let join = ["agent", "join", token, "--id", "far", "--certs-dir", &certs];
    assert!(!works(&flux(&join, "other").output(ENDS).await));
    let joined = flux(&[&join[..], &["--ca", &ca]].concat(), "other").output(ENDS).await;
    assert!(works(&joined), "{joined:?}");

    // A renewed certificate is shown from the next connection on, by the same process.
    let ca = data.join("certs/ca/ca.pem");
    let first = eventually_some(ENDS, "a certificate", || shown(&ca, &url)).await;
    let worker = up.descendant("__serve").pid;
    let renewed = flux(&["pki", "renew", "--data-dir", data_dir], "own").output(ENDS).await;
    assert!(works(&renewed) && String::from_utf8_lossy(&renewed.stdout).contains("gateway"), "{renewed:?}");
    let is_new = || async { shown(&ca, &url).await.is_some_and(|now| now != first) };
    eventually(ENDS, "the renewed certificate to be shown", is_new).await;
    assert_eq!(up.descendant("__serve").pid, worker, "without a restart");
    assert!(works(&flux(&["functions", "--url", &url], "own").output(ENDS).await));
}

#[tokio::test]
async fn no_certificate_is_made_where_there_is_no_ca() {
    let home = home();
    let config = home.path().join("flux.yaml");
    for (text, said) in [
        ("disable_mtls: true\ngateway: { tls: auto }\n", "name `cert` and `key`"),
        ("gateway: { tls: self }\n", "`auto`, or `cert` and `key`"),
        ("gateway: { tls: { crt: x } }\n", "did you mean `cert`"),
    ] {
        std::fs::write(&config, text).expect("written");
        let data = home.path().join("data").display().to_string();
        let up = FluxCommand::new("flux")
            .args(["up", "--data-dir", &data, "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .env("XDG_CONFIG_HOME", home.path());
        let refused = up.output(ENDS).await;
        assert!(!refused.status.success(), "{text}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(said), "{text}: {refused:?}");
    }
}
