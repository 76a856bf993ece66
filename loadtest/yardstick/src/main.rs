//! The bare loops that Flux is measured against, in the same run on the same machine: what is left of each route
//! when everything that Flux adds is taken away. Each command prints one line of JSON.
//!
//! They are honest floors, not straw men: the same libraries, the same durability, the same pipes, and nothing
//! checked, recorded or isolated.

#![allow(clippy::disallowed_methods, reason = "floors use tokio bare: supervision is among the things measured")]
#![allow(clippy::print_stdout, reason = "one line of JSON is the interface")]

mod echo_http;
mod guard;
mod http_load;
mod http_response;
mod listen;
mod nats;
mod nats_pipe;
mod nats_publish;
mod nats_route;
mod overload;
mod spawn_loop;
mod stats;
mod usage;
mod vfork;

use clap::{Parser, Subcommand};
use serde_json::Value;

#[derive(Parser)]
#[command(name = "yardstick", about = "The bare loops that Flux is measured against")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve HTTP that echoes every body: axum and nothing else. Prints where it listens, then runs.
    EchoHttp(echo_http::Args),
    /// Serve HTTP by way of JetStream: publish, pull, echo, reply. Prints where it listens, then runs.
    NatsRoute(nats_route::Args),
    /// Start a program again and again, each time to its end.
    SpawnLoop(spawn_loop::Args),
    /// JetStream alone: latency one at a time, and rate of publish + ack + deliver + ack in a pipeline.
    NatsPipe(nats_pipe::Args),
    /// Publish messages into a stream that others work on, and wait until it is empty.
    NatsPublish(nats_publish::Args),
    /// Run a program that ends, with all it started, when standard input is closed.
    Guard(guard::Args),
    /// Load a URL with a closed loop of keep-alive connections.
    HttpLoad(http_load::Args),
    /// Offer a running Flux several times what it can take, and see what becomes of the rest.
    Overload(overload::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::EchoHttp(args) => runtime(2)?.block_on(echo_http::run(args)),
        Command::NatsRoute(args) => runtime(2)?.block_on(nats_route::run(args)),
        Command::SpawnLoop(args) => spawn_loop::run(&args).map(|line| print_line(&line)),
        Command::NatsPipe(args) => runtime(2)?.block_on(nats_pipe::run(args)).map(|line| print_line(&line)),
        Command::Overload(args) => runtime(1)?.block_on(overload::run(args)),
        Command::NatsPublish(args) => runtime(1)?.block_on(nats_publish::run(args)).map(|line| print_line(&line)),
        Command::Guard(args) => {
            let runtime = runtime(1)?;
            let ended = runtime.block_on(guard::run(args));
            // A thread that waits for standard input does not hold us up.
            runtime.shutdown_background();
            ended
        }
        Command::HttpLoad(args) => runtime(args.threads)?.block_on(http_load::run(args)).map(|line| print_line(&line)),
    }
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    if threads <= 1 {
        return tokio::runtime::Builder::new_current_thread().enable_all().build();
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

fn print_line(line: &Value) {
    println!("{line}");
}
