//! Making one: the store as of one moment, and then the archives that it names. These are never changed and, while the lease is
//! held, not removed: so what is copied after the moment is what was there at it.

use std::{collections::BTreeSet, io::Write, time::Duration};

use bytes::Bytes;
use flux_artifacts::{ArtifactError, ArtifactStore};
use flux_protocol::{Digest, limits};
use flux_store::{COPYING_LEASE, Entry, Store};
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{BackupError, Counts, Header, KeyFile, Writer, lease};

/// Rows on their way to the file.
const ON_THEIR_WAY: usize = 16;
/// Who deploys puts an archive, names it, and looks whether it is there still: it may be missing for a moment.
const LOOKS: usize = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A backup that lacks its keys yet, and its end.
pub struct Copied<W: Write> {
    writer: Writer<W>,
    missing: Vec<Digest>,
    sealed_with: BTreeSet<String>,
}

impl<W: Write> Copied<W> {
    /// The keys that secrets in it are encrypted with, by their ids.
    pub const fn sealed_with(&self) -> &BTreeSet<String> {
        &self.sealed_with
    }

    /// # Errors
    /// `Write`.
    pub fn end(self, keys: &[KeyFile]) -> Result<Taken<W>, BackupError> {
        let Self { mut writer, missing, .. } = self;
        keys.iter().try_for_each(|file| writer.key(file))?;
        let (counts, out) = writer.end(missing.clone())?;
        Ok(Taken { counts, missing, out })
    }
}

/// A backup that was made.
#[derive(Debug)]
pub struct Taken<W> {
    pub counts: Counts,
    /// Archives that versions name, and that are in no place.
    pub missing: Vec<Digest>,
    /// All of it was written to it.
    pub out: W,
}

/// Writes everything but keys to `out`, which is complete after [`Copied::end`]. Gateways go on meanwhile. `holder`: a name that
/// nobody else has. `incomplete`: also where archives are missing.
///
/// # Errors
/// `Busy`, `Overtaken`, `Missing`, `Write`; or the store or the archives are out of reach.
pub async fn copy<W: Write + Send + 'static>(
    store: &dyn Store,
    archives: &dyn ArtifactStore,
    (header, incomplete, holder): (Header, bool, &str),
    out: W,
) -> Result<Copied<W>, BackupError> {
    if !lease::take(store, COPYING_LEASE, holder, Duration::ZERO).await? {
        return Err(BackupError::Busy);
    }
    let copied = copy_all(store, archives, (header, incomplete), out);
    Box::pin(lease::keeping(store, COPYING_LEASE, holder, copied)).await
}

async fn copy_all<W: Write + Send + 'static>(
    store: &dyn Store,
    archives: &dyn ArtifactStore,
    (header, incomplete): (Header, bool),
    out: W,
) -> Result<Copied<W>, BackupError> {
    let (into, mut rows) = mpsc::channel(ON_THEIR_WAY);
    let writing = spawn_blocking(move || {
        let mut writer = Writer::begin(out, &header)?;
        let (mut named, mut sealed_with) = (BTreeSet::new(), BTreeSet::new());
        while let Some(row) = rows.blocking_recv() {
            match &row {
                Entry::Version(version) => named.extend(version.digest),
                Entry::Secret(secret) => drop(sealed_with.insert(secret.key.clone())),
                _ => {}
            }
            writer.row(&row)?;
        }
        Ok::<_, BackupError>((writer, named, sealed_with))
    });
    let (exported, written) = tokio::join!(store.export(into), writing);
    // Where the file cannot be written, the store was not read to its end.
    let (mut writer, named, sealed_with) = written.map_err(|_| BackupError::Stopped)??;
    exported?;
    let mut missing = Vec::new();
    for digest in named {
        match content_of(store, archives, digest).await? {
            Some(content) => writer = off_thread(writer, move |writer| writer.archive(digest, &content)).await?,
            None => missing.push(digest),
        }
    }
    if !missing.is_empty() && !incomplete {
        return Err(BackupError::Missing(missing));
    }
    Ok(Copied { writer, missing, sealed_with })
}

/// `None`: it is in no place, or damaged where it is.
async fn content_of(
    store: &dyn Store,
    archives: &dyn ArtifactStore,
    digest: Digest,
) -> Result<Option<Bytes>, BackupError> {
    for _ in 0..LOOKS {
        match archives.get(digest, limits::ARCHIVE).await {
            Ok(Some(content)) => return Ok(Some(content)),
            Ok(None) => {}
            Err(ArtifactError::Damaged { .. } | ArtifactError::TooLarge { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        if !store.digests().await?.contains(&digest) {
            break;
        }
    }
    Ok(None)
}

async fn off_thread<W: Write + Send + 'static>(
    mut writer: Writer<W>,
    work: impl FnOnce(&mut Writer<W>) -> Result<(), BackupError> + Send + 'static,
) -> Result<Writer<W>, BackupError> {
    let done = spawn_blocking(move || work(&mut writer).map(|()| writer));
    done.await.map_err(|_| BackupError::Stopped)?
}
