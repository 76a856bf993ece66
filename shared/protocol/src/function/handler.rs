//! What a handler's name means in each runtime: which files it may be, and which function of them.

use super::{FunctionSpec, Runtime};

/// Where a function begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Paths inside the archive; the first that is there is it.
    pub files: Vec<String>,
    /// The function in it. `None`: the file itself is run, or (Node) its default export.
    pub function: Option<String>,
}

/// The function of a Python file that is named alone.
const PYTHON_FUNCTION: &str = "handler";
/// What a Lambda package executes, whatever its handler.
pub(super) const BOOTSTRAP: &str = "bootstrap";
const NODE_SUFFIXES: [&str; 3] = [".js", ".mjs", ".cjs"];

impl FunctionSpec {
    /// What `handler` names. The parser has checked it, so that there is one.
    pub fn entry(&self) -> Entry {
        entry(self.runtime, &self.handler)
            .unwrap_or_else(|_| Entry { files: vec![self.handler.clone()], function: None })
    }
}

/// What `handler` names, or what is wrong with it.
pub(super) fn entry(runtime: Runtime, handler: &str) -> Result<Entry, &'static str> {
    let handler = handler.trim_start_matches("./");
    match runtime {
        Runtime::Native | Runtime::Bash => Ok(Entry { files: vec![handler.to_owned()], function: None }),
        Runtime::Lambda => Ok(Entry { files: vec![BOOTSTRAP.to_owned()], function: None }),
        Runtime::Python => python(handler),
        Runtime::Node => node(handler),
    }
}

/// `main.handler`, `pkg/mod.handler`, `pkg.mod.handler`, or `main.py`, whose function is `handler`.
fn python(handler: &str) -> Result<Entry, &'static str> {
    let wrong = "must be `file.function` (such as `main.handler` for `def handler` in main.py), or a .py file";
    if let Some(stem) = handler.strip_suffix(".py") {
        let good = !stem.is_empty() && !stem.ends_with('/');
        let entry = || Entry { files: vec![handler.to_owned()], function: Some(PYTHON_FUNCTION.to_owned()) };
        return good.then(entry).ok_or(wrong);
    }
    let (module, function) = handler.rsplit_once('.').ok_or(wrong)?;
    let (directory, name) = module.rsplit_once('/').map_or(("", module), |(directory, name)| (directory, name));
    if !is_identifier(function) || name.is_empty() || name.split('.').any(str::is_empty) {
        return Err(wrong);
    }
    let name = name.replace('.', "/");
    let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
    Ok(Entry { files: vec![format!("{path}.py"), format!("{path}/__init__.py")], function: Some(function.to_owned()) })
}

/// `main.handler`, `lib/main.handler`, or a .js, .mjs or .cjs file, whose default export (or `handler`) it is.
fn node(handler: &str) -> Result<Entry, &'static str> {
    let wrong = "must be a .js, .mjs or .cjs file (its default export is run), or `file.function` (such as `main.handler` for \
                 `exports.handler` in main.js)";
    let name = handler.rsplit('/').next().unwrap_or_default();
    if NODE_SUFFIXES.iter().any(|suffix| name.len() > suffix.len() && name.ends_with(suffix)) {
        return Ok(Entry { files: vec![handler.to_owned()], function: None });
    }
    let (file, function) = handler.rsplit_once('.').ok_or(wrong)?;
    if !is_identifier(function) || file.is_empty() || file.ends_with('/') {
        return Err(wrong);
    }
    Ok(Entry {
        files: NODE_SUFFIXES.iter().map(|suffix| format!("{file}{suffix}")).collect(),
        function: Some(function.to_owned()),
    })
}

/// Of both languages, ASCII alone.
fn is_identifier(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b'$');
    first && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_a_file_and_a_function() {
        let table: [(Runtime, &str, &[&str], Option<&str>); 11] = [
            (Runtime::Native, "./bin/run", &["bin/run"], None),
            (Runtime::Bash, "run.sh", &["run.sh"], None),
            (Runtime::Lambda, "main.handler", &["bootstrap"], None),
            (Runtime::Python, "main.handler", &["main.py", "main/__init__.py"], Some("handler")),
            (Runtime::Python, "pkg/mod.run", &["pkg/mod.py", "pkg/mod/__init__.py"], Some("run")),
            (Runtime::Python, "pkg.mod.run", &["pkg/mod.py", "pkg/mod/__init__.py"], Some("run")),
            (Runtime::Python, "./main.py", &["main.py"], Some("handler")),
            (Runtime::Node, "main.handler", &["main.js", "main.mjs", "main.cjs"], Some("handler")),
            (Runtime::Node, "lib/a.b.run", &["lib/a.b.js", "lib/a.b.mjs", "lib/a.b.cjs"], Some("run")),
            (Runtime::Node, "main.js", &["main.js"], None),
            (Runtime::Node, "lib/main.mjs", &["lib/main.mjs"], None),
        ];
        for (runtime, handler, files, function) in table {
            let entry = entry(runtime, handler).unwrap_or_else(|problem| panic!("{handler}: {problem}"));
            assert_eq!(
                (entry.files, entry.function.as_deref()),
                (files.iter().map(ToString::to_string).collect(), function)
            );
        }
        for wrong in ["main", ".handler", "main.", "main.a-b", "pkg/.run", "a..run", ".py", "main.1"] {
            assert!(entry(Runtime::Python, wrong).is_err(), "{wrong}");
        }
        for wrong in ["main", ".handler", "main.", "main.a-b", ".js", "lib/.js"] {
            assert!(entry(Runtime::Node, wrong).is_err(), "{wrong}");
        }
    }
}
