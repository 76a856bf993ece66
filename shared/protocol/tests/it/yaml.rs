//! A function's configuration: what is taken, and that each refusal names the field and says what to do.

use std::time::{Duration, Instant};

use flux_protocol::{
    FunctionSpec,
    function::{Isolation, Network, PressureBehavior, SpecError, parse_json, parse_yaml},
    limits,
};
use proptest::prelude::*;

fn with(more: &str) -> Result<FunctionSpec, SpecError> {
    parse_yaml(&format!("name: resize\nhandler: resize\n{more}\n"))
}

#[test]
fn the_predecessors_nine_fields_and_their_defaults() {
    let spec = with("").expect("name and handler are enough");
    assert_eq!((spec.resources.cpu, spec.resources.memory), (100, 128));
    assert_eq!(spec.timeout, Some(Duration::from_secs(30)));
    assert_eq!(spec.max_concurrency, None);
    assert_eq!(spec.max_concurrency_behavior, PressureBehavior::Exit);
    assert_eq!(spec.resource_pressure_behavior, PressureBehavior::Exit);
    assert_eq!((spec.retry.max_attempts, spec.network), (1, Network::Host));
    assert!(spec.env.is_empty() && spec.stop_grace.is_zero() && spec.pool.is_default());

    let spec = with(
        "resources: { cpu: 500, memory: 64 }\ntimeout: 0\nmax_concurrency: 5\nmax_concurrency_behavior: wait\n\
         resource_pressure_behavior: wait\nenv: { LEVEL: info, N: 1, ON: true }\nretry: { max_attempts: 3, backoff: 250ms }\n\
         network: none\nstop_grace: 5\npool: gpu\nkeep_warm: 0\nsecrets: []\nruntime: native\nisolation: process",
    )
    .expect("all of it is taken");
    assert_eq!(spec.timeout, None, "0 is without limit");
    assert_eq!(spec.max_concurrency, Some(5));
    assert_eq!(spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["LEVEL=info", "N=1", "ON=true"]);
    assert_eq!(spec.stop_grace, Duration::from_secs(5));
}

#[test]
fn refusals_name_the_field_and_the_remedy() {
    let long = "x".repeat(1025);
    for (yaml, field, said) in [
        ("nmae: x", "nmae", "did you mean `name`?"),
        ("timeut: 3", "timeut", "did you mean `timeout`?"),
        ("max_concurency: 3", "max_concurency", "did you mean `max_concurrency`?"),
        ("zzzzzzzzzzzz: 3", "zzzzzzzzzzzz", "the fields are: name, handler"),
        ("resources: { cpus: 1 }", "resources.cpus", "did you mean `resources.cpu`?"),
        ("resources: { mem: 1 }", "resources.mem", "the fields are: cpu, memory"),
        ("resources: 5", "resources", "must be a mapping"),
        ("resources: { cpu: 0 }", "resources.cpu", "whole number from 1 to"),
        ("resources: { cpu: 1.5 }", "resources.cpu", "whole number"),
        ("resources: { cpu: '100' }", "resources.cpu", "whole number"),
        ("resources: { cpu: -1 }", "resources.cpu", "whole number"),
        ("resources: { memory: 3 }", "resources.memory", "from 4 to"),
        ("resources: { memory: 99999999999 }", "resources.memory", "from 4 to"),
        ("timeout: -1", "timeout", "must not be negative"),
        ("timeout: 1e99", "timeout", "more seconds than there are"),
        ("timeout: 86401", "timeout", "at most 86400"),
        ("timeout: soon", "timeout", "250ms, 10s"),
        ("timeout: [1]", "timeout", "must be seconds"),
        ("max_concurrency: 100001", "max_concurrency", "from 0 to 100000"),
        ("max_concurrency_behavior: wiat", "max_concurrency_behavior", "did you mean `wait`?"),
        ("resource_pressure_behavior: queue", "resource_pressure_behavior", "not one of exit, wait"),
        ("network: [none]", "network", "must be text, not a list"),
        ("network: bridge", "network", "not one of host, none"),
        ("retry: { max_attempts: 0 }", "retry.max_attempts", "from 1 to 100"),
        ("retry: { max_attempts: 101 }", "retry.max_attempts", "from 1 to 100"),
        ("retry: { backoff: 2h }", "retry.backoff", "at most 1h"),
        ("retry: { attempts: 2 }", "retry.attempts", "retry.max_attempts"),
        ("retry: 3", "retry", "must be a mapping"),
        ("env: [A]", "env", "must be a mapping, not a list"),
        ("env: { 1A: x }", "env.1A", "does not start with a digit"),
        ("env: { A-B: x }", "env.A-B", "A-Z a-z 0-9 _"),
        ("env: { FLUX_FUNCTION: x }", "env.FLUX_FUNCTION", "choose another"),
        ("env: { PAYLOAD: x }", "env.PAYLOAD", "choose another"),
        ("env: { A: [1] }", "env.A", "must be text, not a list"),
        ("env: { A: null }", "env.A", "must be text, not nothing"),
        ("env: { A: \"x\\0y\" }", "env.A", "NUL"),
        ("stop_grace: 301", "stop_grace", "at most 300"),
        ("pool: a.b", "pool", "A-Z a-z 0-9 _ -"),
        ("runtime: ruby", "runtime", "not one of native, python"),
        ("runtime: pyhton", "runtime", "did you mean `python`?"),
        ("isolation: docker", "isolation", "not one of process, container, microvm"),
    ] {
        let error = with(yaml).expect_err(yaml);
        assert!(matches!(error, SpecError::Field { .. }), "{yaml}: {error:?}");
        assert_eq!(error.field(), Some(field), "{yaml}: {error}");
        assert!(error.to_string().contains(said), "{yaml}: {error}");
        assert!(error.to_string().starts_with(&format!("`{field}`: ")), "{error}");
    }
    for (yaml, field, said) in [
        ("handler: x", "name", "is missing"),
        ("name: x", "handler", "is missing"),
        ("name: \nhandler: x", "name", "is missing"),
        ("name: 5\nhandler: x", "name", "a number (put it in quotes)"),
        ("name: true\nhandler: x", "name", "true or false (put it in quotes)"),
        ("name: a.b\nhandler: x", "name", "A-Z a-z 0-9 _ -"),
        ("name: a b\nhandler: x", "name", "A-Z a-z 0-9 _ -"),
        ("name: x\nhandler: /bin/sh", "handler", "relative path"),
        ("name: x\nhandler: a/../../b", "handler", "without `..`"),
        ("name: x\nhandler: ''", "handler", "relative path"),
        (&format!("name: x\nhandler: {long}"), "handler", "relative path"),
        (&format!("name: {}\nhandler: x", "n".repeat(65)), "name", "1 to 64"),
    ] {
        let error = parse_yaml(yaml).expect_err(yaml);
        assert_eq!(error.field(), Some(field), "{yaml}: {error}");
        assert!(error.to_string().contains(said), "{yaml}: {error}");
    }
}

#[test]
fn fields_of_later_releases_are_refused_by_name() {
    for (yaml, field) in [
        ("isolation: microvm", "network"),
        ("isolation: microvm\nnetwork: none\nsecrets: [TOKEN]", "secrets"),
        ("runtime: lambda\nisolation: container\nimage: a", "isolation"),
        ("keep_warm: 60", "keep_warm"),
        ("runtime: bash\nkeep_warm: 60", "keep_warm"),
        ("isolation_required: true", "isolation_required"),
        ("fresh: true", "fresh"),
        ("runtime: bash\nfresh: true", "fresh"),
    ] {
        let error = with(yaml).expect_err(yaml);
        assert!(matches!(error, SpecError::Unsupported { .. }), "{yaml}: {error:?}");
        assert_eq!(error.field(), Some(field), "{yaml}");
        let text = error.to_string();
        assert!(["remove", "use `", "set `"].iter().any(|word| text.contains(word)), "{yaml}: {text}");
    }
}

#[test]
fn what_is_no_mapping() {
    for (text, said) in [
        ("", "must be a mapping"),
        ("just text", "must be a mapping"),
        ("- a\n- b", "must be a mapping"),
        ("name: [", "not valid YAML"),
        ("name: a\n  handler: b", "not valid YAML"),
        ("name: a\nname: b\nhandler: x", "not valid YAML: line 2 column 1: duplicate mapping key: name\n"),
        ("name: a\nhandler: x\ntimeout: .inf", "not valid YAML"),
        ("env: { A: 1, A: 2 }\nname: a\nhandler: x", "not valid YAML"),
    ] {
        let error = parse_yaml(text).expect_err(text);
        assert!(matches!(error, SpecError::Syntax { .. }), "{text}: {error:?}");
        assert!(error.to_string().contains(said), "{text}: {error}");
    }
    let error = parse_yaml("name: a\nhandler: [x\ntimeout: 3").expect_err("an open bracket").to_string();
    assert!(error.contains("line"), "it says where: {error}");
}

/// Within a few seconds on the slowest machine, and without taking all its memory or stack.
fn answered_soon(what: &str, text: &str) -> Result<FunctionSpec, SpecError> {
    let text = text.to_owned();
    let started = Instant::now();
    // The stack of a thread that serves requests.
    let parsed = std::thread::Builder::new()
        .stack_size(2 * limits::MIB)
        .spawn(move || parse_yaml(&text))
        .expect("a thread")
        .join()
        .unwrap_or_else(|_| panic!("{what} panicked"));
    assert!(started.elapsed() < Duration::from_secs(20), "{what} took {:?}", started.elapsed());
    if let Err(error) = &parsed {
        assert!(error.to_string().len() < 4000, "{what}: an error of {} bytes", error.to_string().len());
    }
    parsed
}

#[test]
fn huge_and_hostile_input() {
    let head = "name: a\nhandler: x\n";
    let most = limits::FUNCTION_YAML;
    assert!(answered_soon("too long", &format!("{head}#{}", "x".repeat(most))).is_err());
    assert!(answered_soon("as long as may be", &format!("{head}#{}", "x".repeat(most - head.len() - 1))).is_ok());

    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for n in 1..20 {
        let list = vec![format!("*a{}", n - 1); 9].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{list}]\n"));
    }
    assert!(answered_soon("alias bomb", &bomb).is_err());
    // One anchor of half the input, named as often as fits into the rest.
    let wide = format!("env: {{ A: &a [{}] }}\nname: [{}]\n", "x,".repeat(most / 6), "*a,".repeat(most / 8));
    assert!(answered_soon("wide aliases", &wide).is_err());
    assert!(answered_soon("alias to itself", "a: &a [*a]\n").is_err());

    for (what, open) in [("brackets", "["), ("braces", "{a: "), ("dashes", "- "), ("questions", "? ")] {
        assert!(answered_soon(what, &open.repeat(most / open.len())).is_err(), "{what}");
    }
    let deep: String = (0..500).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    assert!(answered_soon("indents", &deep).is_err());
    assert!(answered_soon("long key", &format!("{head}{}: 1", "k".repeat(most / 2))).is_err());
    let many: String = (0..20_000).map(|n| format!("k{n}: 1\n")).collect();
    assert!(answered_soon("many fields", &many).is_err());
    let env: String = (0..300).map(|n| format!("  K{n}: v\n")).collect();
    assert!(answered_soon("many entries", &format!("{head}env:\n{env}")).is_err());
    let value = "v".repeat(limits::ENV_BYTES);
    assert!(answered_soon("much env", &format!("{head}env: {{ K: {value} }}")).is_err());
    assert!(answered_soon("digits", &format!("{head}timeout: {}", "9".repeat(most / 2))).is_err());
}

#[test]
fn words_and_leading_zeros_are_text() {
    let spec =
        with("env: { A: yes, B: on, C: n, D: 007, E: 0, F: 'true', G: true, H: ~x, I: 1.50 }").expect("all are text");
    let values: Vec<&str> = spec.env.values().map(String::as_str).collect();
    assert_eq!(values[..8], ["yes", "on", "n", "007", "0", "true", "true", "~x"]);
}

#[test]
fn json_is_yaml() {
    let json = r#"{"name": "a", "handler": "x", "timeout": 1.5, "env": {"A": "b"}}"#;
    let value = serde_json::from_str(json).expect("JSON");
    assert_eq!(parse_yaml(json).expect("YAML"), parse_json(&value).expect("JSON"));
}

#[test]
fn what_is_deployed_is_read_again_the_same() {
    // Otherwise the same configuration would be a new version each time.
    for more in
        ["timeout: 0.0015", "retry: { backoff: 0.0004 }", "stop_grace: 1.0001", "timeout: 0", "timeout: 12345.678"]
    {
        let spec = with(more).expect(more);
        let stored = serde_json::to_string(&spec).expect("JSON");
        assert_eq!(serde_json::from_str::<FunctionSpec>(&stored).expect("it reads"), spec, "{more}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in "(name|handler|env|timeout|[a-z]{1,4}|[:\\[\\]{}&*!|>'\"%@`#,?-]|[0-9.]{1,3}| |\n){0,40}") {
        if let Ok(spec) = parse_yaml(&text) {
            let stored = serde_json::to_string(&spec).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<FunctionSpec>(&stored).expect("it reads"), spec);
        }
    }

    #[test]
    fn a_configuration_is_read_again_the_same(
        timeout in 0_f64..90_000.0, backoff in 0_f64..4000.0, cpu in 1_u32..2000, grace in 0_f64..301.0, value in "[^\0]{0,10}",
    ) {
        let value = serde_json::json!({
            "name": "a", "handler": "x", "timeout": timeout, "retry": {"backoff": backoff}, "resources": {"cpu": cpu},
            "stop_grace": grace, "env": {"A": value},
        });
        if let Ok(spec) = parse_json(&value) {
            let stored = serde_json::to_string(&spec).expect("JSON");
            prop_assert_eq!(serde_json::from_str::<FunctionSpec>(&stored).expect("it reads"), spec);
        }
    }
}

#[test]
fn a_fork_for_each_call() {
    let yaml = |rest: &str| parse_yaml(&format!("name: f\nhandler: main.f\n{rest}"));
    assert!(yaml("runtime: python\nfresh: true").expect("taken").fresh);
    assert!(yaml("runtime: python\nfresh: true\nkeep_warm: 5\nnetwork: none\nsecrets: [A]").expect("taken").fresh);
    assert!(!yaml("runtime: python").expect("taken").fresh);
    assert!(!yaml("runtime: node\nfresh: false\nkeep_warm: 0").expect("taken").fresh);
    for (rest, said) in [
        ("runtime: python\nfresh: true\nkeep_warm: 0", "remove one of the two"),
        ("runtime: python\nfresh: yes", "must be true or false"),
        ("runtime: node\nfresh: true", "set `keep_warm: 0` instead"),
        ("runtime: lambda\nfresh: true", "set `keep_warm: 0` instead"),
        ("runtime: bash\nfresh: true", "a process for each call"),
        ("runtime: python\nfresh: true\nisolation: container\nimage: a", "use `isolation: process`"),
        ("runtime: python\nfresh: true\nisolation: microvm\nnetwork: none", "use `isolation: process`"),
    ] {
        let error = yaml(rest).expect_err(rest);
        assert_eq!(error.field(), Some("fresh"), "{rest}: {error}");
        assert!(error.to_string().contains(said), "{rest}: {error}");
    }
    let spec = yaml("runtime: python\nfresh: true").expect("taken");
    assert!(serde_json::to_value(&spec).expect("JSON")["fresh"] == true);
}

#[test]
fn a_function_in_a_container() {
    let spec =
        with("isolation: container\nimage: registry.example:5000/team/tool:1.2\nruntime: python\nhandler: main.f");
    assert!(spec.is_err(), "two handlers");
    let yaml = |rest: &str| parse_yaml(&format!("name: f\nisolation: container\n{rest}"));
    let spec = yaml("image: python:3.12\nruntime: python\nhandler: main.f").expect("a handler in an image");
    assert_eq!((spec.isolation, spec.image.as_deref()), (Isolation::Container, Some("python:3.12")));
    assert_eq!(spec.keep_warm, Duration::from_secs(60));
    let spec = yaml("image: tool@sha256:0a\ncommand: [tool, --json]").expect("an image by itself");
    assert_eq!((spec.handler.as_str(), spec.command.as_slice()), ("", &["tool".to_owned(), "--json".to_owned()][..]));
    assert!(spec.keep_warm.is_zero());
    for (rest, field) in [
        ("handler: f", "image"),
        ("image: 3\nhandler: f", "image"),
        ("image: -v\nhandler: f", "image"),
        ("image: a b\nhandler: f", "image"),
        ("image: a", "handler"),
        ("image: a\ncommand: tool", "command"),
        ("image: a\ncommand: ['']", "command"),
        ("image: a\ncommand: [1]", "command"),
        ("image: a\ncommand: [b]\nhandler: f", "handler"),
        ("image: a\ncommand: [b]\nruntime: python", "runtime"),
        ("image: a\ncommand: [b]\nkeep_warm: 60", "keep_warm"),
    ] {
        assert_eq!(yaml(rest).expect_err(rest).field(), Some(field), "{rest}");
    }
    for (rest, field) in [("image: a", "image"), ("command: [a]", "command")] {
        let error = with(rest).expect_err(rest);
        assert_eq!(error.field(), Some(field), "{rest}");
        assert!(error.to_string().contains("isolation: container"), "{error}");
    }
}

#[test]
fn secrets_are_named_and_hidden_unless_it_is_said() {
    let spec = with("secrets: [DB_PASSWORD, _x]").expect("valid");
    assert_eq!(spec.secrets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["DB_PASSWORD", "_x"]);
    assert!(spec.redact);
    assert!(!with("secrets: [A]\nredact: false").expect("valid").redact);
    assert!(with("secrets: []").expect("valid").secrets.is_empty());
    for (yaml, field) in [
        ("secrets: DB_PASSWORD", "secrets"),
        ("secrets: {A: b}", "secrets"),
        ("secrets: [1A]", "secrets[0]"),
        ("secrets: [A, \"b c\"]", "secrets[1]"),
        ("secrets: [FLUX_KEY]", "secrets[0]"),
        ("secrets: [PAYLOAD]", "secrets[0]"),
        ("secrets: [7]", "secrets[0]"),
        ("secrets: [A, A]", "secrets[1]"),
        ("secrets: [A]\nenv: {A: b}", "secrets"),
        ("redact: maybe", "redact"),
    ] {
        assert_eq!(with(yaml).expect_err(yaml).field(), Some(field), "{yaml}");
    }
}
