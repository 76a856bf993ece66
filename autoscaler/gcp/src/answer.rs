//! What Google's client answers with, as refusals and the seam's errors.

use std::{error::Error as StdError, time::Duration};

use flux_provider::ProviderError;
use google_cloud_compute_v1::model::Operation;
use google_cloud_gax::error::{CredentialsError, Error, rpc::StatusDetails};
use google_cloud_lro::{Poller, PollingResult};

use crate::meaning::Refusal;

/// Pauses between looks at an operation.
const LOOKS_AFTER: Duration = Duration::from_millis(250);
const LOOKS_AT_MOST: Duration = Duration::from_secs(3);

/// `None` where it was not Google who said it.
pub(crate) fn refusal(error: &Error) -> Option<Refusal> {
    let status = error.http_status_code()?;
    let header = |name: &str| error.http_headers()?.get(name)?.to_str().ok()?.parse().ok();
    let reason = |detail: &StatusDetails| match detail {
        StatusDetails::ErrorInfo(info) if !info.reason.is_empty() => Some(info.reason.clone()),
        _ => None,
    };
    let (reasons, message) = match error.status() {
        Some(status) => (status.details.iter().filter_map(reason).collect(), status.message.clone()),
        // Not in Google's form: something between, or a front end that is overloaded.
        None => (Vec::new(), error.to_string()),
    };
    Some(Refusal { reasons, message, status, retry_after: header("retry-after").map(Duration::from_secs) })
}

/// An error of the client, as the seam has it.
pub(crate) fn meant(error: &Error, attempted: &str) -> ProviderError {
    if let Some(refusal) = refusal(error) {
        return refusal.into_error(attempted);
    }
    let (mut text, mut refused) = (error.to_string(), false);
    let mut below = error.source();
    while let Some(source) = below {
        refused |= source.downcast_ref::<CredentialsError>().is_some_and(|error| !error.is_transient());
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        below = source.source();
    }
    if refused { ProviderError::credentials(attempted, text) } else { ProviderError::unavailable(attempted, text) }
}

/// An operation once it is done, failed or not. An error that says that nothing was bought is of the request itself.
pub(crate) async fn settled(
    mut poller: impl Poller<Operation, Operation>,
    attempted: &str,
) -> Result<Operation, ProviderError> {
    let (mut asked, mut pause) = (false, LOOKS_AFTER);
    loop {
        match poller.poll().await {
            Some(PollingResult::Completed(Ok(operation))) => return Ok(operation),
            Some(PollingResult::Completed(Err(error))) if !asked => return Err(meant(&error, attempted)),
            Some(PollingResult::Completed(Err(error))) => {
                return Err(ProviderError::unavailable(attempted, meant(&error, "look at the operation")));
            }
            Some(PollingResult::InProgress(_) | PollingResult::PollingError(_)) => {}
            None => return Err(ProviderError::unavailable(attempted, "Google answered without an operation")),
        }
        asked = true;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOKS_AT_MOST);
    }
}

/// What an operation that is done failed with.
pub(crate) fn failure(operation: &Operation) -> Option<Refusal> {
    let errors = operation.error.iter().flat_map(|error| &error.errors);
    let status = operation.http_error_status_code.and_then(|status| u16::try_from(status).ok());
    let status = status.filter(|status| !(200..300).contains(status));
    if operation.error.is_none() && status.is_none() {
        return None;
    }
    let (mut reasons, mut messages) = (Vec::new(), Vec::new());
    for error in errors {
        reasons.extend(error.code.clone());
        messages.extend(error.message.clone());
    }
    if messages.is_empty() {
        messages.extend(operation.http_error_message.clone());
    }
    Some(Refusal { reasons, message: messages.join("; "), status: status.unwrap_or_default(), retry_after: None })
}
