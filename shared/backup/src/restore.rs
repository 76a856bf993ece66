//! Restoring one. The file is read to its end three times: to find out whether it is whole and makes sense, before anything is
//! changed; for the archives, which harm nobody where nothing names them; and for the rows, which take effect all at once.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufReader, Seek as _, SeekFrom},
    time::Duration,
};

use flux_artifacts::ArtifactStore;
use flux_protocol::{Digest, FunctionName, limits};
use flux_store::{Census, Entry, Part, RECONCILER_LEASE, Store};
use tokio::{sync::mpsc, task::spawn_blocking};

use crate::{BackupError, Counts, Header, KeyFile, Piece, lease, read};

const ON_THEIR_WAY: usize = 16;
/// A gateway that was killed has its lease for 6 s more.
const GATEWAY_DEAD_WITHIN: Duration = Duration::from_secs(8);
const READ_AHEAD: usize = 256 * 1024;

/// A backup that is whole.
#[derive(Debug)]
pub struct Checked {
    pub header: Header,
    pub counts: Counts,
    /// Archives that versions name, and that it lacks.
    pub missing: Vec<Digest>,
    pub keys: Vec<KeyFile>,
}

/// Reads all of it.
///
/// # Errors
/// What is wrong with it.
pub fn check(file: &File) -> Result<Checked, BackupError> {
    let mut header = None;
    let mut keys: Vec<KeyFile> = Vec::new();
    let mut names = Names::default();
    let (counts, missing) = pass(file, |piece| {
        match piece {
            Piece::Header(found) => header = Some(found),
            Piece::Rows(packed) => Piece::rows(&packed)?.iter().for_each(|row| names.learn(row)),
            Piece::Archive(digest, _) => drop(names.archives.insert(digest)),
            Piece::Key(file) => {
                if keys.iter().map(|file| file.content.len()).sum::<usize>() > limits::BACKUP_KEY_FILES {
                    let problem = "are more than are taken".to_owned();
                    return Err(BackupError::Damaged { entry: "its keys".to_owned(), problem });
                }
                keys.push(file);
            }
        }
        Ok(())
    })?;
    names.require_whole(&missing)?;
    let header = header.ok_or(BackupError::CutOff)?;
    Ok(Checked { header, counts, missing, keys })
}

/// What names what.
#[derive(Default)]
struct Names {
    current: HashMap<FunctionName, u32>,
    versions: HashSet<(FunctionName, u32)>,
    digests: HashSet<Digest>,
    archives: HashSet<Digest>,
}

impl Names {
    fn learn(&mut self, row: &Entry) {
        match row {
            Entry::Function(head) => {
                if let Some(current) = head.current {
                    self.current.insert(head.name.clone(), current);
                }
            }
            Entry::Version(version) => {
                self.versions.insert((version.name().clone(), version.version));
                self.digests.extend(version.digest);
            }
            _ => {}
        }
    }

    /// Whoever wrote it saw to that.
    fn require_whole(&self, missing: &[Digest]) -> Result<(), BackupError> {
        let lacks = |what: String| BackupError::Damaged { entry: "it".to_owned(), problem: format!("lacks {what}") };
        for (name, version) in &self.current {
            if !self.versions.contains(&(name.clone(), *version)) {
                return Err(lacks(format!("version {version} of {name}, which is its current one")));
            }
        }
        match self.digests.iter().find(|digest| !self.archives.contains(digest) && !missing.contains(digest)) {
            Some(digest) => Err(lacks(format!("the code archive {digest}"))),
            None => Ok(()),
        }
    }
}

/// Whether anything would be overwritten.
///
/// # Errors
/// `NotEmpty`, saying what.
pub async fn require_empty(store: &dyn Store) -> Result<(), BackupError> {
    let Census { functions, executions, keys, secrets } = match store.census().await? {
        empty if empty.is_empty() => return Ok(()),
        full => full,
    };
    let executions =
        if executions >= Census::COUNTED { format!("{executions} or more") } else { executions.to_string() };
    Err(BackupError::NotEmpty { functions, executions, keys, secrets })
}

/// Puts what is in a backup in the place of everything that the store knows. `holder`: a name that nobody else has.
/// `confirm` is asked once it is sure that no gateway lives on the store, and again right before rows are replaced: where it
/// refuses, no row has been changed.
///
/// # Errors
/// `GatewayAlive`; `Overtaken`; the file is not what it was when it was checked; the store or the archives are out of reach. As
/// long as the engine keeps its word ([`Store::import`]) the store is as it was then.
pub async fn fill(
    file: &File,
    store: &dyn Store,
    archives: &dyn ArtifactStore,
    holder: &str,
    confirm: impl AsyncFn() -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    if !lease::take(store, RECONCILER_LEASE, holder, GATEWAY_DEAD_WITHIN).await? {
        return Err(BackupError::GatewayAlive);
    }
    let work = async {
        confirm().await?;
        put_archives(file, archives).await?;
        // That may have taken long, and a gateway that was started meanwhile waits for the lease, or has it by now.
        if !lease::take(store, RECONCILER_LEASE, holder, Duration::ZERO).await? {
            return Err(BackupError::Overtaken);
        }
        confirm().await?;
        put_rows(file, store).await
    };
    Box::pin(lease::keeping(store, RECONCILER_LEASE, holder, work)).await
}

async fn put_archives(file: &File, archives: &dyn ArtifactStore) -> Result<(), BackupError> {
    let file = file.try_clone().map_err(BackupError::Read)?;
    let (into, mut contents) = mpsc::channel::<Vec<u8>>(1);
    let reading = spawn_blocking(move || {
        pass(&file, |piece| match piece {
            Piece::Archive(_, content) => into.blocking_send(content).map_err(|_| BackupError::Stopped),
            _ => Ok(()),
        })
    });
    let put = async {
        // Dropped where it fails, which stops the reader.
        let mut contents = std::mem::replace(&mut contents, mpsc::channel(1).1);
        while let Some(content) = contents.recv().await {
            archives.put(content.into()).await?;
        }
        Ok::<_, BackupError>(())
    };
    let (put, read) = tokio::join!(put, reading);
    put?;
    read.map_err(|_| BackupError::Stopped)?.map(drop)
}

async fn put_rows(file: &File, store: &dyn Store) -> Result<(), BackupError> {
    let file = file.try_clone().map_err(BackupError::Read)?;
    let (into, parts) = mpsc::channel(ON_THEIR_WAY);
    let reading = spawn_blocking(move || {
        let send = |part| into.blocking_send(part).map_err(|_| BackupError::Stopped);
        pass(&file, |piece| match piece {
            Piece::Rows(packed) => Piece::rows(&packed)?.into_iter().try_for_each(|row| send(Part::Entry(row))),
            _ => Ok(()),
        })?;
        send(Part::End)
    });
    let (filled, read) = tokio::join!(store.import(parts), reading);
    match (filled, read.map_err(|_| BackupError::Stopped)?) {
        (Ok(()), _) => Ok(()),
        // What the store says is why the reader was stopped; what broke off is what the reader says.
        (Err(flux_store::StoreError::BrokenOff), Err(error)) => Err(error),
        (Err(error), _) => Err(error.into()),
    }
}

/// From its beginning to its end.
fn pass(
    mut file: &File,
    each: impl FnMut(Piece) -> Result<(), BackupError>,
) -> Result<(Counts, Vec<Digest>), BackupError> {
    file.seek(SeekFrom::Start(0)).map_err(BackupError::Read)?;
    read(BufReader::with_capacity(READ_AHEAD, file), each)
}
