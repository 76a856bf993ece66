//! The admin key: given, or made once and kept in the data directory.

use std::{fs::File, io::Read as _};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::data_dir::DataDir;
use crate::{error::CliError, keys};

const RANDOM_BYTES: usize = 24;

pub(super) struct Key {
    pub(super) text: String,
    /// Made here, and so not known to the user.
    pub(super) made: bool,
}

pub(super) fn resolve(given: Option<String>, data: &DataDir) -> Result<Key, CliError> {
    if let Some(text) = given.filter(|key| !key.trim().is_empty()) {
        return Ok(Key { text, made: false });
    }
    let path = data.key_file();
    let cannot = |source| CliError::local(format!("the API key {} cannot be kept", path.display()), source);
    let kept = data.read(&path).map_err(cannot)?;
    if let Some(text) = kept.as_deref().map(str::trim).filter(|text| !text.is_empty()) {
        return Ok(Key { text: text.to_owned(), made: true });
    }
    let mut random = [0; RANDOM_BYTES];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).map_err(cannot)?;
    let text = format!("flux_{}", URL_SAFE_NO_PAD.encode(random));
    keys::write_secret(&path, &text).map_err(cannot)?;
    Ok(Key { text, made: true })
}

/// Lets the user's own `flux` commands find the key of this address. One that was given is only corrected where an
/// older one is remembered. Returns what to say where there is no place for it: Flux runs without.
pub(super) fn remember(key: &Key, authority: &str) -> Option<String> {
    let known = keys::read(authority);
    if known.as_deref() == Some(&key.text) || (known.is_none() && !key.made) {
        return None;
    }
    let error = keys::write(authority, &key.text).err()?;
    let place = keys::path(authority).map(|path| path.display().to_string()).unwrap_or_default();
    Some(format!(
        "the API key cannot be written to {place} ({error}): give `flux` commands --key, or set XDG_CONFIG_HOME"
    ))
}
