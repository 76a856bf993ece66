//! Containers beside what they are measured by: a warm handler in a container beside the same one in a process, and a cold container
//! beside `docker run` of the same image. `make bench-containers`.
//!
//! Both of a pair are measured in turn, round after round, against one Flux and one dockerd that are started for it.
#![allow(clippy::print_stdout)]

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use flux_testkit::{Dockerd, File, FluxUp};
use serde_json::json;

const ROUNDS: usize = 5;
const WARM_CALLS: usize = 300;
const COLD_CALLS: usize = 8;
const HANDLER: &str = "def handler(payload, context):\n    return payload\n";

#[tokio::main]
async fn main() {
    let docker = Dockerd::start().await;
    let config = docker.flux_config();
    let up = FluxUp::start_with(&["--config", &config.path().to_string_lossy()]).await;
    let in_container = format!("isolation: container\nimage: {}\n", Dockerd::IMAGE);
    for (name, isolation) in [("process", ""), ("container", in_container.as_str())] {
        let yaml = format!(
            "name: {name}\nruntime: python\nhandler: main.handler\nnetwork: none\nresources: {{ cpu: 1000, memory: 128 }}\n{isolation}"
        );
        up.api.deploy(name, &yaml, &[File::plain("main.py", HANDLER)]).await;
    }
    let cold = format!(
        "name: cold\n{in_container}command: ['true']\nnetwork: none\nresources: {{ cpu: 2000, memory: 128 }}\n"
    );
    up.api.put("/functions", "application/yaml", cold).await.expect(201);
    let mut figures: [Vec<Duration>; 4] = Default::default();
    for round in 0..=ROUNDS {
        for (of, name) in ["process", "container"].into_iter().enumerate() {
            let calls = calls(&up, name, WARM_CALLS).await;
            // The first round warms everything up.
            figures[of].extend(calls.into_iter().filter(|_| round > 0));
        }
        let calls = calls(&up, "cold", COLD_CALLS).await;
        figures[2].extend(calls.into_iter().filter(|_| round > 0));
        let runs: Vec<Duration> = (0..COLD_CALLS).map(|_| docker_run(&docker)).collect();
        figures[3].extend(runs.into_iter().filter(|_| round > 0));
    }
    let [process, container, cold, run] = figures.map(|mut calls| {
        calls.sort();
        (ms(&calls, 50), ms(&calls, 99))
    });
    println!("| | p50 ms | p99 ms |\n|---|---:|---:|");
    for (what, (p50, p99)) in [
        ("a warm Python handler in a process, sync call", process),
        ("the same in a container", container),
        ("a new container for each sync call, `command: ['true']`", cold),
        ("`docker run --rm --network none IMAGE true`", run),
    ] {
        println!("| {what} | {p50:.2} | {p99:.2} |");
    }
    println!("\nwarm container / warm process, p50: {:.2} (at most 1.3)", container.0 / process.0);
    println!("cold container / docker run, p50: {:.2} (at most 1.2)", cold.0 / run.0);
}

async fn calls(up: &FluxUp, name: &str, count: usize) -> Vec<Duration> {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        up.api.execute(name, &json!({ "n": 1 })).await.expect(200);
        took.push(began.elapsed());
    }
    took
}

fn docker_run(docker: &Dockerd) -> Duration {
    let began = Instant::now();
    let mut command = Command::new("docker");
    command.args(["--host", &format!("unix://{}", docker.socket().display()), "run", "--rm", "--network", "none"]);
    let status = command.args([Dockerd::IMAGE, "true"]).stdout(Stdio::null()).status().expect("the docker command");
    assert!(status.success(), "docker run: {status}");
    began.elapsed()
}

fn ms(sorted: &[Duration], percent: usize) -> f64 {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
}
