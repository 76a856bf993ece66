//! The keys that secrets are encrypted with at rest: a file, one key a line, the current one first.
//!
//! ```text
//! # Flux encrypts secrets with these keys. Without this file they are lost.
//! 9c1f3a52 4bYy…=
//! ```
//!
//! A value is bound to its name: one that is put under another name does not open. A file that is there and cannot be read
//! whole is an error, and never replaced by a new one: that would lose every secret.

use std::{
    fmt, fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand::{SecureRandom as _, SystemRandom},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flux_protocol::SecretName;

const KEY_BYTES: usize = 32;
const HEAD: &str =
    "# Flux encrypts secrets with these keys, the first for new ones. Without this file they are lost.\n";
const OWN: u32 = 0o600;

#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("the file of secrets' keys {path} cannot be used")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "the file of secrets' keys {path} is damaged in line {line}: put back a copy. A new one would open none of the \
         secrets that there are"
    )]
    Damaged { path: PathBuf, line: usize },
    #[error("the file of secrets' keys {path} can be read by others (mode {mode:o}): chmod 600 it")]
    Readable { path: PathBuf, mode: u32 },
    #[error(
        "the secret `{name}` was encrypted with the key {key}, which {path} does not have: copy it from the gateway that has"
    )]
    UnknownKey { name: SecretName, key: String, path: PathBuf },
    #[error("the secret `{name}` does not open with its key: its value in the store was changed by somebody else")]
    Tampered { name: SecretName },
    #[error("no random numbers")]
    NoRandom,
}

/// A value as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtRest {
    /// Which key it is encrypted with.
    pub key: String,
    pub sealed: Vec<u8>,
}

#[derive(Clone)]
struct Key {
    id: String,
    bytes: [u8; KEY_BYTES],
}

#[derive(Clone)]
pub struct Keyring {
    path: PathBuf,
    /// The current one first.
    keys: Vec<Key>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({}, {} keys)", self.path.display(), self.keys.len())
    }
}

impl Keyring {
    /// Reads the file, or makes one with a new key where there is none.
    ///
    /// # Errors
    /// It cannot be read or made, is damaged, or others can read it.
    pub fn open(path: &Path) -> Result<Self, KeyringError> {
        let keys = match read(path) {
            Err(KeyringError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                write(path, &[Key::draw()?], false).map_err(fault(path))?;
                // Of two at once one made it.
                read(path)?
            }
            read => read?,
        };
        Ok(Self { path: path.to_owned(), keys })
    }

    /// As the file is now: another process that shares it may have changed it. One that is gone is an error, and what was
    /// read of it stays.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read_again(&mut self) -> Result<(), KeyringError> {
        self.keys = read(&self.path)?;
        Ok(())
    }

    pub fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known.id == key)
    }

    /// What is to be encrypted anew after a rotation is what has another key than this.
    pub fn current(&self) -> &str {
        &self.keys[0].id
    }

    /// Adds a key and makes it the current one; those before still open what they encrypted. Which they are, the newest first.
    ///
    /// # Errors
    /// The file cannot be read or written. Then the current key is the one that it was.
    pub fn add_key(&mut self) -> Result<Vec<String>, KeyringError> {
        let _lock = lock(&self.path)?;
        let mut keys = read(&self.path)?;
        let before = keys.iter().map(|key| key.id.clone()).collect();
        keys.insert(0, Key::draw()?);
        self.replace(keys)?;
        Ok(before)
    }

    /// Forgets keys with which nothing is encrypted any more: those before a key was added ([`Keyring::add_key`]), but the
    /// newest of them. What somebody is writing down with that meanwhile opens, and gets another key in the next rotation.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn forget_keys(&mut self, before: &[String]) -> Result<(), KeyringError> {
        let _lock = lock(&self.path)?;
        let older = before.get(1..).unwrap_or_default();
        let keys = read(&self.path)?.into_iter().filter(|key| !older.contains(&key.id)).collect();
        self.replace(keys)
    }

    /// The file first: what is encrypted with a key that is in memory alone is lost with it.
    fn replace(&mut self, keys: Vec<Key>) -> Result<(), KeyringError> {
        write(&self.path, &keys, true).map_err(fault(&self.path))?;
        self.keys = keys;
        Ok(())
    }

    /// # Errors
    /// The machine gives no random numbers.
    pub fn encrypt(&self, name: &SecretName, value: &[u8]) -> Result<AtRest, KeyringError> {
        let key = &self.keys[0];
        let mut sealed = value.to_vec();
        let nonce = key.cipher()?.seal_in_place_append_tag(Aad::from(name.as_str()), &mut sealed);
        let mut all = nonce.map_err(|_| KeyringError::NoRandom)?.as_ref().to_vec();
        all.append(&mut sealed);
        Ok(AtRest { key: key.id.clone(), sealed: all })
    }

    /// # Errors
    /// Its key is not known here, or it was changed.
    pub fn decrypt(&self, name: &SecretName, at_rest: &AtRest) -> Result<Vec<u8>, KeyringError> {
        let Some(key) = self.keys.iter().find(|key| key.id == at_rest.key) else {
            let (name, key, path) = (name.clone(), at_rest.key.clone(), self.path.clone());
            return Err(KeyringError::UnknownKey { name, key, path });
        };
        let tampered = || KeyringError::Tampered { name: name.clone() };
        let (nonce, sealed) = at_rest.sealed.split_at_checked(NONCE_LEN).ok_or_else(tampered)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| tampered())?;
        let mut sealed = sealed.to_vec();
        let value = key.cipher()?.open_in_place(nonce, Aad::from(name.as_str()), &mut sealed);
        let length = value.map_err(|_| tampered())?.len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

impl Key {
    fn draw() -> Result<Self, KeyringError> {
        let (mut id, mut bytes) = ([0; 4], [0; KEY_BYTES]);
        let random = SystemRandom::new();
        random.fill(&mut id).and_then(|()| random.fill(&mut bytes)).map_err(|_| KeyringError::NoRandom)?;
        Ok(Self { id: format!("{:08x}", u32::from_be_bytes(id)), bytes })
    }

    fn parse(line: &str) -> Option<Self> {
        let (id, key) = line.split_once(' ')?;
        let bytes = STANDARD.decode(key.trim()).ok()?.try_into().ok()?;
        let is_id = id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit());
        is_id.then(|| Self { id: id.to_owned(), bytes })
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, KeyringError> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.bytes).map_err(|_| KeyringError::NoRandom)
    }
}

/// Which keys are in a file of them, without a look at what they are.
pub fn key_ids(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| Some(line.split_once(' ')?.0))
}

fn fault(path: &Path) -> impl FnOnce(std::io::Error) -> KeyringError {
    move |source| KeyringError::File { path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<Vec<Key>, KeyringError> {
    let text = fs::read_to_string(path).map_err(fault(path))?;
    let mode = fs::metadata(path).map_err(fault(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyringError::Readable { path: path.to_owned(), mode });
    }
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let key = Key::parse(line);
        keys.push(key.ok_or_else(|| KeyringError::Damaged { path: path.to_owned(), line: number + 1 })?);
    }
    if keys.is_empty() {
        return Err(KeyringError::Damaged { path: path.to_owned(), line: 1 });
    }
    Ok(keys)
}

/// Held by who changes the file: what another process changes meanwhile waits.
fn lock(path: &Path) -> Result<fs::File, KeyringError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let file = fs::File::options().create(true).truncate(false).write(true).open(&beside);
    file.and_then(|file| file.lock().map(|()| file)).map_err(fault(Path::new(&beside)))
}

/// Whole or not at all, and for nobody else to read from its first byte on.
fn write(path: &Path, keys: &[Key], replace: bool) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file =
        tempfile::Builder::new().prefix(".secrets-").permissions(fs::Permissions::from_mode(OWN)).tempfile_in(dir)?;
    file.write_all(HEAD.as_bytes())?;
    for key in keys {
        writeln!(file, "{} {}", key.id, STANDARD.encode(key.bytes))?;
    }
    file.as_file().sync_all()?;
    if replace {
        file.persist(path)?;
    } else if let Err(error) = file.persist_noclobber(path)
        && error.error.kind() != ErrorKind::AlreadyExists
    {
        return Err(error.error);
    }
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SecretName {
        SecretName::parse(text).expect("a name")
    }

    #[test]
    fn a_value_opens_with_its_key_under_its_name_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secrets.key");
        let ring = Keyring::open(&path).expect("made");
        let kept = ring.encrypt(&name("A"), b"hunter2").expect("encrypted");
        assert!(!kept.sealed.windows(7).any(|window| window == b"hunter2"));
        assert_ne!(ring.encrypt(&name("A"), b"hunter2").expect("encrypted"), kept, "no two are the same");
        let again = Keyring::open(&path).expect("read");
        assert_eq!(again.decrypt(&name("A"), &kept).expect("opened"), b"hunter2");
        assert!(
            matches!(again.decrypt(&name("B"), &kept), Err(KeyringError::Tampered { .. })),
            "moved to another name"
        );
        for at in 0..kept.sealed.len() {
            let mut changed = kept.clone();
            changed.sealed[at] ^= 1;
            assert!(matches!(again.decrypt(&name("A"), &changed), Err(KeyringError::Tampered { .. })), "byte {at}");
        }
        for length in [0, 5, 12, 27] {
            let cut = AtRest { sealed: kept.sealed[..length].to_vec(), ..kept.clone() };
            assert!(matches!(again.decrypt(&name("A"), &cut), Err(KeyringError::Tampered { .. })), "{length} bytes");
        }
        let other = Keyring::open(&dir.path().join("other")).expect("made");
        assert!(matches!(other.decrypt(&name("A"), &kept), Err(KeyringError::UnknownKey { .. })));
        assert_eq!(ring.encrypt(&name("E"), b"").and_then(|kept| ring.decrypt(&name("E"), &kept)).expect("empty"), b"");
    }

    #[test]
    fn a_rotation_opens_old_and_new_until_the_old_is_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secrets.key");
        let mut ring = Keyring::open(&path).expect("made");
        let old = ring.encrypt(&name("A"), b"one").expect("encrypted");
        let before = ring.add_key().expect("added");
        assert_eq!(before, std::slice::from_ref(&old.key));
        let new = ring.encrypt(&name("A"), b"two").expect("encrypted");
        assert_ne!(old.key, new.key);
        assert_eq!(ring.current(), new.key);
        let mut again = Keyring::open(&path).expect("read");
        assert_eq!(again.decrypt(&name("A"), &old).expect("opened"), b"one");
        assert_eq!(again.decrypt(&name("A"), &new).expect("opened"), b"two");
        again.forget_keys(&before).expect("forgotten");
        assert_eq!(again.decrypt(&name("A"), &old).expect("the one before is kept"), b"one");
        let before = again.add_key().expect("added");
        again.forget_keys(&before).expect("forgotten");
        let last = Keyring::open(&path).expect("read");
        assert!(matches!(last.decrypt(&name("A"), &old), Err(KeyringError::UnknownKey { .. })));
        assert_eq!(last.decrypt(&name("A"), &new).expect("opened"), b"two");
    }

    #[test]
    fn a_key_that_is_not_in_the_file_encrypts_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secrets.key");
        let (mut one, mut two) = (Keyring::open(&path).expect("made"), Keyring::open(&path).expect("read"));
        let first = one.current().to_owned();
        // Of two processes each knows the other's.
        let before_one = one.add_key().expect("added");
        let before_two = two.add_key().expect("added");
        assert_eq!(before_one, std::slice::from_ref(&first));
        assert_eq!(before_two, [one.current().to_owned(), first.clone()]);
        one.forget_keys(&before_one).expect("forgotten");
        assert!(one.has(two.current()) && one.has(&first));
        two.forget_keys(&before_two).expect("forgotten");
        one.read_again().expect("read");
        assert!(one.has(two.current()) && !one.has(&first));
        assert_eq!(one.current(), two.current());

        // What cannot be written down is not used.
        let current = one.current().to_owned();
        fs::remove_file(dir.path().join("secrets.key.lock")).expect("removed");
        fs::create_dir(dir.path().join("secrets.key.lock")).expect("in its place");
        assert!(matches!(one.add_key(), Err(KeyringError::File { .. })));
        assert_eq!(one.current(), current);
        // A file that is gone is not made anew, and what was read of it opens what there is.
        fs::remove_file(&path).expect("removed");
        assert!(matches!(one.read_again(), Err(KeyringError::File { .. })));
        assert_eq!(one.current(), current);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_damaged_is_an_error_and_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secrets.key");
        let mode = || fs::metadata(&path).expect("there").permissions().mode() & 0o777;
        Keyring::open(&path).expect("made");
        assert_eq!(mode(), 0o600);
        let good = fs::read_to_string(&path).expect("read");
        let cut = &good[..good.len() - 10];
        for damaged in ["", "#\n", "nonsense", "0123abcd AAAA", cut, &format!("{good}\n\n")] {
            fs::write(&path, damaged).expect("written");
            let error = Keyring::open(&path).expect_err(damaged);
            assert!(matches!(error, KeyringError::Damaged { .. }), "{damaged:?}: {error}");
            assert_eq!(fs::read_to_string(&path).expect("read"), damaged, "it is not replaced");
        }
        fs::write(&path, &good).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("its mode");
        assert!(matches!(Keyring::open(&path), Err(KeyringError::Readable { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        Keyring::open(&path).expect("read");
        assert!(matches!(Keyring::open(&dir.path().join("no/dir")), Err(KeyringError::File { .. })));
    }

    #[test]
    fn nothing_says_a_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("secrets.key");
        let ring = Keyring::open(&path).expect("made");
        let text = fs::read_to_string(&path).expect("read");
        let key = text.lines().last().and_then(|line| line.split_once(' ')).expect("a key").1;
        assert!(!format!("{ring:?}").contains(key));
    }
}
