//! What Google's names and labels may be.
//!
//! From <https://cloud.google.com/compute/docs/naming-resources> and <https://cloud.google.com/compute/docs/labeling-resources>.
//! Letters beyond a-z, which labels may have too, are not taken.

/// Of all that has a name: RFC 1035.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.ends_with('-')
}

fn is_value(text: &str) -> bool {
    text.len() <= 63 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

/// Why a label is none, and what to write instead.
pub(crate) fn against(key: &str, value: &str) -> Option<String> {
    if !(is_value(key) && key.starts_with(|c: char| c.is_ascii_lowercase())) {
        return Some(format!("the key `{key}`: use 1 to 63 of a-z 0-9 _ -, a letter first"));
    }
    (!is_value(value)).then(|| format!("the value `{value}` of `{key}`: use at most 63 of a-z 0-9 _ -"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_rfc_1035() {
        for good in ["a", "flux-1", &"a".repeat(63)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "1a", "-a", "a-", "A", "a_b", "a/b", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_label_that_google_refuses_is_refused_with_what_to_write() {
        for (key, value) in [("team", ""), ("team_2", "crew-1"), ("t", "2024")] {
            assert_eq!(against(key, value), None);
        }
        for (key, value, named) in
            [("Team", "x", "`Team`"), ("", "x", "``"), ("2team", "x", "`2team`"), ("team", "Crew", "`Crew` of `team`")]
        {
            let why = against(key, value).expect("refused");
            assert!(why.contains(named) && why.contains("use"), "{why}");
        }
    }
}
