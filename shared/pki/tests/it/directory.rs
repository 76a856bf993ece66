use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use flux_pki::{Certs, PkiError};
use flux_protocol::{FunctionGlob, PoolName, identity::Identity};

use crate::{agent, certs};

const FILES: [&str; 8] = [
    "ca/ca.pem",
    "ca/ca-key.pem",
    "flux/flux.pem",
    "flux/flux-key.pem",
    "queue/queue.pem",
    "queue/queue-key.pem",
    "ssh/flux-agent.pem",
    "ssh/flux-agent.pub",
];

fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).expect("it is there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                all.insert(path.clone(), fs::read(path).expect("it is readable"));
            }
        }
    }
    all
}

#[test]
fn the_layout_is_made_once_with_keys_for_nobody_else() {
    let (_dir, certs) = certs();
    for file in FILES {
        let mode = fs::metadata(certs.dir().join(file)).expect(file).permissions().mode() & 0o777;
        let secret = file.ends_with("-key.pem") || file == "ssh/flux-agent.pem";
        assert_eq!(mode, if secret { 0o600 } else { 0o644 }, "{file}");
    }
    certs.mint_agent(&agent("a-1"), vec![PoolName::default()]).expect("minted");
    let before = contents(certs.dir());
    certs.init(&[]).expect("found");
    certs.mint_agent(&agent("a-1"), vec![PoolName::default()]).expect("there already");
    certs.renew(Duration::ZERO).expect("nothing is due");
    assert_eq!(before, contents(certs.dir()));
}

#[test]
fn what_is_damaged_or_half_there_is_an_error_and_never_a_new_ca() {
    for file in FILES.iter().filter(|file| !file.starts_with("ssh")) {
        let (_dir, certs) = certs();
        let path = certs.dir().join(file);
        let pem = fs::read_to_string(&path).expect("it is there");
        fs::write(&path, &pem[..pem.len() / 2]).expect("written");
        let before = contents(certs.dir());
        let error = certs.init(&[]).expect_err(file);
        assert!(matches!(&error, PkiError::Damaged { path: damaged, .. } if *damaged == path), "{file}: {error}");
        assert_eq!(contents(certs.dir()), before, "{file}: nothing was changed");
    }
    for file in ["ca/ca.pem", "ca/ca-key.pem", "flux/flux-key.pem", "queue/queue-key.pem", "ssh/flux-agent.pem"] {
        let (_dir, certs) = certs();
        fs::remove_file(certs.dir().join(file)).expect("removed");
        let before = contents(certs.dir());
        certs.init(&[]).expect_err(file);
        assert_eq!(contents(certs.dir()), before, "{file}: nothing was changed");
    }
    // Both halves of the CA, while others have certificates of it.
    let (_dir, certs) = certs();
    fs::remove_dir_all(certs.dir().join("ca")).expect("removed");
    let error = certs.init(&[]).expect_err("no CA");
    assert!(error.to_string().contains("restore it from a backup"), "{error}");
}

#[test]
fn the_key_of_another_is_noticed_and_one_that_others_can_read() {
    let (_dir, certs) = certs();
    let path = certs.dir().join("flux/flux-key.pem");
    fs::copy(certs.dir().join("queue/queue-key.pem"), &path).expect("copied");
    let error = certs.init(&[]).expect_err("not its key");
    assert!(error.to_string().contains("not the key of the certificate"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("its mode");
    assert!(matches!(certs.init(&[]), Err(PkiError::Exposed { mode: 0o640, .. })));
}

#[test]
fn a_server_gets_the_names_that_it_lacks_and_keeps_those_it_has() {
    let (_dir, certs) = certs();
    let names = |pem: &str| {
        let text = Command::new("openssl").args(["x509", "-noout", "-ext", "subjectAltName", "-in", pem]).output();
        String::from_utf8(text.expect("openssl").stdout).expect("text")
    };
    let pem = certs.dir().join("queue/queue.pem").display().to_string();
    certs.init(&["queue.example".to_owned()]).expect("named");
    let key = fs::read(certs.dir().join("queue/queue-key.pem")).expect("a key");
    certs.init(&["192.0.2.7".to_owned()]).expect("named");
    let named = names(&pem);
    for name in ["localhost", "127.0.0.1", "queue.example", "192.0.2.7", "spiffe://flux/queue"] {
        assert!(named.contains(name), "{name}: {named}");
    }
    assert_eq!(fs::read(certs.dir().join("queue/queue-key.pem")).expect("a key"), key);
}

#[test]
fn renewal_keeps_the_key_and_the_name_and_takes_only_what_is_due() {
    let (_dir, certs) = certs();
    certs.mint_agent(&agent("a-1"), vec![]).expect("minted");
    let credential = certs.agent(&agent("a-1")).expect("a credential");
    let before = credential.certificate();
    assert!(certs.renew(Duration::from_secs(30 * 24 * 3600)).expect("renewed").is_empty(), "90 days are left");
    let renewed = certs.renew(Duration::from_secs(91 * 24 * 3600)).expect("renewed");
    assert_eq!(renewed.len(), 4, "{renewed:?}");
    assert!(credential.reload().expect("read again"), "it is another certificate");
    let after = credential.certificate();
    assert_ne!(before.der(), after.der());
    assert_eq!(before.identity(), after.identity());
}

#[test]
fn who_is_revoked_and_let_in_again_is_another_name() {
    let (_dir, certs) = certs();
    let id = agent("a-1");
    certs.mint_agent(&id, vec![]).expect("minted");
    let first = certs.agent(&id).expect("a credential").identity();
    assert!(certs.grants().expect("grants").admits(&first));
    let changed = certs.changed();
    certs.revoke_agent(&id).expect("revoked");
    assert_ne!(certs.changed(), changed, "who follows the grants hears of it");
    assert!(!certs.grants().expect("grants").admits(&first));
    certs.agent(&id).expect_err("it has none");
    certs.mint_agent(&id, vec![]).expect("minted again");
    let second = certs.agent(&id).expect("a credential").identity();
    assert_eq!(second, Identity::Agent { id: id.clone(), grant: 2 });
    let grants = certs.grants().expect("grants");
    assert!(grants.admits(&second) && !grants.admits(&first));
    assert!(matches!(certs.revoke_agent(&agent("nobody")), Err(PkiError::Unknown { .. })));
}

#[test]
fn a_producer_has_its_globs_and_a_damaged_grant_shuts_nobody_out() {
    let (_dir, certs) = certs();
    let glob = FunctionGlob::parse("resize*").expect("a glob");
    certs.mint_producer(&agent("shop"), vec![glob.clone()]).expect("minted");
    let listed = certs.list().expect("listed");
    let shop = listed.iter().find(|one| one.identity.to_string() == "producer shop").expect("it is listed");
    assert_eq!((&*shop.invoke, shop.key_is_here, shop.revoked), (&[glob][..], true, false));
    fs::write(certs.dir().join("producers/shop/grant.json"), "{").expect("written");
    assert!(matches!(certs.grants(), Err(PkiError::Damaged { .. })));
}

#[test]
fn ssh_itself_reads_the_key_pair() {
    let (_dir, certs) = certs();
    let output =
        match Command::new("ssh-keygen").arg("-y").arg("-f").arg(certs.dir().join("ssh/flux-agent.pem")).output() {
            Ok(output) => output,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "ssh-keygen: {error}");
                return eprintln!("not run: there is no ssh-keygen");
            }
        };
    assert!(output.status.success(), "{output:?}");
    let shown = fs::read_to_string(certs.dir().join("ssh/flux-agent.pub")).expect("a public key");
    let derived = String::from_utf8(output.stdout).expect("text");
    assert_eq!(derived.split(' ').take(2).collect::<Vec<_>>(), shown.split(' ').take(2).collect::<Vec<_>>());
    assert!(shown.starts_with("ssh-ed25519 "));
}

#[test]
fn elsewhere_than_at_home_nothing_can_be_signed() {
    let (_dir, certs) = certs();
    fs::remove_file(certs.dir().join("ca/ca-key.pem")).expect("removed");
    assert!(!certs.has_authority());
    let error = Certs::at(certs.dir()).mint_agent(&agent("a"), vec![]).expect_err("no key");
    assert!(matches!(error, PkiError::Missing { .. }), "{error}");
}
