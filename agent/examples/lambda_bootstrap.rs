//! A function for AWS Lambda, with AWS's own Rust client: what `agent/tests/it/lambda.rs` runs as a package's `bootstrap`.

#![expect(clippy::disallowed_methods, reason = "it is no part of Flux, but a function")]

use lambda_runtime::{
    Error, LambdaEvent, run, service_fn,
    streaming::{Body, Response, channel},
};
use serde_json::{Value, json};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    // As any package with several functions in one program chooses.
    let handler = std::env::var("_HANDLER");
    match handler.as_deref() {
        Ok("streams") => run(service_fn(streams)).await,
        _ => run(service_fn(answers)).await,
    }
}

async fn answers(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let LambdaEvent { payload, context } = event;
    match payload["what"].as_str() {
        Some("fail") => Err("no such thing".into()),
        Some("panic") => panic!("it panicked"),
        Some("exit") => std::process::exit(3),
        _ => Ok(json!({
            "payload": payload,
            "id": context.request_id,
            "arn": context.invoked_function_arn,
            "function": context.env_config.function_name,
            "memory": context.env_config.memory,
            "pid": std::process::id(),
        })),
    }
}

async fn streams(event: LambdaEvent<Value>) -> Result<Response<Body>, Error> {
    let (mut sender, body) = channel();
    tokio::spawn(async move {
        for piece in ["{\"streamed\":", " true}"] {
            if sender.send_data(piece.into()).await.is_err() {
                return;
            }
        }
        if event.payload["what"] == "fail" {
            sender.abort();
        }
    });
    Ok(Response::from(body))
}
