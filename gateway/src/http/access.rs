//! What each row of the API needs. One table: requests are judged by it, the audit log by its last column, and the OpenAPI
//! document shows it. What is not in it needs `admin`, so that a row that was forgotten is closed.

use std::collections::HashMap;

use axum::http::Method;

/// What a caller must be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: not even a key.
    Nothing,
    Read,
    /// `read` or `deploy`.
    ReadOrDeploy,
    Deploy,
    Admin,
    /// To run the function that the path names.
    Invoke,
    /// Decided when the record is read: `read`, or to run its function.
    See,
    /// Decided when the record is read: to run its function.
    Stop,
}

impl Need {
    /// As the document and refusals name it; empty where it needs nothing.
    pub(super) const fn scopes(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Read => &["read"],
            Self::ReadOrDeploy => &["read", "deploy"],
            Self::Deploy => &["deploy"],
            Self::Admin => &["admin"],
            Self::Invoke | Self::Stop => &["invoke:<function>"],
            Self::See => &["read", "invoke:<function>"],
        }
    }

    pub(super) fn said(self) -> String {
        self.scopes().iter().map(|scope| format!("`{scope}`")).collect::<Vec<_>>().join(" or ")
    }
}

/// Whether it is a change, of which the audit log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audit {
    Yes,
    No,
}

use Audit::{No, Yes};

const TABLE: &[(&str, &str, Need, Audit)] = &[
    ("GET", "/health", Need::Nothing, No),
    ("GET", "/ready", Need::Nothing, No),
    ("GET", "/agents", Need::Nothing, No),
    ("POST", "/agents/join", Need::Nothing, Yes),
    ("POST", "/agents/tokens", Need::Admin, Yes),
    ("POST", "/agents/register", Need::Admin, Yes),
    ("DELETE", "/agents/{id}", Need::Admin, Yes),
    ("POST", "/agents/{id}/cordon", Need::Admin, Yes),
    ("POST", "/agents/{id}/uncordon", Need::Admin, Yes),
    ("GET", "/autoscaler", Need::Read, No),
    ("POST", "/initialize", Need::Admin, Yes),
    ("DELETE", "/nodes", Need::Admin, Yes),
    ("GET", "/openapi.json", Need::Nothing, No),
    ("GET", "/docs", Need::Nothing, No),
    ("GET", "/resources", Need::Read, No),
    ("GET", "/metrics", Need::Read, No),
    ("GET", "/functions", Need::ReadOrDeploy, No),
    ("PUT", "/functions", Need::Deploy, Yes),
    ("GET", "/functions/{name}", Need::ReadOrDeploy, No),
    ("DELETE", "/functions/{name}", Need::Deploy, Yes),
    ("PUT", "/deploy/{name}", Need::Deploy, Yes),
    ("POST", "/functions/{name}/rollback", Need::Deploy, Yes),
    ("POST", "/execute/{name}", Need::Invoke, No),
    ("POST", "/execute/{name}/async", Need::Invoke, No),
    ("*", "/fn/{name}", Need::Invoke, No),
    ("*", "/fn/{name}/", Need::Invoke, No),
    ("*", "/fn/{name}/{*path}", Need::Invoke, No),
    ("GET", "/executions", Need::Read, No),
    ("GET", "/executions/{id}", Need::See, No),
    ("DELETE", "/executions/{id}", Need::Stop, Yes),
    ("GET", "/executions/{id}/why", Need::See, No),
    ("GET", "/executions/{id}/stream", Need::See, No),
    ("POST", "/tickets", Need::See, No),
    ("GET", "/dlq", Need::Read, No),
    ("GET", "/dlq/{function}", Need::Read, No),
    ("DELETE", "/dlq/{function}", Need::Deploy, Yes),
    ("GET", "/dlq/{function}/{seq}", Need::Read, No),
    ("DELETE", "/dlq/{function}/{seq}", Need::Deploy, Yes),
    ("POST", "/dlq/{function}/redrive", Need::Invoke, Yes),
    ("POST", "/dlq/{function}/{seq}/redrive", Need::Invoke, Yes),
    ("GET", "/keys", Need::Admin, No),
    ("POST", "/keys", Need::Admin, Yes),
    ("DELETE", "/keys/{id}", Need::Admin, Yes),
    ("POST", "/keys/{id}/rotate", Need::Admin, Yes),
    ("GET", "/audit", Need::Admin, No),
    // Who deploys needs to know which there are.
    ("GET", "/secrets", Need::Deploy, No),
    ("GET", "/secrets/{name}", Need::Deploy, No),
    ("PUT", "/secrets/{name}", Need::Admin, Yes),
    ("DELETE", "/secrets/{name}", Need::Admin, Yes),
    ("POST", "/secrets-key/rotate", Need::Admin, Yes),
    ("POST", "/admin/gc", Need::Admin, Yes),
];

/// What a request needs, and whether it changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) need: Need,
    pub(super) audited: bool,
}

/// The table, by path.
pub(super) struct Rules(HashMap<&'static str, Vec<(&'static str, Rule)>>);

impl Rules {
    pub(super) fn new() -> Self {
        let mut rules: HashMap<_, Vec<_>> = HashMap::new();
        for (method, path, need, audit) in TABLE {
            rules.entry(*path).or_default().push((*method, Rule { need: *need, audited: *audit == Yes }));
        }
        Self(rules)
    }

    /// `route` is the pattern that matched; `None` is no row of the API.
    pub(super) fn of(&self, method: &Method, route: Option<&str>) -> Rule {
        let found = route.and_then(|route| self.get(method.as_str(), route));
        // A method that the path does not take is told so, to whoever has any key: nothing is done.
        found.unwrap_or(Rule { need: Need::Admin, audited: false })
    }

    fn get(&self, method: &str, route: &str) -> Option<Rule> {
        // The router answers HEAD where there is a GET.
        let method = if method == "HEAD" { "GET" } else { method };
        let rules = self.0.get(route)?;
        rules.iter().find(|(taken, _)| *taken == method || *taken == "*").map(|(_, rule)| *rule)
    }

    /// Whether the row is in the table, for the document; `method` is as there, in small letters.
    pub(super) fn documented(&self, method: &str, path: &str) -> Option<Rule> {
        self.get(&method.to_ascii_uppercase(), path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_is_closed() {
        let rules = Rules::new();
        let of = |method: Method, route: Option<&str>| rules.of(&method, route);
        assert_eq!(of(Method::POST, Some("/new/thing")).need, Need::Admin);
        assert_eq!(of(Method::PATCH, Some("/functions")).need, Need::Admin);
        assert_eq!(of(Method::GET, None).need, Need::Admin);
        assert_eq!(of(Method::HEAD, Some("/metrics")).need, Need::Read);
        assert_eq!(of(Method::PATCH, Some("/fn/{name}")).need, Need::Invoke);
    }

    #[test]
    fn each_row_is_once_in_the_table() {
        let mut rows: Vec<_> = TABLE.iter().map(|(method, path, ..)| (method, path)).collect();
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), TABLE.len());
    }
}
