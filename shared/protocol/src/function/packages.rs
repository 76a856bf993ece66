//! Which packages of others a function asks for, by the list that its language's tools read, and whether an archive has any.

use serde_json::Value;

use super::Runtime;

impl Runtime {
    /// The file in which a function names its packages. A Lambda package has them in it.
    pub const fn package_list(self) -> Option<&'static str> {
        match self {
            Self::Python => Some("requirements.txt"),
            Self::Node => Some("package.json"),
            Self::Native | Self::Bash | Self::Lambda => None,
        }
    }

    /// Whether a list of that name asks for anything.
    pub fn asks_for_packages(self, list: &str) -> bool {
        match self {
            Self::Python => list.lines().any(is_requirement),
            Self::Node => serde_json::from_str::<Value>(list).is_ok_and(|list| {
                let asks = |field: &str| list.get(field).and_then(Value::as_object).is_some_and(|map| !map.is_empty());
                asks("dependencies") || asks("optionalDependencies")
            }),
            Self::Native | Self::Bash | Self::Lambda => false,
        }
    }

    /// Whether a file of an archive shows that packages were installed into it.
    pub fn is_of_a_package(self, path: &str) -> bool {
        let first = path.split('/').next().unwrap_or_default();
        match self {
            Self::Python => first.ends_with(".dist-info") || first.ends_with(".egg-info"),
            Self::Node => first == "node_modules",
            Self::Native | Self::Bash | Self::Lambda => false,
        }
    }

    /// How to put them beside the handler by hand.
    pub const fn install_by_hand(self) -> &'static str {
        match self {
            Self::Node => "npm install --omit=dev",
            _ => "pip install -r requirements.txt -t .",
        }
    }
}

/// What is neither a comment nor an option about where to look.
fn is_requirement(line: &str) -> bool {
    let line = line.trim();
    let is_option = line.starts_with('-');
    let names_more = ["-r", "-e", "--requirement", "--editable"].iter().any(|option| line.starts_with(option));
    !line.is_empty() && !line.starts_with('#') && (!is_option || names_more)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_asks_or_does_not() {
        for (runtime, list, asks) in [
            (Runtime::Python, "requests>=2 # http\n", true),
            (Runtime::Python, "-r more.txt", true),
            (Runtime::Python, "# nothing\n\n--no-index\n--find-links wheels\n", false),
            (Runtime::Node, r#"{"dependencies": {"left-pad": "1"}}"#, true),
            (Runtime::Node, r#"{"optionalDependencies": {"a": "1"}}"#, true),
            (Runtime::Node, r#"{"type": "module", "devDependencies": {"a": "1"}, "dependencies": {}}"#, false),
            (Runtime::Node, "not JSON", false),
            (Runtime::Lambda, "requests", false),
        ] {
            assert_eq!(runtime.asks_for_packages(list), asks, "{runtime}: {list}");
        }
    }

    #[test]
    fn what_was_installed_shows() {
        assert!(Runtime::Python.is_of_a_package("requests-2.32.dist-info/METADATA"));
        assert!(!Runtime::Python.is_of_a_package("vendored/x.dist-info/METADATA"));
        assert!(Runtime::Node.is_of_a_package("node_modules/a/index.js"));
        assert!(!Runtime::Node.is_of_a_package("lib/node_modules/a/index.js"));
    }
}
