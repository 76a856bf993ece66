//! The functions that come with Flux are ones that Flux takes.

use std::{os::unix::fs::PermissionsExt, path::Path};

use flux_protocol::function::{Runtime, parse_yaml};

#[test]
fn every_example_parses_and_has_its_handler() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the checkout");
    let mut seen = 0;
    for folder in ["examples", "loadtest/functions"] {
        for entry in root.join(folder).read_dir().expect("a folder of functions") {
            let dir = entry.expect("an entry").path();
            let file = dir.join("flux.yaml");
            let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let spec = parse_yaml(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            assert_eq!(spec.name.to_string(), dir.file_name().expect("a name").to_string_lossy());
            let entry = spec.entry();
            let found = entry.files.iter().map(|file| dir.join(file)).find(|file| file.exists());
            let handler = found.unwrap_or_else(|| dir.join(&spec.handler));
            if !spec.command.is_empty() {
                seen += 1;
                continue;
            }
            // The benchmark's handler is compiled from the source beside it.
            if !handler.with_extension("c").exists() {
                let mode =
                    handler.metadata().unwrap_or_else(|e| panic!("{}: {e}", handler.display())).permissions().mode();
                let is_run = spec.runtime == Runtime::Native;
                assert!(!is_run || mode & 0o111 != 0, "{} cannot be run", handler.display());
            }
            seen += 1;
        }
    }
    assert!(seen >= 4, "found only {seen} functions");
}
