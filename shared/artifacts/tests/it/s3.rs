//! A bucket keeps the seam's promises, and a wrong setting is told with its name. The bucket is moto's.

use std::{
    error::Error,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use flux_artifacts::{
    ArtifactError, ArtifactStore, S3, S3Error, S3Options,
    conformance::{Engine, every_clause, every_clause_of_an_origin},
};
use flux_protocol::Digest;
use flux_testkit::{Moto, free_port};

const BUCKET: &str = "flux-code";

fn options(moto: &Moto, url: &str) -> S3Options {
    S3Options {
        url: url.to_owned(),
        endpoint: Some(moto.url()),
        region: Some("eu-central-1".to_owned()),
        access_key_id: Some("an-id".to_owned()),
        secret_access_key: Some("a-secret".to_owned()),
        ..S3Options::default()
    }
}

async fn bucket() -> (Moto, S3) {
    let moto = Moto::start().await;
    moto.make_bucket(BUCKET).await;
    let store = S3::open(&options(&moto, &format!("s3://{BUCKET}/flux"))).await.expect("open");
    (moto, store)
}

fn chain(error: &dyn Error) -> String {
    let below = std::iter::successors(error.source(), |error| (*error).source());
    below.fold(error.to_string(), |said, error| format!("{said}\n{error}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_keeps_the_promises() {
    let moto = Moto::start().await;
    moto.make_bucket(BUCKET).await;
    let prefixes = AtomicUsize::new(0);
    let open = async || {
        let url = format!("s3://{BUCKET}/{}/of several", prefixes.fetch_add(1, Ordering::SeqCst));
        S3::open(&options(&moto, &url)).await.expect("open")
    };
    every_clause(Engine { lists: true }, open).await;
    every_clause_of_an_origin(open).await;
    // Without a prefix, and beside what is not ours.
    let store = S3::open(&options(&moto, &format!("s3://{BUCKET}"))).await.expect("open");
    moto.overwrite(BUCKET, "sha256/README", b"not an archive").await;
    let digest = store.put(Bytes::from_static(b"an archive")).await.expect("put");
    let listed = store.list().await.expect("list").expect("it lists");
    assert_eq!(listed.iter().map(|stored| stored.digest).collect::<Vec<_>>(), [digest]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_is_told_and_mended_by_putting_it_again() {
    let (moto, store) = bucket().await;
    let content = Bytes::from_static(b"an archive");
    let digest = store.put(content.clone()).await.expect("put");
    for damage in [&b"an archivE"[..], b"an", b""] {
        moto.overwrite(BUCKET, &format!("flux/sha256/{}", digest.hex()), damage).await;
        let error = store.get(digest, 100).await.expect_err("it is another");
        assert!(matches!(error, ArtifactError::Damaged { .. }), "{error:?}");
        store.put(content.clone()).await.expect("put");
        assert_eq!(store.get(digest, 100).await.expect("get"), Some(content.clone()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_setting_is_told_with_its_name() {
    let (moto, store) = bucket().await;
    let wrong = S3::open(&options(&moto, "s3://no-such-bucket/flux")).await.expect_err("there is none");
    assert!(matches!(wrong, S3Error::NoBucket { .. }), "{}", chain(&wrong));
    assert!(wrong.to_string().contains("artifacts.url") && wrong.to_string().contains("s3://no-such-bucket/flux"));

    // Nobody listens there; what answers, answers for the port that is asked.
    let mut nowhere = options(&moto, &format!("s3://{BUCKET}"));
    nowhere.endpoint = Some(format!("http://127.0.0.1:{}", free_port()));
    let wrong = S3::open(&nowhere).await.expect_err("nobody is there");
    assert!(matches!(wrong, S3Error::Unreachable { .. }), "{}", chain(&wrong));
    assert!(wrong.to_string().contains("artifacts.endpoint") && wrong.to_string().contains("127.0.0.1"), "{wrong}");

    // Half a credential is none.
    let half = S3Options { secret_access_key: None, ..options(&moto, &format!("s3://{BUCKET}")) };
    let wrong = S3::open(&half).await.expect_err("the secret is missing");
    assert!(matches!(wrong, S3Error::NoCredentials { .. }), "{}", chain(&wrong));

    moto.check_credentials().await;
    let wrong = S3::open(&options(&moto, &format!("s3://{BUCKET}"))).await.expect_err("the key is nobody's");
    assert!(matches!(wrong, S3Error::Refused { .. }), "{}", chain(&wrong));
    assert!(wrong.to_string().contains("artifacts.secret_access_key"), "{wrong}");
    assert!(!chain(&wrong).contains("a-secret"), "{}", chain(&wrong));
    // A key that is withdrawn later is no archive that is not there.
    let withdrawn = store.get(Digest::of(b"x"), 100).await.expect_err("the key is nobody's");
    assert!(withdrawn.is_retryable() && chain(&withdrawn).contains("artifacts.access_key_id"), "{}", chain(&withdrawn));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_usual_variables_are_read_where_nothing_is_set() {
    let moto = Moto::start().await;
    moto.make_bucket(BUCKET).await;
    let said = [
        ("AWS_ENDPOINT_URL", moto.url()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "eu-central-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "an-id".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "a-secret".to_owned()),
        ("AWS_SOMETHING_ELSE", "x".to_owned()),
    ];
    let options = S3Options {
        url: format!("s3://{BUCKET}/flux"),
        environment: said.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        ..S3Options::default()
    };
    let store = S3::open(&options).await.expect("open");
    assert!(!store.has(Digest::of(b"x")).await.expect("has"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_is_an_error_and_no_hang() {
    let (mut moto, store) = bucket().await;
    let digest = store.put(Bytes::from_static(b"an archive")).await.expect("put");
    moto.kill9();
    let asked = tokio::time::timeout(std::time::Duration::from_secs(120), async {
        let get = store.get(digest, 100).await.expect_err("it is away");
        let put = store.put(Bytes::from_static(b"an archive")).await.expect_err("it is away");
        let listed = store.list().await.expect_err("it is away");
        [get, put, listed]
    });
    for error in asked.await.expect("no request hangs") {
        assert!(error.is_retryable(), "{error:?}");
    }
}
