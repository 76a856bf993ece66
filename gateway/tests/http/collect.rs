//! `POST /admin/gc`: archives that no version names go; who may ask, and what the audit log has of it.

use std::{
    fs::File,
    time::{Duration, SystemTime},
};

use flux_protocol::{Digest, limits, time::now};
use flux_store::COPYING_LEASE;
use flux_testkit::{File as Entry, archive};
use serde_json::{Value, json};

use crate::flux::Flux;

/// As old as an archive must be.
fn make_old(flux: &Flux, digest: Digest) {
    let file = File::open(flux.scripted.archive_file(digest)).expect("the archive");
    file.set_modified(SystemTime::UNIX_EPOCH + limits::ARCHIVE_GRACE).expect("a time can be set");
}

async fn register(flux: &Flux) {
    flux.api.put("/functions", "application/json", r#"{"name": "gone", "handler": "run"}"#).await.expect(201);
}

async fn deploy(flux: &Flux, content: &[u8]) {
    flux.api.put("/deploy/gone", "application/zip", content.to_vec()).await.expect(201);
}

#[tokio::test]
async fn archives_that_no_version_names_go() {
    let flux = Flux::start().await;
    let content = archive(&[Entry::executable("run", "#!/bin/sh\necho of a function that is deleted\n")]);
    let digest = Digest::of(&content);
    register(&flux).await;
    deploy(&flux, &content).await;
    let collect = async |query: &str| {
        let done = flux.api.post(&format!("/admin/gc{query}"), &json!({})).await.expect(200).json;
        let archives = done["archives"].as_array().expect("a list").iter().map(|one| one["digest"].clone());
        (archives.collect::<Vec<Value>>(), done["kept"].as_u64().expect("a number"), done)
    };

    make_old(&flux, digest);
    assert_eq!(collect("").await.0, Vec::<Value>::new(), "it is named");
    flux.api.delete("/functions/gone").await.expect(200);
    let expected = [json!(digest.to_string())];
    let (would, kept, body) = collect("?dry_run=true").await;
    assert_eq!((&would[..], kept, &body["bytes"]), (&expected[..], 1, &json!(content.len())), "{body}");
    assert!(flux.scripted.archive_file(digest).exists());
    assert_eq!(collect("").await.0, expected);
    assert!(!flux.scripted.archive_file(digest).exists());
    assert_eq!(collect("").await.0, Vec::<Value>::new());
    // Deployed again it is there again, and what is deployed runs.
    register(&flux).await;
    deploy(&flux, &content).await;
    assert!(flux.scripted.archive_file(digest).exists());
    flux.api.post("/execute/echo", &json!({"payload": "still"})).await.expect(200);

    let audit = flux.api.get("/audit").await.expect(200).json;
    let entries = audit["entries"].as_array().expect("a list");
    let of_gc: Vec<_> =
        entries.iter().filter(|entry| entry["path"] == "/admin/gc").map(|entry| &entry["what"]).collect();
    assert_eq!(of_gc.len(), 4, "{audit}");
    assert!(of_gc[1].as_str().is_some_and(|what| what.starts_with("1 code archives removed")), "{audit}");
}

/// A store that names nothing is more likely not the one whose archives these are.
#[tokio::test]
async fn what_would_empty_the_place_has_to_be_forced() {
    let flux = Flux::start().await;
    let content = archive(&[Entry::executable("run", "#!/bin/sh\necho of another store\n")]);
    let digest = Digest::of(&content);
    register(&flux).await;
    deploy(&flux, &content).await;
    make_old(&flux, digest);
    let functions = flux.api.get("/functions").await.expect(200).json;
    for function in functions["functions"].as_array().expect("a list") {
        flux.api.delete(&format!("/functions/{}", function["name"].as_str().expect("text"))).await.expect(200);
    }
    let refused = flux.api.post("/admin/gc", &json!({})).await.expect(409).json;
    assert_eq!(refused["error"]["code"], "needs_force", "{refused}");
    assert_eq!(refused["error"]["details"], json!({"would_remove": 1, "of": 2, "named": 0}));
    assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("1 of 2")), "{refused}");
    assert!(flux.scripted.archive_file(digest).exists());
    assert_eq!(flux.api.post("/admin/gc?dry_run=true", &json!({})).await.expect(200).json["removed"], 1);
    assert_eq!(flux.api.post("/admin/gc?force=true", &json!({})).await.expect(200).json["removed"], 1);
    assert!(!flux.scripted.archive_file(digest).exists());
}

/// A backup has read its store, and copies archives that by now nobody names.
#[tokio::test]
async fn nothing_goes_while_a_backup_is_made() {
    let flux = Flux::start().await;
    let content = archive(&[Entry::executable("run", "#!/bin/sh\necho of a function that is deleted\n")]);
    let digest = Digest::of(&content);
    register(&flux).await;
    deploy(&flux, &content).await;
    make_old(&flux, digest);
    let store = flux.scripted.store();
    let minute = Duration::from_secs(60);
    store.lease(COPYING_LEASE, "backup", now(), minute).await.expect("asked").expect("free");
    flux.api.delete("/functions/gone").await.expect(200);
    let refused = flux.api.post("/admin/gc", &json!({})).await.expect(409).json;
    assert_eq!(refused["error"]["code"], "backup_running", "{refused}");
    assert!(flux.scripted.archive_file(digest).exists());
    store.release_lease(COPYING_LEASE, "backup").await.expect("released");
    assert_eq!(flux.api.post("/admin/gc", &json!({})).await.expect(200).json["removed"], 1);
    // Asking whether there is one does not keep the next from being made.
    store.lease(COPYING_LEASE, "backup", now(), minute).await.expect("asked").expect("free");
}

#[tokio::test]
async fn only_an_admin_collects() {
    let flux = Flux::start().await;
    let made = flux.api.post("/keys", &json!({"name": "t", "scopes": ["deploy", "read"]})).await.expect(201).json;
    let api = flux.api.with_key(made["key"].as_str().expect("a key"));
    api.post("/admin/gc", &json!({})).await.expect(403);
    flux.api.post("/admin/gc?dryrun=true", &json!({})).await.expect(400);
}
