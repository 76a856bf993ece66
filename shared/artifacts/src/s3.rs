//! Archives in S3, or in what speaks as it does (MinIO, Ceph, R2): `<prefix>/sha256/<hex>`. An object is whole or not there,
//! so nothing is written aside; a large one goes in parts, which the bucket puts together.
//!
//! Every request is bounded, and tried again a few times ([`limits::S3_RETRIES`]). Nothing here reads the environment: who opens
//! a store hands in what it says ([`S3Options::environment`]).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use flux_protocol::{Digest, Timestamp, limits};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    BackoffConfig, ClientConfigKey, Error as ObjectError, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    path::Path,
};

use crate::{ArtifactError, ArtifactStore, Aside, Origin, Stored};

mod problem;

pub use problem::S3Error;

/// Where a bucket is, and who asks. What is `None` is taken from [`S3Options::environment`], then from where AWS's own tools look.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// `s3://bucket/prefix`.
    pub url: String,
    /// `https://minio:9000`; AWS itself unless it is set.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    /// The bucket is a part of the path and not of the name; as usual at an endpoint of one's own.
    pub path_style: Option<bool>,
    /// Variables as AWS's own tools read them: `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_WEB_IDENTITY_TOKEN_FILE` and so on.
    pub environment: Vec<(String, String)>,
}

/// A bucket of archives. Any number of gateways may share it.
#[derive(Debug, Clone)]
pub struct S3 {
    bucket: Arc<dyn ObjectStore>,
    archives: Path,
    aside: Path,
    /// As configured, for whoever reads an error.
    url: String,
}

impl S3 {
    /// Uses the bucket, which must be there; asks it once, so that a wrong setting is told at the start.
    ///
    /// # Errors
    /// A setting cannot be used, or the bucket does not answer as one.
    pub async fn open(options: &S3Options) -> Result<Self, S3Error> {
        let (bucket, prefix) = bucket_and_prefix(&options.url)?;
        let failed = |error| S3Error::of(&options.url, options.endpoint.as_deref(), error);
        let bucket = builder(options, bucket).build().map_err(failed)?;
        let prefix = Path::parse(prefix).map_err(|error| S3Error::url(&options.url, error.to_string()))?;
        let (archives, aside) = (prefix.clone().join("sha256"), prefix.join("aside"));
        let store = Self { bucket: Arc::new(bucket), archives, aside, url: options.url.clone() };
        store.bucket.list(Some(&store.archives)).next().await.transpose().map_err(failed)?;
        Ok(store)
    }

    fn path(&self, digest: Digest) -> Path {
        self.archives.clone().join(digest.hex())
    }

    fn failed(&self, attempted: &'static str) -> impl Fn(ObjectError) -> ArtifactError + use<> {
        let url = self.url.clone();
        move |error| ArtifactError::unavailable(attempted, S3Error::of(&url, None, error))
    }

    /// Name, size and time of each object there.
    async fn objects(&self, at: &Path) -> Result<Vec<(String, u64, Timestamp)>, ArtifactError> {
        let found = self.bucket.list(Some(at)).map_ok(|meta| {
            let name = meta.location.filename().unwrap_or_default().to_owned();
            (name, meta.size, modified(&meta))
        });
        found.try_collect().await.map_err(self.failed("list the code archives of the bucket"))
    }

    async fn remove(&self, path: &Path) -> Result<(), ArtifactError> {
        match self.bucket.delete(path).await {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete a code archive from the bucket")(error)),
        }
    }

    /// The content at a path, if it is what the digest says.
    async fn read(&self, path: &Path, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError> {
        let failed = self.failed("read a code archive from the bucket");
        let found = match self.bucket.get(path).await {
            Ok(found) => found,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let Some(content) = read(found, most).await.map_err(failed)? else {
            return Err(ArtifactError::TooLarge { digest, limit: most });
        };
        let (content, found) = digest_of(content).await?;
        if found != digest {
            return Err(ArtifactError::Damaged { digest, place: self.url.clone() });
        }
        Ok(Some(content))
    }

    async fn put_in_parts(&self, path: &Path, content: &Bytes) -> Result<(), ObjectError> {
        let mut upload = self.bucket.put_multipart(path).await?;
        let parts: Vec<_> = (0..content.len().div_ceil(limits::S3_PART))
            .map(|part| part * limits::S3_PART)
            .map(|from| upload.put_part(content.slice(from..content.len().min(from + limits::S3_PART)).into()))
            .collect();
        let sent = stream::iter(parts).buffer_unordered(limits::S3_PARTS_IN_FLIGHT).try_collect::<()>().await;
        match sent {
            Ok(()) => upload.complete().await.map(drop),
            Err(error) => {
                // The parts that are there cost space until the bucket's own rules remove them, if not now.
                if let Err(error) = upload.abort().await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        url = self.url,
                        "an upload cannot be given up"
                    );
                }
                Err(error)
            }
        }
    }
}

#[async_trait]
impl ArtifactStore for S3 {
    /// Sent also when it is there: that mends it, and its time is now.
    async fn put(&self, content: Bytes) -> Result<Digest, ArtifactError> {
        let (content, digest) = digest_of(content).await?;
        let path = self.path(digest);
        let sent = if content.len() <= limits::S3_PART {
            self.bucket.put(&path, content.clone().into()).await.map(drop)
        } else {
            self.put_in_parts(&path, &content).await
        };
        sent.map_err(|error| match S3Error::of(&self.url, None, error) {
            full @ S3Error::Full { .. } => ArtifactError::Full { size: content.len(), source: full.into() },
            error => ArtifactError::unavailable("store a code archive in the bucket", error),
        })?;
        Ok(digest)
    }

    async fn get(&self, digest: Digest, most: usize) -> Result<Option<Bytes>, ArtifactError> {
        let path = self.path(digest);
        if let Some(found) = self.read(&path, digest, most).await? {
            return Ok(Some(found));
        }
        for aside in self.asides().await?.into_iter().filter(|aside| aside.stored.digest == digest) {
            let found = self.read(&self.aside.clone().join(aside.name.as_str()), digest, most).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        // It may have been put back while this looked.
        self.read(&path, digest, most).await
    }

    async fn has(&self, digest: Digest) -> Result<bool, ArtifactError> {
        match self.bucket.head(&self.path(digest)).await {
            Ok(_) => Ok(true),
            Err(ObjectError::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed("look for a code archive in the bucket")(error)),
        }
    }

    async fn delete(&self, digest: Digest) -> Result<(), ArtifactError> {
        self.remove(&self.path(digest)).await
    }

    async fn list(&self) -> Result<Option<Vec<Stored>>, ArtifactError> {
        let found = self.objects(&self.archives).await?;
        let mut all: Vec<_> = found
            .into_iter()
            // Anything else in there is not ours.
            .filter_map(|(name, bytes, put_at)| {
                Some(Stored { digest: format!("sha256:{name}").parse().ok()?, bytes, put_at })
            })
            .collect();
        all.sort_unstable_by_key(|stored| stored.digest);
        Ok(Some(all))
    }
}

/// A bucket renames nothing: it copies, and deletes what was copied. A put in between is deleted with it, which whoever
/// put it finds out ([`collect`](crate::collect)).
#[async_trait]
impl Origin for S3 {
    async fn set_aside(&self, digest: Digest) -> Result<Option<Aside>, ArtifactError> {
        let failed = self.failed("set a code archive of the bucket aside");
        let path = self.path(digest);
        let meta = match self.bucket.head(&path).await {
            Ok(meta) => meta,
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let aside = Aside::new(Stored { digest, bytes: meta.size, put_at: modified(&meta) });
        match self.bucket.copy(&path, &self.aside.clone().join(aside.name.as_str())).await {
            Ok(()) => {}
            Err(ObjectError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        self.delete(digest).await?;
        Ok(Some(aside))
    }

    async fn asides(&self) -> Result<Vec<Aside>, ArtifactError> {
        let found = self.objects(&self.aside).await?;
        Ok(found.into_iter().filter_map(|(name, bytes, put_at)| Aside::named(&name, bytes, put_at)).collect())
    }

    async fn put_back(&self, aside: &Aside) -> Result<(), ArtifactError> {
        let from = self.aside.clone().join(aside.name.as_str());
        match self.bucket.copy(&from, &self.path(aside.stored.digest)).await {
            Ok(()) => self.drop_aside(aside).await,
            Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("put a code archive of the bucket back")(error)),
        }
    }

    async fn drop_aside(&self, aside: &Aside) -> Result<(), ArtifactError> {
        self.remove(&self.aside.clone().join(aside.name.as_str())).await
    }
}

fn modified(meta: &ObjectMeta) -> Timestamp {
    Timestamp::from_micros(meta.last_modified.timestamp_micros())
}

/// The whole content, unless it has more than `most` bytes.
async fn read(found: GetResult, most: usize) -> Result<Option<Bytes>, ObjectError> {
    let size = usize::try_from(found.meta.size).unwrap_or(usize::MAX);
    if size > most {
        return Ok(None);
    }
    let mut content = BytesMut::with_capacity(size);
    let mut parts = found.into_stream();
    while let Some(part) = parts.try_next().await? {
        // What a server says of a size binds no server.
        if content.len() + part.len() > most {
            return Ok(None);
        }
        content.extend_from_slice(&part);
    }
    Ok(Some(content.freeze()))
}

/// Hashing is work for a while: off the async threads.
async fn digest_of(content: Bytes) -> Result<(Bytes, Digest), ArtifactError> {
    tokio::task::spawn_blocking(move || {
        let digest = Digest::of(&content);
        (content, digest)
    })
    .await
    .map_err(|error| ArtifactError::unavailable("take the digest of a code archive", error))
}

fn builder(options: &S3Options, bucket: &str) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new();
    // A session's token belongs to the key that it came with.
    let other_key = options.access_key_id.is_some();
    for (name, value) in options.environment.iter().filter(|(name, _)| !(other_key && name == "AWS_SESSION_TOKEN")) {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(id) = &options.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = &options.secret_access_key {
        builder = builder.with_secret_access_key(secret);
    }
    let own_endpoint = [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint]
        .iter()
        .any(|key| builder.get_config_value(key).is_some());
    let path_style = options.path_style.unwrap_or(own_endpoint);
    for (key, limit) in
        [(ClientConfigKey::ConnectTimeout, limits::S3_CONNECT), (ClientConfigKey::Timeout, limits::S3_REQUEST)]
    {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), format!("{} seconds", limit.as_secs()));
    }
    let retry = RetryConfig {
        max_retries: limits::S3_RETRIES,
        retry_timeout: limits::S3_RETRY,
        backoff: BackoffConfig::default(),
    };
    builder.with_bucket_name(bucket).with_virtual_hosted_style_request(!path_style).with_retry(retry)
}

fn bucket_and_prefix(url: &str) -> Result<(&str, &str), S3Error> {
    let rest = url.strip_prefix("s3://").ok_or_else(|| S3Error::url(url, "it does not begin with s3://"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains(['@', '?', ':']) {
        return Err(S3Error::url(url, "it has no bucket's name after s3://"));
    }
    Ok((bucket, prefix.trim_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_bucket_and_where_in_it() {
        let of = |url| bucket_and_prefix(url).expect("a url");
        assert_eq!(of("s3://code"), ("code", ""));
        assert_eq!(of("s3://code/"), ("code", ""));
        assert_eq!(of("s3://code/flux/prod/"), ("code", "flux/prod"));
        for wrong in ["code", "s3://", "s3:///flux", "https://code.s3.amazonaws.com", "s3://key:secret@code"] {
            let error = bucket_and_prefix(wrong).expect_err(wrong).to_string();
            assert!(error.contains("artifacts.url") && error.contains("s3://bucket/prefix"), "{error}");
        }
    }
}
