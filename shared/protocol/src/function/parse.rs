//! From YAML or JSON to a checked [`FunctionSpec`]. Every error names the field and the remedy.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use super::{
    FunctionSpec, Isolation, Network, PressureBehavior, Resources, Retry, Runtime, handler, image, parse_duration,
    text::whole_millis,
};
use crate::{
    id::{FunctionName, PoolName, SecretName},
    limits,
    suggest::nearest,
};

/// What is wrong with a function's configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{message}")]
    Syntax { message: String },
    #[error("`{field}`: {problem}")]
    Field { field: String, problem: String },
    /// A field that Flux knows, with a value that this release cannot give.
    #[error("`{field}`: {problem}")]
    Unsupported { field: String, problem: String },
}

impl SpecError {
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Syntax { .. } => None,
            Self::Field { field, .. } | Self::Unsupported { field, .. } => Some(field),
        }
    }
}

pub(super) fn wrong(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
    SpecError::Field { field: field.into(), problem: problem.into() }
}

fn unsupported(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
    SpecError::Unsupported { field: field.into(), problem: problem.into() }
}

const FIELDS: &[&str] = &[
    "name",
    "handler",
    "runtime",
    "isolation",
    "image",
    "command",
    "resources",
    "timeout",
    "max_concurrency",
    "max_concurrency_behavior",
    "resource_pressure_behavior",
    "keep_warm",
    "fresh",
    "retry",
    "network",
    "env",
    "secrets",
    "redact",
    "stop_grace",
    "pool",
    "isolation_required",
];

/// Reads a function's `flux.yaml`. JSON is YAML, so this reads both.
///
/// # Errors
/// The text is not YAML (with line and column), or a field is unknown, missing or out of range.
pub fn parse_yaml(text: &str) -> Result<FunctionSpec, SpecError> {
    if text.len() > limits::FUNCTION_YAML {
        return Err(SpecError::Syntax {
            message: format!("the configuration has {} bytes; at most {} are read", text.len(), limits::FUNCTION_YAML),
        });
    }
    // `y`, `yes` and `on` are words, and `007` is text: YAML 1.2.
    let options = serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    let value: Value = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let said = error.to_string().replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        let said = said.strip_prefix("error: ").unwrap_or(&said);
        // It quotes the line, which may be all of the input.
        let shown: String = said.chars().take(ERROR_LENGTH).collect();
        SpecError::Syntax { message: format!("not valid YAML: {shown}") }
    })?;
    parse_json(&value)
}

/// As [`parse_yaml`], for a document that was read already.
///
/// # Errors
/// A field is unknown, missing or out of range.
pub fn parse_json(value: &Value) -> Result<FunctionSpec, SpecError> {
    let Value::Object(fields) = value else {
        return Err(SpecError::Syntax {
            message: "the configuration must be a mapping that starts with `name:`".to_owned(),
        });
    };
    for field in fields.keys() {
        check_known(field, FIELDS, "")?;
    }
    let get = |field: &str| fields.get(field).filter(|value| !value.is_null());

    let name = string(get("name").ok_or_else(|| wrong("name", "is missing: give the function a name"))?, "name")?;
    let name = FunctionName::parse(name).map_err(|error| wrong("name", error.to_string()))?;
    let runtime = match get("runtime").map(|v| string(v, "runtime")).transpose()? {
        None | Some("native") => Runtime::Native,
        Some("python") => Runtime::Python,
        Some("node") => Runtime::Node,
        Some("bash") => Runtime::Bash,
        Some("lambda") => Runtime::Lambda,
        Some(other) => return Err(unknown_value("runtime", other, &["native", "python", "node", "bash", "lambda"])),
    };
    let isolation = match get("isolation").map(|v| string(v, "isolation")).transpose()? {
        None | Some("process") => Isolation::Process,
        Some("container") => Isolation::Container,
        Some("microvm") => Isolation::Microvm,
        Some(other) => return Err(unknown_value("isolation", other, &["process", "container", "microvm"])),
    };
    if runtime == Runtime::Lambda && isolation != Isolation::Process {
        return Err(unsupported("isolation", "`lambda` runs as a process in this release; use `isolation: process`"));
    }
    let (image, command) = image::image_and_command(get("image"), get("command"), isolation)?;
    if !command.is_empty() && runtime != Runtime::Native {
        return Err(wrong("runtime", format!("`{runtime}` has no part in a `command`; remove one of the two")));
    }
    if get("isolation_required").is_some_and(|v| v != &Value::Bool(false)) {
        return Err(unsupported("isolation_required", "is not in this release; remove the field"));
    }
    let keep_warm = keep_warm(get("keep_warm"), runtime)?;
    let fresh = fresh(get("fresh"), runtime, isolation, keep_warm)?;
    let handler = match get("handler") {
        Some(_) if !command.is_empty() => {
            return Err(wrong("handler", "has no part in a `command`; remove one of the two"));
        }
        Some(handler) => string(handler, "handler")?,
        None if !command.is_empty() => "",
        None if runtime == Runtime::Lambda => handler::BOOTSTRAP,
        None => return Err(wrong("handler", missing_handler(runtime))),
    };
    if command.is_empty() {
        check_handler(handler)?;
        handler::entry(runtime, handler).map_err(|problem| wrong("handler", problem))?;
    }

    let network = match get("network").map(|v| string(v, "network")).transpose()? {
        None | Some("host") => Network::Host,
        Some("none") => Network::None,
        Some(other) => return Err(unknown_value("network", other, &["host", "none"])),
    };
    if isolation == Isolation::Microvm && network != Network::None {
        return Err(unsupported("network", "a microVM has no network in this release; set `network: none`"));
    }
    let env = get("env").map(env).transpose()?.unwrap_or_default();
    let secrets = get("secrets").map(secrets).transpose()?.unwrap_or_default();
    if let Some(twice) = secrets.iter().find(|name| env.contains_key(name.as_str())) {
        return Err(wrong("secrets", format!("`{twice}` is in `env` too; it can be one or the other")));
    }

    if isolation == Isolation::Microvm && !secrets.is_empty() {
        return Err(unsupported(
            "secrets",
            "a microVM's snapshot would keep them; use `isolation: process` or `container`",
        ));
    }

    Ok(FunctionSpec {
        name,
        handler: handler.to_owned(),
        runtime,
        isolation,
        image,
        command,
        resources: get("resources").map(resources).transpose()?.unwrap_or_default(),
        timeout: get("timeout").map(timeout).transpose()?.unwrap_or(Some(DEFAULT_TIMEOUT)),
        max_concurrency: get("max_concurrency")
            .map(|v| count(v, "max_concurrency", 0, 100_000))
            .transpose()?
            .filter(|n| *n > 0),
        max_concurrency_behavior: behavior(get("max_concurrency_behavior"), "max_concurrency_behavior")?,
        resource_pressure_behavior: behavior(get("resource_pressure_behavior"), "resource_pressure_behavior")?,
        retry: get("retry").map(retry).transpose()?.unwrap_or_default(),
        network,
        env,
        secrets,
        redact: match get("redact") {
            None => true,
            Some(Value::Bool(redact)) => *redact,
            Some(other) => return Err(wrong("redact", format!("must be true or false, not {}", kind(other)))),
        },
        stop_grace: get("stop_grace").map(stop_grace).transpose()?.unwrap_or_default(),
        pool: get("pool")
            .map(|v| {
                string(v, "pool")
                    .and_then(|text| PoolName::parse(text).map_err(|error| wrong("pool", error.to_string())))
            })
            .transpose()?
            .unwrap_or_default(),
        keep_warm,
        fresh,
    })
}

fn missing_handler(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Native => "is missing: give the path of the executable inside the archive",
        Runtime::Bash => "is missing: give the path of the script inside the archive",
        Runtime::Python | Runtime::Node | Runtime::Lambda => "is missing: give `file.function`, such as `main.handler`",
    }
}

fn keep_warm(value: Option<&Value>, runtime: Runtime) -> Result<Duration, SpecError> {
    let Some(value) = value else {
        return Ok(if runtime.has_workers() { limits::KEEP_WARM_DEFAULT } else { Duration::ZERO });
    };
    let keep_warm = duration(value, "keep_warm")?;
    if !keep_warm.is_zero() && !runtime.has_workers() {
        let problem = format!("a {runtime} function gets a fresh process each time; remove the field or set it to 0");
        return Err(unsupported("keep_warm", problem));
    }
    if keep_warm > limits::KEEP_WARM {
        return Err(wrong("keep_warm", format!("is at most {} seconds", limits::KEEP_WARM.as_secs())));
    }
    Ok(keep_warm)
}

fn fresh(
    value: Option<&Value>,
    runtime: Runtime,
    isolation: Isolation,
    keep_warm: Duration,
) -> Result<bool, SpecError> {
    match value {
        None | Some(Value::Bool(false)) => return Ok(false),
        Some(Value::Bool(true)) => {}
        Some(other) => return Err(wrong("fresh", format!("must be true or false, not {}", kind(other)))),
    }
    if runtime != Runtime::Python {
        let instead =
            if runtime.has_workers() { "set `keep_warm: 0` instead" } else { "it has a process for each call" };
        return Err(unsupported("fresh", format!("only a python function can be forked; remove the field: {instead}")));
    }
    if isolation != Isolation::Process {
        let here = isolation.as_str();
        let problem = format!(
            "a worker in a {here} cannot be forked in this release; use `isolation: process`, or remove the field and set `keep_warm: 0`"
        );
        return Err(unsupported("fresh", problem));
    }
    if keep_warm.is_zero() {
        let problem =
            "is forked from a process that `keep_warm` keeps, and `keep_warm: 0` keeps none; remove one of the two";
        return Err(wrong("fresh", problem));
    }
    Ok(true)
}

const ERROR_LENGTH: usize = 1000;

/// What a function without `timeout` gets, as its predecessor had it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

fn check_known(field: &str, known: &[&str], parent: &str) -> Result<(), SpecError> {
    if known.contains(&field) {
        return Ok(());
    }
    let shown: String = field.chars().take(64).collect();
    let problem = match nearest(&shown, known.iter().copied()) {
        Some(near) => format!("is not a field of a function; did you mean `{parent}{near}`?"),
        None => format!("is not a field of a function; the fields are: {}", known.join(", ")),
    };
    Err(wrong(format!("{parent}{shown}"), problem))
}

fn unknown_value(field: &str, given: &str, known: &[&str]) -> SpecError {
    let given: String = given.chars().take(64).collect();
    match nearest(&given, known.iter().copied()) {
        Some(near) => wrong(field, format!("`{given}` is not one of {}; did you mean `{near}`?", known.join(", "))),
        None => wrong(field, format!("`{given}` is not one of {}", known.join(", "))),
    }
}

pub(super) fn string<'a>(value: &'a Value, field: &str) -> Result<&'a str, SpecError> {
    value.as_str().ok_or_else(|| wrong(field, not_text(value)))
}

fn not_text(value: &Value) -> String {
    let remedy = if matches!(value, Value::Bool(_) | Value::Number(_)) { " (put it in quotes)" } else { "" };
    format!("must be text, not {}{remedy}", kind(value))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn count(value: &Value, field: &str, least: u32, most: u32) -> Result<u32, SpecError> {
    value
        .as_u64()
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| wrong(field, format!("must be a whole number from {least} to {most}")))
}

fn duration(value: &Value, field: &str) -> Result<Duration, SpecError> {
    let parsed = match value {
        Value::Number(number) => {
            number.as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok()).and_then(whole_millis).ok_or_else(|| {
                match number.as_f64() {
                    Some(seconds) if seconds < 0.0 => "must not be negative".to_owned(),
                    _ => "is more seconds than there are".to_owned(),
                }
            })
        }
        Value::String(text) => parse_duration(text),
        _ => Err("must be seconds, or text such as 250ms, 10s, 5m".to_owned()),
    };
    parsed.map_err(|problem| wrong(field, problem))
}

fn timeout(value: &Value) -> Result<Option<Duration>, SpecError> {
    let timeout = duration(value, "timeout")?;
    if timeout > limits::TIMEOUT {
        return Err(wrong("timeout", format!("is at most {} seconds; 0 is without limit", limits::TIMEOUT.as_secs())));
    }
    Ok((!timeout.is_zero()).then_some(timeout))
}

fn stop_grace(value: &Value) -> Result<Duration, SpecError> {
    let grace = duration(value, "stop_grace")?;
    if grace > limits::STOP_GRACE {
        return Err(wrong("stop_grace", format!("is at most {} seconds", limits::STOP_GRACE.as_secs())));
    }
    Ok(grace)
}

fn object<'a>(value: &'a Value, field: &str) -> Result<&'a serde_json::Map<String, Value>, SpecError> {
    value.as_object().ok_or_else(|| wrong(field, format!("must be a mapping, not {}", kind(value))))
}

fn resources(value: &Value) -> Result<Resources, SpecError> {
    let fields = object(value, "resources")?;
    for field in fields.keys() {
        check_known(field, &["cpu", "memory"], "resources.")?;
    }
    let mut resources = Resources::default();
    if let Some(cpu) = fields.get("cpu") {
        resources.cpu = count(cpu, "resources.cpu", 1, limits::FUNCTION_CPU_MILLICORES)?;
    }
    if let Some(memory) = fields.get("memory") {
        resources.memory = count(memory, "resources.memory", 4, limits::FUNCTION_MEMORY_MB)?;
    }
    Ok(resources)
}

fn retry(value: &Value) -> Result<Retry, SpecError> {
    let fields = object(value, "retry")?;
    for field in fields.keys() {
        check_known(field, &["max_attempts", "backoff"], "retry.")?;
    }
    let mut retry = Retry::default();
    if let Some(attempts) = fields.get("max_attempts") {
        retry.max_attempts = count(attempts, "retry.max_attempts", 1, limits::RETRY_ATTEMPTS)?;
    }
    if let Some(backoff) = fields.get("backoff") {
        retry.backoff = duration(backoff, "retry.backoff")?;
        if retry.backoff > limits::RETRY_BACKOFF {
            return Err(wrong("retry.backoff", "is at most 1h"));
        }
    }
    Ok(retry)
}

fn behavior(value: Option<&Value>, field: &str) -> Result<PressureBehavior, SpecError> {
    match value.map(|v| string(v, field)).transpose()? {
        None | Some("exit") => Ok(PressureBehavior::Exit),
        Some("wait") => Ok(PressureBehavior::Wait),
        Some(other) => Err(unknown_value(field, other, &["exit", "wait"])),
    }
}

fn env(value: &Value) -> Result<BTreeMap<String, String>, SpecError> {
    let fields = object(value, "env")?;
    if fields.len() > limits::ENV_ENTRIES {
        return Err(wrong("env", format!("has {} entries; at most {} are taken", fields.len(), limits::ENV_ENTRIES)));
    }
    let mut env = BTreeMap::new();
    let mut bytes = 0;
    for (key, value) in fields {
        let at = || format!("env.{}", key.chars().take(64).collect::<String>());
        let fits = !key.is_empty()
            && !key.as_bytes()[0].is_ascii_digit()
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !fits {
            return Err(wrong(at(), "a name is made of A-Z a-z 0-9 _ and does not start with a digit"));
        }
        if key.starts_with("FLUX_") || key == "PAYLOAD" {
            return Err(wrong(at(), "names that start with FLUX_, and PAYLOAD, are Flux's own; choose another"));
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => return Err(wrong(at(), not_text(value))),
        };
        if text.contains('\0') {
            return Err(wrong(at(), "must not contain a NUL byte"));
        }
        bytes += key.len() + text.len();
        if bytes > limits::ENV_BYTES {
            return Err(wrong("env", format!("has more than {} bytes in all", limits::ENV_BYTES)));
        }
        env.insert(key.clone(), text);
    }
    Ok(env)
}

fn secrets(value: &Value) -> Result<Vec<SecretName>, SpecError> {
    let Value::Array(list) = value else {
        return Err(wrong("secrets", format!("must be a list of names, not {}", kind(value))));
    };
    if list.len() > limits::FUNCTION_SECRETS {
        let most = limits::FUNCTION_SECRETS;
        return Err(wrong("secrets", format!("has {} names; at most {most} are taken", list.len())));
    }
    let mut names = Vec::new();
    for (at, value) in list.iter().enumerate() {
        let at = format!("secrets[{at}]");
        let name = SecretName::parse(string(value, &at)?).map_err(|error| wrong(at.as_str(), error.to_string()))?;
        if names.contains(&name) {
            return Err(wrong(at, format!("`{name}` is named twice")));
        }
        names.push(name);
    }
    Ok(names)
}

fn check_handler(handler: &str) -> Result<(), SpecError> {
    let inside = !handler.is_empty()
        && handler.len() <= 1024
        && !handler.starts_with('/')
        && !handler.contains('\0')
        && handler.split('/').all(|part| part != "..");
    if inside {
        return Ok(());
    }
    Err(wrong("handler", "must be a relative path inside the archive, without `..`"))
}
