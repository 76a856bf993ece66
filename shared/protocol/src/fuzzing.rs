//! What the fuzz targets of this crate's parsers do with their bytes (`fuzz/`), here so that tests can do it
//! with the seeds. Each panics where a parser breaks what it promises.

use bytes::Bytes;

use crate::{
    FunctionName, FunctionSpec, Invocation, OutputLog, Scope, StatusMessage, function,
    invocation::header,
    sse::{Event, Parser},
    trace::TraceParent,
};

/// A configuration is refused, or survives being stored.
pub fn function_yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match function::parse_yaml(text) {
        Ok(spec) => {
            let stored = serde_json::to_string(&spec).expect("JSON");
            assert_eq!(serde_json::from_str::<FunctionSpec>(&stored).expect("it reads"), spec);
        }
        Err(error) => assert!(error.to_string().len() < 8192, "an error that quotes all of its input"),
    }
}

/// Header values, a line each, in a fixed order of names; then the body. Whatever they are, it is an invocation
/// that is sent and read again the same.
pub fn invocation_headers(data: &[u8]) {
    const NAMES: [&str; 10] = [
        header::EXECUTION_ID,
        header::ATTEMPT,
        header::FAILURES,
        header::ARGS,
        header::REPLY_TO,
        header::DEADLINE,
        header::VERSION,
        header::TRACEPARENT,
        header::PAYLOAD_REF,
        header::REDRIVE_OF,
    ];
    let mut lines = data.splitn(NAMES.len() + 1, |byte| *byte == b'\n');
    let values: Vec<(&str, &str)> = NAMES
        .iter()
        .zip(&mut lines)
        .filter(|(_, line)| !line.is_empty())
        .filter_map(|(name, line)| Some((*name, std::str::from_utf8(line).ok()?)))
        .collect();
    let body = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let get = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let (invocation, _) = Invocation::from_message(get, body);
    let headers = invocation.headers();
    assert!(headers.iter().all(|(_, value)| !value.contains(['\r', '\n'])), "a header is one line");
    let get = |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
    let (again, notes) = Invocation::from_message(get, invocation.body());
    assert_eq!((again, notes), (invocation, Vec::new()));
}

/// Bytes are refused, or are a log that is written as those bytes.
pub fn output_log_decode(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Some(log) = OutputLog::decode(bytes.clone()) {
        assert_eq!(log.encode(), bytes);
        let _ = (log.to_text(), log.result());
    }
}

/// A status is refused, or survives being written again.
pub fn status_json(data: &[u8]) {
    if let Ok(status) = serde_json::from_slice::<StatusMessage>(data) {
        let written = serde_json::to_vec(&status).expect("JSON");
        assert_eq!(serde_json::from_slice::<StatusMessage>(&written).expect("it reads"), status);
    }
}

/// However the bytes of an event stream are cut into pieces, the same events come out.
pub fn sse(data: &[u8]) {
    let events = |piece: usize| -> Vec<Event> {
        let mut parser = Parser::default();
        data.chunks(piece).flat_map(|piece| parser.feed(piece)).collect()
    };
    let whole = events(data.len().max(1));
    for piece in [1, 2, 7] {
        assert_eq!(events(piece), whole, "in pieces of {piece}");
    }
    assert!(whole.iter().all(|event| !event.name.contains('\n')), "a name is one line");
}

/// Text is no scope, or one that is written and read again; a pattern matches itself where it has no `*`.
pub fn scope(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(scope) = text.parse::<Scope>() {
        assert_eq!(scope.to_string(), text);
        if let Scope::Invoke(glob) = &scope
            && let Ok(name) = FunctionName::parse(glob.as_str())
        {
            assert!(glob.matches(&name));
        }
    }
}

/// Text is no trace, or one that is written and read again.
pub fn traceparent(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(trace) = TraceParent::parse(text) {
        assert_eq!(TraceParent::parse(&trace.to_string()), Some(trace));
    }
}
