//! `.fluxignore`: which files of a directory are not packed. The patterns are those of `.gitignore`.

/// Rules in the order in which they were written; the last one that matches decides.
#[derive(Debug, Default)]
pub(super) struct Ignore {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// Components; `**` stands for any number of them.
    pattern: Vec<String>,
    directories_only: bool,
    keep: bool,
}

/// Never packed, wherever they are.
const ALWAYS: &[&str] = &[".git", ".hg", ".svn", "__pycache__", ".DS_Store", ".fluxignore"];

impl Ignore {
    /// Lines that are empty or begin with `#` say nothing.
    pub(super) fn parse(text: &str) -> Self {
        let rules = text.lines().filter_map(|line| {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                return None;
            }
            let (keep, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
            let (directories_only, line) = line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
            // A pattern with a slash is meant from the root, one without at any depth.
            let anchored = line.contains('/');
            let mut pattern: Vec<String> = line.split('/').filter(|c| !c.is_empty()).map(str::to_owned).collect();
            if !anchored {
                pattern.insert(0, "**".to_owned());
            }
            (!line.is_empty()).then_some(Rule { pattern, directories_only, keep })
        });
        Self { rules: rules.collect() }
    }

    /// Whether the entry at `path` (relative, `/` between components) is left out. Nothing below a directory
    /// that is left out is asked for.
    pub(super) fn leaves_out(&self, path: &str, is_directory: bool) -> bool {
        let components: Vec<&str> = path.split('/').collect();
        if components.last().is_some_and(|name| ALWAYS.contains(name)) {
            return true;
        }
        self.rules
            .iter()
            .rev()
            .find(|rule| (is_directory || !rule.directories_only) && matches_path(&rule.pattern, &components))
            .is_some_and(|rule| !rule.keep)
    }
}

fn matches_path(pattern: &[String], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => {
            // A trailing `**` stands for at least one component: `a/**` is what lies in `a`.
            let from = usize::from(rest.is_empty());
            (from..=path.len()).any(|skipped| matches_path(rest, &path[skipped..]))
        }
        Some((first, rest)) => path
            .split_first()
            .is_some_and(|(name, below)| matches_name(first.as_bytes(), name.as_bytes()) && matches_path(rest, below)),
    }
}

/// `*` and `?` within one component, in time linear in the product of the lengths.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, n));
            p += 1;
        } else if pattern.get(p).is_some_and(|b| *b == b'?' || *b == name[n]) {
            p += 1;
            n += 1;
        } else if let Some((at, matched)) = star {
            star = Some((at, matched + 1));
            p = at + 1;
            n = matched + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let ignore = Ignore::parse("# a comment\n\n*.log\n!keep.log\nbuild/\n/top.txt\nsrc/**/gen\nlogs/**\na?c\n");
        for (path, is_directory, left_out) in [
            ("x.log", false, true),
            ("deep/down/x.log", false, true),
            ("keep.log", false, false),
            ("deep/keep.log", false, false),
            ("build", true, true),
            ("deep/build", true, true),
            ("build", false, false),
            ("top.txt", false, true),
            ("deep/top.txt", false, false),
            ("src/gen", true, true),
            ("src/a/b/gen", true, true),
            ("other/src/gen", true, false),
            ("logs", true, false),
            ("logs/x", false, true),
            ("abc", false, true),
            ("abbc", false, false),
            (".git", true, true),
            ("deep/__pycache__", true, true),
            ("node_modules", true, false),
            (".fluxignore", false, true),
        ] {
            assert_eq!(ignore.leaves_out(path, is_directory), left_out, "{path}");
        }
    }

    #[test]
    fn stars_do_not_blow_up() {
        let pattern = "*a".repeat(200);
        let name = "a".repeat(199);
        assert!(!matches_name(pattern.as_bytes(), name.as_bytes()));
    }
}
