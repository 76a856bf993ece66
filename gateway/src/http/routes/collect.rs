//! Code archives that no version names.

use axum::{extract::State, response::Response};
use flux_artifacts::collect::Collected;
use flux_protocol::limits;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    super::{Api, query::RawQuery},
    answer::ok,
    keys::changed,
};
use crate::refusal::Refusal;

#[derive(Serialize, ToSchema)]
pub(super) struct CollectedBody {
    dry_run: bool,
    /// The first 1000 of them, in the order of their digests.
    archives: Vec<ArchiveBody>,
    /// How many went, or would go, and how large they were.
    removed: usize,
    bytes: u64,
    /// What some version names, or what was put within the last hour.
    kept: usize,
    /// What was missing in one of its places and was put there again.
    mended: usize,
    /// Digests that a version names and that are nowhere: deploy those functions again.
    lost: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct ArchiveBody {
    digest: String,
    bytes: u64,
}

impl CollectedBody {
    fn new(dry_run: bool, collected: &Collected) -> Self {
        let Collected { removed, kept, mended, lost } = collected;
        let archives = removed.iter().take(limits::PAGE);
        Self {
            dry_run,
            archives: archives.map(|one| ArchiveBody { digest: one.digest.to_string(), bytes: one.bytes }).collect(),
            removed: removed.len(),
            bytes: removed.iter().map(|one| one.bytes).sum(),
            kept: *kept,
            mended: *mended,
            lost: lost.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Remove code archives that no version names
///
/// Gateways do so by themselves once a day. What was put within the last hour stays: a deployment may be under way.
/// Where no version names any archive, or more than half of them (and more than 10) would go, `force` has to be said:
/// more likely this is not the store of these archives.
#[utoipa::path(post, path = "/admin/gc", tag = "operations",
    params(
        ("dry_run" = Option<bool>, Query, description = "Say what would go, and remove nothing"),
        ("force" = Option<bool>, Query, description = "Also where nothing is named, or most would go"),
    ),
    responses(
        (status = 200, description = "What went, or would go", body = CollectedBody),
        (status = 409, description = "needs_force, backup_running"),
        (status = 503, description = "store_unavailable"),
    ))]
pub(super) async fn collect(State(api): State<Api>, query: RawQuery) -> Result<Response, Refusal> {
    let query = query.of(&["dry_run", "force"])?;
    let (dry_run, force) = (query.flag("dry_run")?, query.flag("force")?);
    let collected = api.gateway.collect_archives(dry_run, force).await?;
    let body = CollectedBody::new(dry_run, &collected);
    let would = if dry_run { "would be " } else { "" };
    let what = format!("{} code archives {would}removed, {} bytes", body.removed, body.bytes);
    Ok(changed(ok(body), what))
}
