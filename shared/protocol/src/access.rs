//! What a caller may do: scopes, and the function globs in them.

use std::{borrow::Cow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    id::{FunctionName, InvalidId},
    limits,
    suggest::nearest,
};

/// A pattern of function names, in which `*` stands for any number of characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionGlob(Box<str>);

impl FunctionGlob {
    /// # Errors
    /// It is empty, too long, or has a character that no function's name has.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let fits = (1..=limits::NAME_LENGTH).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'*'));
        if fits {
            return Ok(Self(text.into()));
        }
        let rule = "a function pattern is 1 to 64 of A-Z a-z 0-9 _ - and `*`, such as resize*";
        Err(InvalidId { what: "function pattern", given: text.chars().take(80).collect(), rule })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// It stands for every function.
    pub fn is_all(&self) -> bool {
        self.0.bytes().all(|b| b == b'*')
    }

    /// It names one function.
    pub fn exact(&self) -> Option<FunctionName> {
        FunctionName::parse(&self.0).ok()
    }

    pub fn matches(&self, name: &FunctionName) -> bool {
        matches(self.0.as_bytes(), name.as_str().as_bytes())
    }
}

impl fmt::Display for FunctionGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for FunctionGlob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FunctionGlob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&Cow::<'de, str>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// With one place to come back to: the last `*` takes one more character. So it ends in pattern × name steps at most.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match (pattern.get(p), star) {
            (Some(b'*'), _) => {
                star = Some((p, n));
                p += 1;
            }
            (Some(byte), _) if *byte == name[n] => (p, n) = (p + 1, n + 1),
            (_, Some((at, taken))) => {
                star = Some((at, taken + 1));
                (p, n) = (at + 1, taken + 1);
            }
            _ => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// One thing that a caller may do. None but `admin` contains another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everything, keys and secrets included.
    Admin,
    /// Register, deploy, roll back and remove functions.
    Deploy,
    /// Read everything that is kept of functions and executions, but no keys and no audit log.
    Read,
    /// Run the functions that match, and see and cancel their executions.
    Invoke(FunctionGlob),
}

/// A scope that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a scope: {rule}")]
pub struct InvalidScope {
    pub given: String,
    pub rule: String,
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        match text.split_once(':') {
            Some(("invoke", glob)) => FunctionGlob::parse(glob)
                .map(Self::Invoke)
                .map_err(|InvalidId { given, rule, .. }| InvalidScope { given, rule: rule.to_owned() }),
            None if text == "admin" => Ok(Self::Admin),
            None if text == "deploy" => Ok(Self::Deploy),
            None if text == "read" => Ok(Self::Read),
            _ => {
                let given: String = text.chars().take(80).collect();
                let hint = match nearest(&given, ["admin", "deploy", "read", "invoke:*"]) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                };
                Err(InvalidScope { given, rule: format!("they are admin, deploy, read and invoke:<function>{hint}") })
            }
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::Deploy => f.write_str("deploy"),
            Self::Read => f.write_str("read"),
            Self::Invoke(glob) => write!(f, "invoke:{}", glob.0),
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// All that a caller may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// # Errors
    /// There are too many of them: each request may be compared with each.
    pub fn try_new(mut scopes: Vec<Scope>) -> Result<Self, InvalidScope> {
        scopes.sort();
        scopes.dedup();
        if scopes.len() > limits::KEY_SCOPES {
            return Err(InvalidScope {
                given: format!("{} scopes", scopes.len()),
                rule: format!("a key has at most {}", limits::KEY_SCOPES),
            });
        }
        Ok(Self(scopes))
    }

    pub fn admin() -> Self {
        Self(vec![Scope::Admin])
    }

    pub fn iter(&self) -> impl Iterator<Item = &Scope> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `scope`, or `admin`.
    pub fn allow(&self, scope: &Scope) -> bool {
        self.0.iter().any(|held| *held == Scope::Admin || held == scope)
    }

    pub fn allow_invoke(&self, function: &FunctionName) -> bool {
        self.0.iter().any(|held| match held {
            Scope::Admin => true,
            Scope::Invoke(glob) => glob.matches(function),
            Scope::Deploy | Scope::Read => false,
        })
    }

    /// Whether it invokes any function at all.
    pub fn allow_some_invoke(&self) -> bool {
        self.0.iter().any(|held| matches!(held, Scope::Admin | Scope::Invoke(_)))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, scope) in self.0.iter().enumerate() {
            write!(f, "{}{scope}", if at > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> FunctionName {
        FunctionName::parse(text).expect("a name")
    }

    #[test]
    fn globs_match_whole_names() {
        let glob =
            |pattern: &str, function: &str| FunctionGlob::parse(pattern).expect(pattern).matches(&name(function));
        for (pattern, function) in [
            ("*", "a"),
            ("a*", "a"),
            ("a*", "abc"),
            ("*c", "abc"),
            ("a*c", "ac"),
            ("a*b*c", "axxbyyc"),
            ("abc", "abc"),
            ("**", "x"),
        ] {
            assert!(glob(pattern, function), "{pattern} {function}");
        }
        for (pattern, function) in [("a", "ab"), ("ab", "a"), ("a*c", "acb"), ("*b", "abc"), ("A", "a"), ("a*a", "a")] {
            assert!(!glob(pattern, function), "{pattern} {function}");
        }
        for wrong in ["", "a b", "a.b", "a/*", "ä", "?", "a>"] {
            assert!(FunctionGlob::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn scopes_are_written_as_they_are_read() {
        for text in ["admin", "deploy", "read", "invoke:img-*"] {
            assert_eq!(text.parse::<Scope>().expect(text).to_string(), text);
        }
        for wrong in ["", "Admin", "invoke", "invoke:", "invoke:a b", "read:x", "write", "admin "] {
            assert!(wrong.parse::<Scope>().is_err(), "{wrong}");
        }
        let near = "deplay".parse::<Scope>().expect_err("refused");
        assert!(near.to_string().contains("did you mean `deploy`"), "{near}");
    }

    #[test]
    fn only_admin_contains_others() {
        let scopes = |text: &str| {
            let list = text.split(' ').map(|scope| scope.parse().expect(scope)).collect();
            Scopes::try_new(list).expect("few")
        };
        let some = scopes("deploy invoke:img-*");
        assert!(some.allow(&Scope::Deploy) && !some.allow(&Scope::Read) && !some.allow(&Scope::Admin));
        assert!(some.allow_invoke(&name("img-resize")) && !some.allow_invoke(&name("mail")));
        let admin = Scopes::admin();
        assert!(admin.allow(&Scope::Read) && admin.allow_invoke(&name("mail")));
        assert!(!Scopes::default().allow_some_invoke());
        assert!(!scopes("read").allow_invoke(&name("mail")), "reading is not running");
    }
}
