//! Archives that are taken: what is said of them, and what they are when unpacked.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use flux_artifacts::archive;
use flux_protocol::Digest;
use proptest::prelude::*;

use crate::zips::{DIRECTORY, Entry, FILE, LINK, PROGRAM, entry, zip};

/// Everything below a directory: mode and content, or where a link points.
pub(crate) fn tree(root: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    fn walk(root: &Path, at: &Path, into: &mut BTreeMap<String, (u32, Vec<u8>)>) {
        for entry in fs::read_dir(at).expect("list") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("metadata");
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            let content = if metadata.is_symlink() {
                fs::read_link(&path).expect("a link").to_string_lossy().into_owned().into_bytes()
            } else if metadata.is_dir() {
                walk(root, &path, into);
                Vec::new()
            } else {
                fs::read(&path).expect("read")
            };
            into.insert(name, (metadata.permissions().mode(), content));
        }
    }
    let mut into = BTreeMap::new();
    walk(root, root, &mut into);
    into
}

fn unpacked(bytes: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
    let place = tempfile::tempdir().expect("a directory");
    let code = place.path().join("code");
    let total = archive::unpack(bytes, Digest::of(bytes), &code).expect("unpack");
    let tree = tree(&code);
    let files: usize = tree.values().filter(|(mode, _)| mode & 0o170_000 == 0o100_000).map(|(_, c)| c.len()).sum();
    assert_eq!(total, files as u64);
    assert_eq!(fs::read_dir(place.path()).expect("list").count(), 1, "no temporary is left");
    assert_eq!(fs::metadata(&code).expect("metadata").permissions().mode() & 0o7777, 0o755);
    tree
}

#[test]
fn modes_are_reduced_to_the_executable_bit() {
    let bytes = zip(&[
        entry("run", 0o100_700, "#!/bin/sh\n"),
        entry("data", 0o100_600, "#!/bin/sh\n"),
        entry("world", 0o100_666, "x"),
        entry("sub/deep/one", 0o100_001, "x"),
        entry("empty/", 0o042_700, ""),
        entry("link", LINK, "sub/deep/../deep/one"),
    ]);
    let tree = unpacked(&bytes);
    let mode = |name: &str| tree[name].0;
    assert_eq!((mode("run"), mode("data"), mode("world")), (PROGRAM, FILE, FILE));
    assert_eq!((mode("sub/deep/one"), mode("sub"), mode("empty")), (PROGRAM, DIRECTORY, DIRECTORY));
    assert_eq!(tree["link"].1, b"sub/deep/../deep/one");

    let summary = archive::inspect(&bytes).expect("it is good");
    assert_eq!((summary.entries, summary.unpacked_bytes), (6, 22));
    assert!(summary.is_executable("run") && !summary.is_executable("data") && summary.has_file("data"));
    assert!(summary.is_executable("link"), "what it points to");
    assert!(summary.is_executable("./sub/deep/one"));
    for missing in ["", "sub", "nothing", "../run", "/run", "run/x"] {
        assert_eq!(summary.file(missing).is_some(), missing == "/run", "{missing}");
    }
    assert_eq!(summary.files().collect::<Vec<_>>(), ["data", "run", "sub/deep/one", "world"]);
}

#[test]
fn where_nothing_is_executable_the_content_tells() {
    let script = ("script", "#!/usr/bin/env python3\n");
    let elf = ("program", "\x7fELF and so on");
    let data = ("data", "#x");
    // MS-DOS archives have no modes; Python's `writestr` gives 0600 to everything.
    for mode in [None, Some(0o100_600), Some(0), Some(0o600)] {
        let entries: Vec<Entry> =
            [script, elf, data].iter().map(|(name, content)| Entry { mode, ..entry(name, FILE, content) }).collect();
        let tree = unpacked(&zip(&entries));
        assert_eq!((tree["script"].0, tree["program"].0, tree["data"].0), (PROGRAM, PROGRAM, FILE), "{mode:?}");
        let summary = archive::inspect(&zip(&entries)).expect("it is good");
        assert!(summary.is_executable("script") && summary.is_executable("program") && !summary.is_executable("data"));
    }
}

#[test]
fn one_entry_is_read_alone() {
    let bytes = zip(&[
        entry("./flux.yaml", FILE, "name: f\n"),
        entry("d/", DIRECTORY, ""),
        Entry { checksum: Some(1), ..entry("broken", FILE, "x") },
    ]);
    assert_eq!(archive::read_entry(&bytes, "flux.yaml", 8).expect("read").as_deref(), Some(&b"name: f\n"[..]));
    assert!(archive::read_entry(&bytes, "flux.yaml", 7).expect_err("too long").to_string().contains("at most 7"));
    assert_eq!(archive::read_entry(&bytes, "d", 8).expect("read"), None);
    assert_eq!(archive::read_entry(&bytes, "missing", 8).expect("read"), None);
    assert!(archive::read_entry(&bytes, "broken", 8).is_err());
}

#[test]
fn a_destination_that_is_there_stays() {
    let place = tempfile::tempdir().expect("a directory");
    let code = place.path().join("code");
    let (one, two) = (zip(&[entry("f", FILE, "1")]), zip(&[entry("f", FILE, "2")]));
    archive::unpack(&one, Digest::of(&one), &code).expect("unpack");
    archive::unpack(&two, Digest::of(&two), &code).expect("another was first");
    assert_eq!(fs::read(code.join("f")).expect("read"), b"1");
    assert_eq!(fs::read_dir(place.path()).expect("list").count(), 1);
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let name = prop_oneof![
        4 => prop::collection::vec("[a-c]{1,2}", 1..4).prop_map(|parts| parts.join("/").into_bytes()),
        1 => "[a-c./\\\\]{0,8}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..6),
    ];
    let mode = prop_oneof![
        4 => Just(Some(FILE)), 1 => Just(Some(PROGRAM)), 1 => Just(Some(DIRECTORY)), 2 => Just(Some(LINK)),
        1 => Just(None), 1 => any::<u32>().prop_map(|mode| Some(mode & 0xffff)),
    ];
    let content = prop_oneof![
        2 => prop::collection::vec("[a-c]{1,2}|\\.\\.|\\.", 1..4).prop_map(|parts| parts.join("/").into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    (name, mode, content).prop_map(|(name, mode, content)| Entry { mode, ..entry(name, FILE, content) })
}

/// Whether a path stays below `root` when the file system follows its links.
fn stays_inside(root: &Path, path: &Path) -> bool {
    match fs::canonicalize(path) {
        Ok(real) => real.starts_with(fs::canonicalize(root).expect("the root")),
        Err(_) => true, // it leads nowhere
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the entries: nothing is made outside, nothing leads outside, and the two judgements agree.
    #[test]
    fn unpacking_stays_inside(entries in prop::collection::vec(any_entry(), 0..8)) {
        let bytes = zip(&entries);
        let place = tempfile::tempdir().expect("a directory");
        let inside = place.path().join("a/b/c");
        fs::create_dir_all(&inside).expect("make");
        let code = inside.join("code");
        let unpacked = archive::unpack(&bytes, Digest::of(&bytes), &code);
        let inspected = archive::inspect(&bytes);
        prop_assert!(inspected.is_err() || unpacked.is_ok(), "{:?}", unpacked);
        let outside: Vec<String> = tree(place.path()).into_keys().filter(|path| !path.starts_with("a/b/c/code")).collect();
        prop_assert_eq!(outside, ["a", "a/b", "a/b/c"]);
        if unpacked.is_ok() {
            for (name, (mode, _)) in tree(&code) {
                prop_assert!(stays_inside(&code, &code.join(&name)), "{}", name);
                let bits = mode & 0o7777;
                prop_assert!(mode & 0o170_000 == 0o120_000 || bits == 0o755 || bits == 0o644, "{} {:o}", name, mode);
            }
        }
    }

    #[test]
    fn anything_at_all_is_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [b"PK\x03\x04", &bytes[..]].concat();
        prop_assert!(archive::inspect(&bytes).is_err());
    }
}
