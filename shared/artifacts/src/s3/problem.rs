//! What a bucket's refusal means, and which setting mends it. S3 says it in the code of an XML body, which is all that its
//! client hands on of it, as text.

use object_store::Error as ObjectError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a bucket cannot be used. The message names the setting; the source is what was answered.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    #[error("`artifacts.url` is `{url}`: {problem}; it is written s3://bucket/prefix")]
    Url { url: String, problem: String },
    #[error(
        "there is no bucket as `artifacts.url` ({url}) names it: make it, or correct the name or `artifacts.endpoint`"
    )]
    NoBucket { url: String, source: Source },
    #[error(
        "the bucket of `artifacts.url` ({url}) is not for these credentials: correct `artifacts.access_key_id` and \
         `artifacts.secret_access_key` (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and let them list, read, write and delete there"
    )]
    Refused { url: String, source: Source },
    #[error(
        "there are no credentials for `artifacts.url` ({url}): set `artifacts.access_key_id` and `artifacts.secret_access_key` \
         (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), or give this machine a role"
    )]
    NoCredentials { url: String, source: Source },
    #[error("the bucket of `artifacts.url` ({url}) is in another region: correct `artifacts.region`")]
    Region { url: String, source: Source },
    #[error("{place} does not answer: is it up, and are `artifacts.endpoint` and `artifacts.region` right?")]
    Unreachable { place: String, source: Source },
    #[error("the bucket of `artifacts.url` ({url}) is full")]
    Full { url: String, source: Source },
}

impl S3Error {
    pub(super) fn url(url: &str, problem: impl Into<String>) -> Self {
        Self::Url { url: url.to_owned(), problem: problem.into() }
    }

    pub(super) fn of(url: &str, endpoint: Option<&str>, error: ObjectError) -> Self {
        let said = said(&error);
        let says = |codes: &[&str]| codes.iter().any(|code| said.contains(code));
        let url = url.to_owned();
        let denied = matches!(error, ObjectError::PermissionDenied { .. } | ObjectError::Unauthenticated { .. });
        let source: Source = error.into();
        if says(&["NoSuchBucket", "InvalidBucketName"]) {
            Self::NoBucket { url, source }
        } else if says(&["PermanentRedirect", "AuthorizationHeaderMalformed", "without LOCATION"]) {
            Self::Region { url, source }
        } else if says(&["StorageFull", "QuotaExceeded"]) {
            Self::Full { url, source }
        } else if denied || says(&["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"]) {
            Self::Refused { url, source }
        } else if says(&["latest/api/token", "security-credentials", "Missing AccessKeyId", "Missing SecretAccessKey"])
        {
            Self::NoCredentials { url, source }
        } else {
            let place = endpoint.map_or_else(|| format!("the bucket of `artifacts.url` ({url})"), str::to_owned);
            Self::Unreachable { place, source }
        }
    }
}

/// An error and all that is below it.
fn said(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        said.push('\n');
        said.push_str(&error.to_string());
        below = error.source();
    }
    said
}
