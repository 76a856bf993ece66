//! `flux version`.

use serde_json::json;

use crate::output::Output;

pub(crate) fn run(out: Output) {
    let version = env!("CARGO_PKG_VERSION");
    if out.json {
        out.json(&json!({ "version": version }));
    } else {
        out.line(format!("flux {version}"));
    }
}
