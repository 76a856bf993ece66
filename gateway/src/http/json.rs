//! JSON that was sent to us. What is wrong with it is said with its field, line and column.

use flux_protocol::{ErrorCode, suggest::nearest};
use serde::Deserialize;
use serde_json::json;

use crate::refusal::Refusal;

/// Reads a body. `fields` are those of the outermost object, for "did you mean".
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], fields: &[&str]) -> Result<T, Refusal> {
    let first = bytes.trim_ascii_start().first().copied();
    let read = serde_json::from_slice(bytes);
    // A list would be taken as the fields in their order; `null` is no body where there need not be one.
    let is_other = first.is_some_and(|first| first != b'{') && (first != Some(b'n') || read.is_err());
    if is_other && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok() {
        let message = format!("the body must be a JSON object; its fields are: {}", fields.join(", "));
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    read.map_err(|error| explain::<T>(bytes, &error, fields))
}

/// Reads it again, slowly, to learn which field it was: only a body that is wrong pays for that.
#[cold]
fn explain<'a, T: Deserialize<'a>>(bytes: &'a [u8], error: &serde_json::Error, fields: &[&str]) -> Refusal {
    let (line, column) = (error.line(), error.column());
    let at = format!(" at line {line} column {column}");
    let said = error.to_string();
    let said = said.strip_suffix(&at).unwrap_or(&said);
    if !error.is_data() {
        let message = format!("the body is not valid JSON: {said} at line {line}, column {column}");
        return Refusal::new(ErrorCode::InvalidRequest, message)
            .with_details(json!({ "line": line, "column": column }));
    }
    let field = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_slice(bytes))
        .err()
        .map(|error| error.path().to_string())
        .filter(|path| path != ".")
        .or_else(|| said.split('`').nth(1).map(str::to_owned))
        .unwrap_or_default();
    let field: String = field.chars().take(64).collect();
    let message = match said.starts_with("unknown field").then(|| nearest(&field, fields.iter().copied())) {
        Some(Some(near)) => format!("`{field}` is not a field of this; did you mean `{near}`?"),
        Some(None) => format!("`{field}` is not a field of this; the fields are: {}", fields.join(", ")),
        None => format!("`{field}`: {said}"),
    };
    Refusal::new(ErrorCode::InvalidRequest, format!("{message} (line {line}, column {column})"))
        .with_details(json!({ "field": field, "line": line, "column": column }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        args: Vec<String>,
    }

    fn refusal(text: &str) -> Refusal {
        parse::<Sample>(text.as_bytes(), &["args", "payload"]).expect_err("refused")
    }

    #[test]
    fn a_mistake_is_placed() {
        let syntax = refusal("{\"args\": [\n  oops]}");
        assert!(syntax.message.contains("line 2"), "{syntax}");
        assert_eq!(syntax.details["line"], 2);
        for other in ["[[\"a\"]]", "null", "1", "\"text\""] {
            assert!(refusal(other).message.contains("must be a JSON object"), "{other}");
        }
        let unknown = refusal("{\"arg\": []}");
        assert!(unknown.message.contains("did you mean `args`"), "{unknown}");
        assert_eq!(unknown.details["field"], "arg");
        let kind = refusal("{\"args\": [\"a\", 7]}");
        assert_eq!(kind.details["field"], "args[1]", "{kind}");
        assert!(kind.message.contains("expected a string"), "{kind}");
        let missing = refusal("{}");
        assert!(missing.message.contains("args"), "{missing}");
    }
}
