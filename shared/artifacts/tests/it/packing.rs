//! From a directory to an archive and back.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use flux_artifacts::{ArchiveError, archive, pack_dir};
use flux_protocol::{Digest, limits};
use proptest::prelude::*;

use crate::archives::tree;

fn write(root: &Path, name: &str, mode: u32, content: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a parent")).expect("make");
    fs::write(&path, content).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set the mode");
}

fn example(root: &Path, order: &[&str]) {
    for name in order {
        match *name {
            "run" => write(root, "run", 0o750, "#!/bin/sh\n"),
            "link" => symlink("lib/code.py", root.join("link")).expect("a link"),
            "empty" => fs::create_dir(root.join("empty")).expect("make"),
            name => write(root, name, 0o600, name),
        }
    }
}

#[test]
fn the_same_tree_is_the_same_archive() {
    let (a, b) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    example(a.path(), &["run", "lib/code.py", "empty", "link", "z", "node_modules/m/index.js"]);
    example(b.path(), &["node_modules/m/index.js", "z", "lib/code.py", "link", "empty", "run"]);
    // Other bits, other times.
    fs::set_permissions(b.path().join("z"), fs::Permissions::from_mode(0o444)).expect("set the mode");
    let packed = pack_dir(a.path()).expect("pack");
    assert_eq!(packed, pack_dir(b.path()).expect("pack"));

    let summary = archive::inspect(&packed).expect("it is good");
    assert!(summary.is_executable("run") && summary.has_file("link"));
    let place = tempfile::tempdir().expect("a directory");
    archive::unpack(&packed, Digest::of(&packed), &place.path().join("code")).expect("unpack");
    let tree = tree(&place.path().join("code"));
    let names: Vec<&str> = tree.keys().map(String::as_str).collect();
    let wanted = [
        "empty",
        "lib",
        "lib/code.py",
        "link",
        "node_modules",
        "node_modules/m",
        "node_modules/m/index.js",
        "run",
        "z",
    ];
    assert_eq!(names, wanted);
    assert_eq!((tree["run"].0 & 0o777, tree["z"].0 & 0o777, &tree["link"].1[..]), (0o755, 0o644, &b"lib/code.py"[..]));
}

#[test]
fn what_is_ignored_is_left_out() {
    let root = tempfile::tempdir().expect("a directory");
    for name in [
        "run",
        ".git/config",
        "sub/.git",
        "__pycache__/x.pyc",
        "notes.txt",
        "keep.txt",
        "target/big",
        "src/target",
        "node_modules/m.js",
        ".env",
    ] {
        write(root.path(), name, 0o644, "x");
    }
    write(root.path(), ".fluxignore", 0o644, "# not deployed\n*.txt\n!keep.txt\ntarget/\n");
    let packed = pack_dir(root.path()).expect("pack");
    let summary = archive::inspect(&packed).expect("it is good");
    let files: Vec<&str> = summary.files().collect();
    assert_eq!(files, [".env", "keep.txt", "node_modules/m.js", "run", "src/target"]);
}

#[test]
fn refusals_name_the_file() {
    let root = tempfile::tempdir().expect("a directory");
    let refused = |what: &str, said: &str| {
        let error = pack_dir(root.path()).expect_err(what);
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let text = format!("{error}: {source}");
        assert!(text.contains(what) && text.contains(said), "{what}: {text}");
        error
    };
    refused(&root.path().display().to_string(), "no files");
    write(root.path(), "f", 0o644, "x");

    symlink("/etc/passwd", root.path().join("absolute")).expect("a link");
    assert_eq!(refused("absolute", "outside").entry(), Some("absolute"));
    fs::remove_file(root.path().join("absolute")).expect("remove");
    symlink("../x", root.path().join("out")).expect("a link");
    refused("out", "outside");
    fs::remove_file(root.path().join("out")).expect("remove");

    let socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).expect("a socket");
    refused("socket", ".fluxignore");
    drop(socket);
    fs::remove_file(root.path().join("socket")).expect("remove");

    write(root.path(), "back\\slash", 0o644, "x");
    refused("back\\slash", "rename");
    fs::remove_file(root.path().join("back\\slash")).expect("remove");
    assert!(pack_dir(root.path()).is_ok());
    let missing = pack_dir(&root.path().join("missing")).expect_err("it is not there");
    assert!(matches!(missing, ArchiveError::Disk { .. }), "{missing:?}");
}

#[test]
fn what_is_packed_is_taken() {
    // So regular that it would be taken for a bomb.
    let root = tempfile::tempdir().expect("a directory");
    fs::write(root.path().join("zeros"), vec![0; 20 * limits::MIB]).expect("write");
    let packed = pack_dir(root.path()).expect("pack");
    assert!(archive::inspect(&packed).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packing_and_unpacking_gives_the_tree_back(
        files in prop::collection::btree_map("[a-d]{1,2}(/[a-d]{1,2}){0,2}", (any::<bool>(), prop::collection::vec(any::<u8>(), 0..500)), 1..8)
    ) {
        let root = tempfile::tempdir().expect("a directory");
        let mut written = 0;
        for (name, (executable, content)) in &files {
            let path = root.path().join(name);
            // A name may be below another, which is a file then.
            if fs::create_dir_all(path.parent().expect("a parent")).is_ok() && fs::write(&path, content).is_ok() {
                let mode = if *executable { 0o755 } else { 0o644 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set the mode");
                written += usize::from(*executable);
            }
        }
        // Without any executable file the content decides, which is another test's matter.
        prop_assume!(written > 0);
        let packed = pack_dir(root.path()).expect("pack");
        let place = tempfile::tempdir().expect("a directory");
        archive::unpack(&packed, Digest::of(&packed), &place.path().join("code")).expect("unpack");
        prop_assert_eq!(tree(&place.path().join("code")), tree(root.path()));
        prop_assert_eq!(pack_dir(&place.path().join("code")).expect("pack"), packed);
    }
}
