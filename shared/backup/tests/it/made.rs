//! Backups that tests write.

use flux_backup::{BackupError, Counts, FORM, Header, KeyFile, Piece, Writer, read};
use flux_protocol::{Digest, FunctionName, FunctionVersion, Timestamp};
use flux_store::{Entry, FunctionHead, SharedKey};

pub(crate) fn header() -> Header {
    Header {
        flux_backup: FORM,
        made_at: Timestamp::from_millis(1_800_000_000_000),
        made_by: "0.1.0".to_owned(),
        engine: "sqlite".to_owned(),
    }
}

/// What may be in one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Content {
    pub(crate) rows: Vec<Entry>,
    pub(crate) archives: Vec<Vec<u8>>,
    pub(crate) keys: Vec<KeyFile>,
}

pub(crate) fn written(content: &Content) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), &header()).expect("begun");
    content.rows.iter().for_each(|row| writer.row(row).expect("a row"));
    content.archives.iter().for_each(|code| writer.archive(Digest::of(code), code).expect("an archive"));
    content.keys.iter().for_each(|key| writer.key(key).expect("a key"));
    writer.end(Vec::new()).expect("its end").1
}

pub(crate) fn read_back(bytes: &[u8]) -> Result<(Content, Counts), BackupError> {
    let (mut content, mut head) = (Content::default(), None);
    let (counts, missing) = read(bytes, |piece| {
        match piece {
            Piece::Header(found) => head = Some(found),
            Piece::Rows(packed) => content.rows.extend(Piece::rows(&packed)?),
            Piece::Archive(digest, code) => {
                assert_eq!(digest, Digest::of(&code));
                content.archives.push(code);
            }
            Piece::Key(file) => content.keys.push(file),
        }
        Ok(())
    })?;
    assert!(missing.is_empty());
    assert_eq!(head, Some(header()));
    Ok((content, counts))
}

pub(crate) fn name(text: &str) -> FunctionName {
    FunctionName::parse(text).expect("a name")
}

pub(crate) fn version(function: &str, version: u32, code: &[u8]) -> Entry {
    let spec = flux_protocol::function::parse_yaml(&format!("name: {function}\nhandler: run\n")).expect("YAML");
    let created_at = Timestamp::from_millis(1);
    Entry::Version(Box::new(FunctionVersion { version, digest: Some(Digest::of(code)), spec, created_at }))
}

pub(crate) fn head(function: &str, current: Option<u32>) -> Entry {
    Entry::Function(FunctionHead { name: name(function), current, last: 7 })
}

pub(crate) fn shared(value: Vec<u8>) -> Entry {
    Entry::SharedKey(SharedKey { name: "k".to_owned(), value })
}

/// One with something of each kind.
pub(crate) fn small() -> Content {
    Content {
        rows: vec![head("f", Some(2)), version("f", 2, b"code"), shared(vec![0, 255])],
        archives: vec![b"code".to_vec()],
        keys: vec![KeyFile { path: "certs/ca/ca.pem".to_owned(), content: b"pem".to_vec() }],
    }
}
