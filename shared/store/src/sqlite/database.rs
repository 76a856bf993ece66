//! A database file: made whole or not at all, checked before use, migrated once.
//!
//! A new database is built under another name and linked into place when it is complete. So a file that is
//! there and empty, or damaged, never was a store that just started: it is refused, and never taken for a new one.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::fault::Fault;
use crate::{Durability, StoreError, Tuning};

/// `FLUX`, in the header of every database of Flux's.
const APPLICATION: i32 = 0x464c_5558;

/// The n-th brings a database from schema n to n + 1. Only ever appended to.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql"), include_str!("open_covers.sql"), include_str!("access.sql")];

const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The log is folded into the database when it has this many pages (4 KiB each): 16 MiB.
const CHECKPOINT_PAGES: u32 = 4096;
/// What the log's file is cut to after it was folded in.
const LOG_KEPT_BYTES: u32 = 64 * 1024 * 1024;

/// Where a store lies. `None` is memory.
#[derive(Debug, Clone)]
pub(super) struct Database {
    path: Option<PathBuf>,
    tuning: Tuning,
}

impl Database {
    pub(super) fn new(path: Option<PathBuf>, tuning: Tuning) -> Self {
        Self { path, tuning }
    }

    /// As messages name it.
    pub(super) fn place(&self) -> String {
        self.path.as_ref().map_or_else(|| "memory".to_owned(), |path| path.display().to_string())
    }

    pub(super) const fn is_file(&self) -> bool {
        self.path.is_some()
    }

    /// Makes the file where there is none, and opens it for writing.
    pub(super) fn connect_writer(&self) -> Result<Connection, StoreError> {
        let attempted = "open the database";
        let Some(path) = &self.path else {
            let database = Connection::open_in_memory().map_err(|e| self.failed(attempted, e))?;
            self.migrate(&database)?;
            self.tune(&database).map_err(|e| self.failed(attempted, e))?;
            return Ok(database);
        };
        self.make_if_missing(path)?;
        let database = self.connect_file(path)?;
        self.check_is_ours(&database)?;
        self.migrate(&database)?;
        if let Some(most) = self.tuning.max_bytes {
            database
                .query_row(&format!("PRAGMA max_page_count = {}", (most / 4096).max(1)), [], |_| Ok(()))
                .map_err(|e| self.failed(attempted, e))?;
        }
        Ok(database)
    }

    /// Opens the file, which is there already, for reading.
    pub(super) fn connect_reader(&self) -> Result<Connection, StoreError> {
        let path = self.path.as_deref().ok_or(StoreError::Closed)?;
        let database = self.connect_file(path)?;
        database.pragma_update(None, "query_only", true).map_err(|e| self.failed("open a reader", e))?;
        Ok(database)
    }

    fn connect_file(&self, path: &Path) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let attempted = "open the database";
        let database = Connection::open_with_flags(path, flags).map_err(|e| self.failed(attempted, e))?;
        self.tune(&database).map_err(|e| self.failed(attempted, e))?;
        Ok(database)
    }

    fn tune(&self, database: &Connection) -> Result<(), rusqlite::Error> {
        database.busy_timeout(BUSY_TIMEOUT)?;
        database.set_prepared_statement_cache_capacity(64);
        database.pragma_update(None, "cache_size", -i64::from(self.tuning.cache_kib))?;
        database.pragma_update(None, "mmap_size", 0)?;
        database.pragma_update(None, "temp_store", "MEMORY")?;
        database.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        database.pragma_update(None, "journal_size_limit", LOG_KEPT_BYTES)?;
        let synchronous = match self.tuning.durability {
            Durability::Process => "NORMAL",
            Durability::Power => "FULL",
        };
        database.pragma_update(None, "synchronous", synchronous)
    }

    fn make_if_missing(&self, path: &Path) -> Result<(), StoreError> {
        let unreadable = |error: std::io::Error| StoreError::Unavailable {
            attempted: "open the database's file",
            source: error.into(),
        };
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                return Err(StoreError::Corrupt { problem: format!("{} is not a file", path.display()) });
            }
            Ok(found) if found.len() == 0 => {
                return Err(StoreError::Corrupt {
                    problem: format!(
                        "{} is empty, which a database of Flux never is: put a backup in its place, or remove it to \
                         start with a new store",
                        path.display()
                    ),
                });
            }
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(error)),
        }
        // SQLite would replay such a log into the new database.
        for suffix in ["-wal", "-journal"] {
            let log = PathBuf::from(format!("{}{suffix}", path.display()));
            if fs::metadata(&log).is_ok_and(|found| found.len() > 0) {
                return Err(StoreError::Corrupt {
                    problem: format!(
                        "{} is there and its database is not: put the database back, or remove the log to start with \
                         a new store",
                        log.display()
                    ),
                });
            }
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        if !parent.is_dir() {
            return Err(StoreError::Url {
                url: format!("sqlite://{}", path.display()),
                problem: format!("the directory {} does not exist; make it first", parent.display()),
            });
        }
        let file = tempfile::Builder::new().prefix(".flux-new-").tempfile_in(parent).map_err(unreadable)?;
        let attempted = "make the database";
        let database = Connection::open_with_flags(file.path(), OpenFlags::SQLITE_OPEN_READ_WRITE)
            .map_err(|e| self.failed(attempted, e))?;
        database.pragma_update(None, "journal_mode", "WAL").map_err(|e| self.failed(attempted, e))?;
        self.migrate(&database)?;
        database.close().map_err(|(_, e)| self.failed(attempted, e))?;
        file.as_file().sync_all().map_err(unreadable)?;
        match file.persist_noclobber(path) {
            Ok(_) => {}
            // Another process made it meanwhile.
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(unreadable(error.error)),
        }
        fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(unreadable)
    }

    fn check_is_ours(&self, database: &Connection) -> Result<(), StoreError> {
        let application: i32 = self.number(database, "PRAGMA application_id")?;
        if application == APPLICATION {
            return Ok(());
        }
        Err(StoreError::Corrupt {
            problem: format!("{} is a SQLite database, but not one of Flux's: name another file", self.place()),
        })
    }

    /// Brings the schema up to date, in one transaction.
    fn migrate(&self, database: &Connection) -> Result<(), StoreError> {
        let known = MIGRATIONS.len();
        let migrate = || -> Result<usize, rusqlite::Error> {
            database.execute_batch("BEGIN IMMEDIATE")?;
            let found: usize = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            for migration in MIGRATIONS.get(found..).unwrap_or_default() {
                database.execute_batch(migration)?;
            }
            if found < known {
                database.pragma_update(None, "user_version", known)?;
                database.pragma_update(None, "application_id", APPLICATION)?;
            }
            database.execute_batch("COMMIT")?;
            Ok(found)
        };
        // Most starts have nothing to do, and then need no lock.
        let found: usize = self.number(database, "PRAGMA user_version")?;
        if found < known && !self.tuning.migrate {
            return Err(StoreError::Corrupt {
                problem: format!(
                    "{} is of an earlier release of Flux (schema {found}; this one knows {known}), and is left as it is: \
                     use that release's `flux`",
                    self.place()
                ),
            });
        }
        let found = if found < known { migrate().map_err(|e| self.failed("migrate the database", e))? } else { found };
        if found > known {
            return Err(StoreError::Corrupt {
                problem: format!(
                    "{} was written by a newer release of Flux (schema {found}; this one knows {known}): start that \
                     release, or put back the copy from before",
                    self.place()
                ),
            });
        }
        Ok(())
    }

    fn number<T: rusqlite::types::FromSql>(&self, database: &Connection, sql: &str) -> Result<T, StoreError> {
        database.query_row(sql, [], |row| row.get(0)).map_err(|e| self.failed("look at the database", e))
    }

    fn failed(&self, attempted: &'static str, error: rusqlite::Error) -> StoreError {
        Fault::from(error).into_error(attempted, &self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_wait_for_the_disk_where_that_was_asked_for() {
        let dir = tempfile::tempdir().expect("a directory");
        for (durability, expected) in [(Durability::Process, 1), (Durability::Power, 2)] {
            let tuning = Tuning { durability, ..Tuning::default() };
            let database = Database::new(Some(dir.path().join("flux.db")), tuning);
            let writer = database.connect_writer().expect("a writer");
            let synchronous: i32 = database.number(&writer, "PRAGMA synchronous").expect("its value");
            assert_eq!(synchronous, expected, "{durability:?}");
            let journal: String = database.number(&writer, "PRAGMA journal_mode").expect("its value");
            assert_eq!(journal, "wal");
        }
    }
}
