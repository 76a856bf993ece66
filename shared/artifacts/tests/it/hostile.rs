//! Archives that are not taken. Each refusal names the entry, says what to do, and leaves nothing behind.

use std::{fs, path::Path};

use flux_artifacts::{ArchiveError, archive};
use flux_protocol::{Digest, limits};

use crate::zips::{DIRECTORY, Entry, FILE, LINK, PROGRAM, deflated, entry, zip};

/// Unpacks nowhere but below `outside`, of which it leaves nothing; says what [`archive::inspect`] says.
fn refusal(bytes: &[u8]) -> ArchiveError {
    let error = archive::inspect(bytes).expect_err("it must not be taken");
    let place = tempfile::tempdir().expect("a directory");
    let unpacked = archive::unpack(bytes, Digest::of(bytes), &place.path().join("inside/code"));
    assert!(unpacked.is_err(), "unpacking judges for itself");
    fs::create_dir(place.path().join("inside")).expect("make");
    let unpacked = archive::unpack(bytes, Digest::of(bytes), &place.path().join("inside/code"));
    assert_eq!(unpacked.expect_err("refused").to_string(), error.to_string());
    assert_eq!(names(&place.path().join("inside")), [""; 0], "nothing is left");
    assert_eq!(names(place.path()), ["inside"], "nothing is outside");
    error
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("list");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn entries() {
    let good = || entry("good", PROGRAM, "#!/bin/sh\n");
    let table: Vec<(&str, Vec<Entry>, &str, &str)> = vec![
        ("zip slip", vec![entry("../evil", FILE, "x")], "../evil", "`..`"),
        ("zip slip in the middle", vec![entry("a/../../evil", FILE, "x")], "a/../../evil", "`..`"),
        ("`..` that stays inside", vec![entry("a/../b", FILE, "x")], "a/../b", "`..`"),
        ("absolute", vec![entry("/etc/passwd", FILE, "x")], "/etc/passwd", "absolute"),
        ("absolute directory", vec![entry("/etc/", DIRECTORY, "")], "/etc/", "absolute"),
        ("backslashes", vec![entry("..\\evil", FILE, "x")], "..\\evil", "backslash"),
        ("nul", vec![entry(b"a\0b", FILE, "x")], "a\u{fffd}b", "NUL"),
        ("a line's end", vec![entry("a\nb", FILE, "x")], "a\u{fffd}b", "control character"),
        ("an escape", vec![entry("a\u{1b}[2Jb", FILE, "x")], "a\u{fffd}[2Jb", "control character"),
        ("empty component", vec![entry("a//b", FILE, "x")], "a//b", "empty component"),
        ("no name", vec![entry("", FILE, "x")], "", "empty component"),
        ("only dots", vec![entry("././", DIRECTORY, "")], "././", "no name"),
        ("not UTF-8", vec![entry(b"caf\xe9", FILE, "x")], "caf\u{fffd}", "UTF-8"),
        ("long name", vec![entry("a/".repeat(600) + "b", FILE, "x")], "", "1024"),
        ("long component", vec![entry("a".repeat(256), FILE, "x")], "", "255"),
        ("setuid", vec![entry("su", 0o104_755, "x")], "su", "setuid"),
        ("setgid", vec![entry("su", 0o102_755, "x")], "su", "setuid or setgid"),
        ("setuid and executable", vec![entry("su", 0o106_777, "x")], "su", "setuid"),
        ("device", vec![entry("null", 0o020_666, "")], "null", "device"),
        ("block device", vec![entry("sda", 0o060_666, "")], "sda", "device"),
        ("fifo", vec![entry("pipe", 0o010_666, "")], "pipe", "FIFO"),
        ("socket", vec![entry("sock", 0o140_666, "")], "sock", "socket"),
        ("a directory that is a link", vec![entry("d/", LINK, "/etc")], "d", "neither"),
        ("a directory with content", vec![entry("d/", DIRECTORY, "x")], "d", "directory with content"),
        ("absolute link", vec![entry("l", LINK, "/etc/passwd")], "l", "outside"),
        ("link out", vec![entry("l", LINK, "../x")], "l", "outside"),
        ("link out from below", vec![entry("a/b/l", LINK, "../../../x")], "a/b/l", "outside"),
        (
            // Each looks as if it stayed inside; together they do not.
            "link out through a link",
            vec![entry("d/up", LINK, ".."), entry("l", LINK, "d/up/../x")],
            "l",
            "outside",
        ),
        ("link to itself", vec![entry("l", LINK, "l")], "l", "back to itself"),
        ("links in a circle", vec![entry("a", LINK, "b"), entry("b", LINK, "./a")], "a", "back to itself"),
        ("empty link", vec![entry("l", LINK, "")], "l", "not a path"),
        ("link to nul", vec![entry("l", LINK, b"a\0b")], "l", "not a path"),
        ("long link", vec![entry("l", LINK, "a".repeat(2000))], "l", "longer"),
        ("a file through a link", vec![entry("l", LINK, "."), entry("l/x", FILE, "x")], "l/x", "`l`, which is a link"),
        ("the other way round", vec![entry("l/x", FILE, "x"), entry("l", LINK, ".")], "l/x", "`l`, which is a link"),
        ("a file below a file", vec![entry("f", FILE, "x"), entry("f/x", FILE, "x")], "f/x", "`f`, which is a file"),
        ("twice", vec![entry("f", FILE, "x"), entry("f", FILE, "y")], "f", "twice"),
        ("twice, written differently", vec![entry("f", FILE, "x"), entry("./f", FILE, "y")], "f", "twice"),
        ("file and directory", vec![entry("f", FILE, "x"), entry("f/", DIRECTORY, "")], "f", "twice"),
        ("encrypted", vec![Entry { flags: 1, ..entry("f", FILE, "0123456789abc") }], "f", "encrypted"),
        ("another compression", vec![Entry { method: 12, ..entry("f", FILE, "x") }], "f", "deflate"),
        ("says less than it has", vec![Entry { size: Some(1), ..entry("f", FILE, "xxxx") }], "f", "zip the files anew"),
        ("says more than it has", vec![Entry { size: Some(9), ..entry("f", FILE, "xxxx") }], "f", "zip the files anew"),
        ("wrong checksum", vec![Entry { checksum: Some(7), ..entry("f", FILE, "x") }], "f", "cannot be read"),
        (
            "bad deflate",
            vec![Entry { method: 8, size: Some(90), ..entry("f", FILE, [0xff; 30]) }],
            "f",
            "cannot be read",
        ),
    ];
    for (what, mut entries, named, said) in table {
        entries.push(good());
        let error = refusal(&zip(&entries));
        let text = error.to_string();
        assert!(text.contains(said), "{what}: {text}");
        let at = error.entry().unwrap_or_else(|| panic!("{what} names no entry: {text}"));
        assert!(named.is_empty() || at == named, "{what}: {at}");
        assert!(!text.chars().any(char::is_control), "{what}: {text:?}");
    }
}

#[test]
fn archives_as_a_whole() {
    let good = zip(&[entry("f", FILE, "content"), entry("g", FILE, "more")]);
    assert!(archive::inspect(&good).is_ok());
    let overlapping = zip(&[
        entry("f", FILE, "content"),
        Entry { name: b"g".to_vec(), shares: Some(0), ..entry("g", FILE, "content") },
    ]);
    for (what, bytes, said) in [
        ("empty", Vec::new(), "does not begin like one"),
        ("text", b"#!/bin/sh\necho hello\n".to_vec(), "does not begin like one"),
        ("gzip", [&[0x1f, 0x8b][..], &[0; 60]].concat(), "does not begin like one"),
        ("no files", zip(&[entry("d/", DIRECTORY, "")]), "no files"),
        ("no entries", zip(&[]), "no files"),
        ("prefix", [b"PK##", &good[..]].concat(), "prefix"),
        ("suffix", [&good[..], b"more"].concat(), "something follows"),
        ("overlapping", overlapping, "overlap"),
    ] {
        let text = refusal(&bytes).to_string();
        assert!(text.contains(said), "{what}: {text}");
    }
    // The number of entries, said and real.
    let end = good.len() - 22;
    for count in [1_u8, 3] {
        let mut bytes = good.clone();
        bytes[end + 8] = count;
        bytes[end + 10] = count;
        let text = refusal(&bytes).to_string();
        assert!(text.contains("zip the files anew"), "{count}: {text}");
    }
}

#[test]
fn cut_off_anywhere() {
    let good = zip(&[entry("f", PROGRAM, "content"), entry("d/g", FILE, "more"), entry("l", LINK, "f")]);
    for length in 0..good.len() {
        assert!(archive::inspect(&good[..length]).is_err(), "cut to {length}");
    }
}

#[test]
fn flipped_anywhere() {
    // Some flips do not matter (times); none may panic, and what is taken must unpack.
    let good = zip(&[entry("f", PROGRAM, "content"), entry("d/g", FILE, "more"), entry("l", LINK, "f")]);
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            if archive::inspect(&bytes).is_ok() {
                let place = tempfile::tempdir().expect("a directory");
                let unpacked = archive::unpack(&bytes, Digest::of(&bytes), &place.path().join("code"));
                assert!(unpacked.is_ok(), "byte {at} bit {bit}: {unpacked:?}");
            }
        }
    }
}

#[test]
fn bombs() {
    let zeros = vec![0; 40 * limits::MIB];
    let error = refusal(&deflated(&[("small", b"x"), ("zeros", &zeros)]));
    assert!(matches!(&error, ArchiveError::Bomb { entry } if entry == "zeros"), "{error}");
    // Each by itself is below what is looked at.
    let many: Vec<String> = (0..40).map(|n| format!("zeros-{n}")).collect();
    let files: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &zeros[..limits::MIB])).collect();
    let error = refusal(&deflated(&files));
    assert!(matches!(&error, ArchiveError::Bomb { .. }), "{error}");
    // A megabyte of zeros is no bomb.
    assert!(archive::inspect(&deflated(&[("zeros", &zeros[..limits::MIB])])).is_ok());
}

#[test]
fn a_bomb_that_lies_about_its_size() {
    let zeros = vec![0; 40 * limits::MIB];
    let mut bytes = deflated(&[("zeros", &zeros)]);
    let said = u32::try_from(zeros.len()).expect("small").to_le_bytes();
    let small = 5_u32.to_le_bytes();
    let places: Vec<usize> = (0..bytes.len() - 4).filter(|at| bytes[*at..*at + 4] == said).collect();
    assert!(places.len() >= 2, "in the local header and in the directory");
    for at in places {
        bytes[at..at + 4].copy_from_slice(&small);
    }
    let error = refusal(&bytes);
    assert_eq!(error.entry(), Some("zeros"));
}

#[test]
fn declared_sizes_count_before_anything_is_read() {
    let huge = Entry { size: Some(u32::MAX - 1), method: 8, ..entry("huge", FILE, "x") };
    let error = refusal(&zip(&[huge]));
    assert!(matches!(&error, ArchiveError::TooMuch { entry, .. } if entry == "huge"), "{error}");
}

#[test]
fn too_many_entries() {
    let entries: Vec<Entry> = (0..=limits::ARCHIVE_ENTRIES).map(|n| entry(n.to_string(), FILE, "")).collect();
    let error = refusal(&zip(&entries));
    assert!(matches!(error, ArchiveError::TooManyEntries { .. }), "{error}");
    assert!(archive::inspect(&zip(&entries[1..])).is_ok());
}

#[test]
fn another_digest() {
    let bytes = zip(&[entry("f", FILE, "x")]);
    let place = tempfile::tempdir().expect("a directory");
    let refused = archive::unpack(&bytes, Digest::of(b"other"), &place.path().join("code"));
    assert!(matches!(refused, Err(ArchiveError::OtherDigest { .. })), "{refused:?}");
    assert_eq!(names(place.path()), [""; 0]);
}
