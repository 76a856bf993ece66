//! What only functions in containers have: an image, and a command of it.

use serde_json::Value;

use super::{
    Isolation,
    parse::{SpecError, string, wrong},
};
use crate::limits;

/// `image`, which a container needs, and `command`, which can take a handler's place there.
pub(super) fn image_and_command(
    image: Option<&Value>,
    command: Option<&Value>,
    isolation: Isolation,
) -> Result<(Option<String>, Vec<String>), SpecError> {
    if isolation != Isolation::Container {
        let given = [("image", image), ("command", command)].into_iter().find(|(_, value)| value.is_some());
        return match given {
            Some((field, _)) => Err(wrong(field, "is for containers: add `isolation: container`, or remove the field")),
            None => Ok((None, Vec::new())),
        };
    }
    let missing = || wrong("image", "is missing: name the image of the container, such as `python:3.12`");
    let image = string(image.ok_or_else(missing)?, "image")?;
    if !is_image_name(image) {
        let problem =
            "must be an image as Docker names it, such as `python:3.12` or `registry.example/team/tool@sha256:…`";
        return Err(wrong("image", problem));
    }
    Ok((Some(image.to_owned()), command.map(words).transpose()?.unwrap_or_default()))
}

/// Docker's daemon knows the whole grammar. This keeps out what is no name at all.
fn is_image_name(image: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    image.len() <= limits::IMAGE_NAME
        && image.bytes().all(allowed)
        && image.starts_with(|c: char| c.is_ascii_alphanumeric())
        && image.ends_with(|c: char| c.is_ascii_alphanumeric())
}

fn words(value: &Value) -> Result<Vec<String>, SpecError> {
    let shape = || wrong("command", "must be a list of texts, such as [python, -m, tool]");
    let list = value.as_array().ok_or_else(shape)?;
    let words: Vec<String> =
        list.iter().map(|word| word.as_str().map(str::to_owned).ok_or_else(shape)).collect::<Result<_, _>>()?;
    let bytes: usize = words.iter().map(String::len).sum();
    if words.len() > limits::COMMAND_WORDS || bytes > limits::COMMAND_BYTES {
        let problem = format!("has more than {} words or {} bytes", limits::COMMAND_WORDS, limits::COMMAND_BYTES);
        return Err(wrong("command", problem));
    }
    if words.first().is_none_or(|program| program.is_empty()) || words.iter().any(|word| word.contains('\0')) {
        return Err(wrong("command", "must begin with a program, and hold no NUL byte"));
    }
    Ok(words)
}
