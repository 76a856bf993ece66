//! Between Flux's words and Lambda's: an invocation as headers, a function's environment, an answer as a result, an error as a fault.
//! Pure.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use flux_protocol::{FunctionSpec, FunctionVersion, limits, time, trace::TraceParent};
use flux_worker::{Call, Fault};
use http_body_util::Full;
use hyper::{Response, header::HeaderValue};
use serde::Deserialize;

/// What a function that names no region is told, since the clients of every AWS service ask for one.
const REGION: &str = "us-east-1";
const ACCOUNT: &str = "000000000000";
/// What Lambda sends for an invocation without a payload.
const NO_PAYLOAD: &[u8] = b"{}";
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The region of its ARN.
pub(super) fn region(spec: &FunctionSpec) -> &str {
    spec.env.get("AWS_REGION").map_or(REGION, String::as_str)
}

/// One invocation as a runtime client hears of it.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) id: String,
    deadline_ms: i64,
    trace: String,
    arn: String,
    payload: Bytes,
}

impl Event {
    pub(super) fn new(call: &Call, payload: &Bytes, region: &str) -> Self {
        let Call { execution_id, function, version, deadline_ms, traceparent, .. } = call;
        // A UUID, as everywhere on Lambda.
        let id = execution_id.strip_prefix("exc-").unwrap_or(execution_id).to_owned();
        // There is always one there.
        let deadline_ms = deadline_ms.unwrap_or_else(|| time::now().plus(limits::TIMEOUT).as_millis());
        let arn = format!("arn:aws:lambda:{region}:{ACCOUNT}:function:{function}:{version}");
        let payload = if payload.is_empty() { Bytes::from_static(NO_PAYLOAD) } else { payload.clone() };
        Self { id, deadline_ms, trace: trace_id(traceparent), arn, payload }
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.payload.clone()));
        let headers = response.headers_mut();
        headers.insert(hyper::header::CONTENT_TYPE, JSON);
        let deadline = self.deadline_ms.to_string();
        for (name, value) in [
            ("lambda-runtime-aws-request-id", &self.id),
            ("lambda-runtime-deadline-ms", &deadline),
            ("lambda-runtime-trace-id", &self.trace),
            ("lambda-runtime-invoked-function-arn", &self.arn),
        ] {
            // Of names, numbers and a region; a region that is no header's text is left out.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        response
    }
}

/// X-Ray's spelling of the same trace.
fn trace_id(traceparent: &str) -> String {
    let TraceParent { trace_id, span_id, flags } = TraceParent::parse(traceparent).unwrap_or_default();
    let hex = format!("{trace_id:032x}");
    format!("Root=1-{}-{};Parent={span_id:016x};Sampled={}", &hex[..8], &hex[8..], flags & 1)
}

/// What Lambda sets, beside what the launcher adds: the API's address, and where the code lies. A function's own `env` may
/// replace the region, the time zone and how X-Ray's client complains, and nothing else of it.
pub(crate) fn environment(version: &FunctionVersion) -> Vec<(&'static str, String)> {
    let spec = &version.spec;
    let name = spec.name.to_string();
    let mut all = vec![
        ("_HANDLER", spec.handler.clone()),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", spec.resources.memory.to_string()),
        ("AWS_LAMBDA_FUNCTION_VERSION", version.version.to_string()),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".to_owned()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", format!("{}/[{}]{:032x}", date(), version.version, rand::random::<u128>())),
        ("AWS_LAMBDA_FUNCTION_NAME", name),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime".to_owned()),
    ];
    let defaults = [
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_DEFAULT_REGION", region(spec).to_owned()),
        ("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR".to_owned()),
        ("TZ", ":UTC".to_owned()),
    ];
    all.extend(defaults.into_iter().filter(|(name, _)| !spec.env.contains_key(*name)));
    all
}

/// As in `2026/11/30`.
fn date() -> String {
    let today = time::now().to_string();
    today.get(..10).unwrap_or_default().replace('-', "/")
}

/// The type of a streaming response that begins with its own status and headers.
const HTTP_RESPONSE: &str = "application/vnd.awslambda.http-integration-response";
/// What follows them.
const PRELUDE_END: &[u8] = &[0; 8];

/// A response as a result, which is JSON: text that is none as a string, other bytes as a string of base64. What is a
/// response for HTTP becomes what other functions return for one: an object with `statusCode` and `body`.
pub(super) fn result(body: Bytes, content_type: Option<&str>) -> Bytes {
    if content_type == Some(HTTP_RESPONSE)
        && let Some(response) = http_response(&body)
    {
        return response;
    }
    if body.is_empty() {
        return Bytes::from_static(b"null");
    }
    let Ok(text) = std::str::from_utf8(&body) else {
        return serde_json::Value::String(BASE64.encode(&body)).to_string().into();
    };
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => body,
        Err(_) => serde_json::Value::String(text.to_owned()).to_string().into(),
    }
}

/// That a streaming response failed on its way, as AWS's Rust client says it: the lines of the trailers that it announced, written as
/// the end of the body. (Others send trailers.) Their values: the type, and the error in base64.
pub(super) fn failure_at_the_end(body: &[u8]) -> Option<(&str, &str)> {
    const TYPE: &str = "Lambda-Runtime-Function-Error-Type: ";
    const BODY: &str = "Lambda-Runtime-Function-Error-Body: ";
    let begins = body.windows(TYPE.len()).rposition(|window| window == TYPE.as_bytes())?;
    let lines = std::str::from_utf8(body.get(begins + TYPE.len()..)?).ok()?;
    let (kind, rest) = lines.split_once("\r\n")?;
    let error = rest.strip_prefix(BODY)?.strip_suffix("\r\n")?;
    (!error.contains('\n')).then_some((kind, error))
}

fn http_response(said: &[u8]) -> Option<Bytes> {
    let end = said.windows(PRELUDE_END.len()).position(|window| window == PRELUDE_END)?;
    let (prelude, rest) = said.split_at(end);
    let body = rest.get(PRELUDE_END.len()..)?;
    let mut response: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(prelude).ok()?;
    let text = std::str::from_utf8(body);
    response.insert("isBase64Encoded".to_owned(), text.is_err().into());
    response.insert("body".to_owned(), text.map_or_else(|_| BASE64.encode(body), str::to_owned).into());
    Some(serde_json::Value::Object(response).to_string().into())
}

pub(super) fn from_base64(text: &str) -> Option<Bytes> {
    BASE64.decode(text).ok().map(Bytes::from)
}

/// What a runtime client posts of an error.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Posted {
    error_type: Option<String>,
    error_message: Option<String>,
    stack_trace: Vec<serde_json::Value>,
}

/// The error in a body; `kind` is what its header says of it.
pub(super) fn fault_of(kind: Option<&str>, body: &[u8]) -> Fault {
    let posted: Posted = serde_json::from_slice(body).unwrap_or_else(|_| Posted {
        // Not the document that it should be: its text says more than nothing.
        error_message: Some(String::from_utf8_lossy(body).into_owned()),
        ..Posted::default()
    });
    let said = posted.error_type.filter(|kind| !kind.is_empty());
    let kind = said.unwrap_or_else(|| kind.unwrap_or("Runtime.Unknown").to_owned());
    let message = posted.error_message.unwrap_or_default();
    let lines = posted.stack_trace.iter().map(|line| line.as_str().map_or_else(|| line.to_string(), str::to_owned));
    let stack = lines.map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n");
    Fault { kind, message, stack, missing: false }.cut()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        Call {
            execution_id: "exc-01a1fe96-66b9-75f2-8588-580909155264".to_owned(),
            function: "resize".to_owned(),
            version: 3,
            attempt: 1,
            deadline_ms: Some(1_700_000_000_123),
            args: Vec::new(),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        }
    }

    #[test]
    fn an_invocation_has_lambdas_headers() {
        let event = Event::new(&call(), &Bytes::new(), "eu-west-1");
        let response = event.response();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        assert_eq!(header("Lambda-Runtime-Aws-Request-Id"), Some("01a1fe96-66b9-75f2-8588-580909155264"));
        assert_eq!(header("Lambda-Runtime-Deadline-Ms"), Some("1700000000123"));
        let trace = "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1";
        assert_eq!(header("Lambda-Runtime-Trace-Id"), Some(trace));
        let arn = "arn:aws:lambda:eu-west-1:000000000000:function:resize:3";
        assert_eq!(header("Lambda-Runtime-Invoked-Function-Arn"), Some(arn));
        assert_eq!(event.payload, NO_PAYLOAD);
    }

    #[test]
    fn a_response_is_a_json_result() {
        for (body, expected) in [
            (&b"{\"a\": 1}"[..], "{\"a\": 1}"),
            (b"", "null"),
            (b"said \"so\"", r#""said \"so\"""#),
            (b"\xff\xfe", "\"//4=\""),
        ] {
            assert_eq!(result(Bytes::from_static(body), None), expected.as_bytes());
        }
        let streamed = b"{\"statusCode\":201,\"headers\":{\"a\":\"b\"}}\0\0\0\0\0\0\0\0over";
        let response: serde_json::Value =
            serde_json::from_slice(&result(Bytes::from_static(streamed), Some(HTTP_RESPONSE))).expect("JSON");
        let expected =
            serde_json::json!({"statusCode": 201, "headers": {"a": "b"}, "body": "over", "isBase64Encoded": false});
        assert_eq!(response, expected);
    }

    #[test]
    fn a_stream_that_failed_says_so_at_its_end() {
        let said = b"half\0 Lambda-Runtime-Function-Error-Type: Runtime.StreamError\r\nLambda-Runtime-Function-Error-Body: YQ==\r\n";
        assert_eq!(failure_at_the_end(said), Some(("Runtime.StreamError", "YQ==")));
        for whole in [&said[..said.len() - 2], b"Lambda-Runtime-Function-Error-Type: a\r\n", b""] {
            assert_eq!(failure_at_the_end(whole), None);
        }
    }

    #[test]
    fn an_error_is_read_however_it_is_said() {
        let posted =
            br#"{"errorType": "ValueError", "errorMessage": "no", "stackTrace": ["  File \"a.py\"\n", {"line": 1}]}"#;
        let fault = fault_of(Some("Unhandled"), posted);
        assert_eq!((fault.kind.as_str(), fault.message.as_str()), ("ValueError", "no"));
        assert_eq!(fault.stack, "  File \"a.py\"\n{\"line\":1}");
        let fault = fault_of(Some("Runtime.ExitError"), b"it broke");
        assert_eq!((fault.kind.as_str(), fault.message.as_str()), ("Runtime.ExitError", "it broke"));
        assert_eq!(fault_of(None, b"{}").kind, "Runtime.Unknown");
        let long = format!(r#"{{"errorMessage": "{}"}}"#, "x".repeat(limits::ERROR_MESSAGE * 2));
        assert_eq!(fault_of(None, long.as_bytes()).message.len(), limits::ERROR_MESSAGE);
    }
}
