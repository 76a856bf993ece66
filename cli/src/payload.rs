//! What an invocation carries, from the argument, a file or standard input.

use std::{io::Read as _, os::unix::fs::FileTypeExt as _, path::Path};

use flux_protocol::limits;

use crate::error::CliError;

/// Where the payload comes from: `--file`, else the argument (`@file`, `-`, or the payload itself), else what is
/// piped in.
pub(crate) fn read(argument: Option<&str>, file: Option<&Path>) -> Result<Vec<u8>, CliError> {
    match (file, argument) {
        (Some(path), _) => read_file(path),
        (None, Some("-")) => read_stdin(),
        (None, Some(argument)) => match argument.strip_prefix('@') {
            Some(path) => read_file(Path::new(path)),
            None => Ok(argument.as_bytes().to_vec()),
        },
        (None, None) if stdin_is_piped() => read_stdin(),
        (None, None) => Ok(Vec::new()),
    }
}

/// A terminal, /dev/null or a socket is no payload.
fn stdin_is_piped() -> bool {
    std::fs::metadata("/dev/stdin").is_ok_and(|meta| meta.is_file() || meta.file_type().is_fifo())
}

fn read_file(path: &Path) -> Result<Vec<u8>, CliError> {
    let what = || format!("the payload {} cannot be read", path.display());
    let file = std::fs::File::open(path).map_err(|source| CliError::local(what(), source))?;
    bounded(file)
        .map_err(|source| CliError::local(what(), source))?
        .ok_or_else(|| too_large(&path.display().to_string()))
}

fn read_stdin() -> Result<Vec<u8>, CliError> {
    bounded(std::io::stdin().lock())
        .map_err(|source| CliError::local("standard input cannot be read", source))?
        .ok_or_else(|| too_large("standard input"))
}

fn bounded(source: impl std::io::Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    source.take(limits::PAYLOAD as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limits::PAYLOAD).then_some(bytes))
}

fn too_large(what: &str) -> CliError {
    let limit = limits::PAYLOAD / limits::MIB;
    CliError::problem(
        format!("the payload ({what}) is larger than {limit} MiB"),
        "put it where the function can fetch it, and pass its address",
    )
}

/// The body of `POST /execute/{name}`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: &'static str,
    /// What the body has no room for: `?arg=`.
    pub(crate) args_in_query: Vec<String>,
}

/// A payload that is JSON goes in as it is; other text as a JSON string, which the function gets as that text; bytes
/// that are neither are the whole body.
pub(crate) fn body(payload: Vec<u8>, args: &[String]) -> Result<Body, CliError> {
    let mut body = b"{\"args\":".to_vec();
    body.extend_from_slice(&encoded(args)?);
    if !payload.iter().all(u8::is_ascii_whitespace) {
        body.extend_from_slice(b",\"payload\":");
        if serde_json::from_slice::<serde::de::IgnoredAny>(&payload).is_ok() {
            body.extend_from_slice(&payload);
        } else {
            match String::from_utf8(payload) {
                Ok(text) => body.extend_from_slice(&encoded(&text)?),
                Err(binary) => {
                    return Ok(Body {
                        bytes: binary.into_bytes(),
                        content_type: "application/octet-stream",
                        args_in_query: args.to_vec(),
                    });
                }
            }
        }
    }
    body.push(b'}');
    Ok(Body { bytes: body, content_type: "application/json", args_in_query: Vec::new() })
}

fn encoded<T: serde::Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CliError> {
    serde_json::to_vec(value).map_err(|error| CliError::local("the request cannot be written", error.into()))
}

#[cfg(test)]
mod tests {
    use super::body;

    fn text(payload: &str, args: &[&str]) -> String {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let body = body(payload.as_bytes().to_vec(), &args).expect("a body");
        assert_eq!(body.content_type, "application/json");
        String::from_utf8(body.bytes).expect("UTF-8")
    }

    #[test]
    fn json_goes_in_as_it_is_and_text_as_text() {
        assert_eq!(text(r#"{"n": 1.0}"#, &[]), r#"{"args":[],"payload":{"n": 1.0}}"#);
        assert_eq!(text("hello \"you\"", &["-v"]), r#"{"args":["-v"],"payload":"hello \"you\""}"#);
        assert_eq!(text("12", &[]), r#"{"args":[],"payload":12}"#);
        assert_eq!(text(" \n", &[]), r#"{"args":[]}"#);
    }

    #[test]
    fn what_is_neither_is_the_body_itself() {
        let sent = body(vec![0xff, 0xfe], &["-v".to_owned()]).expect("a body");
        assert_eq!((sent.bytes.as_slice(), sent.content_type), ([0xff, 0xfe].as_slice(), "application/octet-stream"));
        assert_eq!(sent.args_in_query, ["-v"]);
    }
}
