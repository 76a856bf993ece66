use std::{collections::BTreeSet, path::Path};

use flux_protocol::ErrorCode;

#[test]
fn each_code_has_its_page_and_each_page_its_code() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
    let index = std::fs::read_to_string(dir.join("README.md")).expect("docs/errors/README.md");
    for code in ErrorCode::ALL {
        let path = dir.join(format!("{code}.md"));
        let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("docs/errors/{code}.md: {error}"));
        assert!(page.starts_with(&format!("# `{code}` ({})\n", code.http_status())), "{code}: its title");
        assert!(page.contains(&format!("\"code\": \"{code}\"")), "{code}: its example");
        for part in ["## Why", "## What to do"] {
            assert!(page.contains(part), "{code}: {part}");
        }
        assert!(index.contains(&format!("[`{code}`]({code}.md) | {} |", code.http_status())), "{code}: the index");
    }
    let known: BTreeSet<String> =
        ErrorCode::ALL.iter().map(|code| format!("{code}.md")).chain(["README.md".to_owned()]).collect();
    let there = std::fs::read_dir(&dir).expect("docs/errors").map(|entry| entry.expect("an entry").file_name());
    let there: BTreeSet<String> = there.map(|name| name.to_string_lossy().into_owned()).collect();
    assert_eq!(there, known);
}
