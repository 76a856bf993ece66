//! The floor of everything that starts a process: threads that each start a program, feed it, read it and wait.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{fcntl::OFlag, unistd::pipe2};
use serde_json::{Value, json};

use crate::{
    stats::{Samples, rate, seconds},
    vfork::{Starter, wait},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The program, by its absolute path.
    program: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// How long to go on.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Three pipes, as a function has: its payload lies in the first before it starts, and the two others are read to
    /// their end. Otherwise all three are /dev/null.
    #[arg(long)]
    pipes: bool,
    /// Bytes written to its standard input.
    #[arg(long, default_value_t = 32)]
    size: usize,
    /// The program's arguments, behind `--`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Value> {
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.seconds);
    let mut all = Samples::default();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(|| one_thread(args, end))).collect();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??);
        }
        anyhow::Ok(())
    })?;
    let elapsed = start.elapsed();
    let mut line = json!({
        "what": "spawn-loop",
        "threads": args.threads,
        "pipes": args.pipes,
        "executions": all.len(),
        "seconds": seconds(elapsed),
        "executions_per_s": rate(all.len(), elapsed),
    });
    if let Some(map) = line.as_object_mut() {
        map.extend(all.summary(""));
    }
    Ok(line)
}

fn one_thread(args: &Args, end: Instant) -> anyhow::Result<Samples> {
    let mut starter = Starter::new(&args.program, &args.arguments)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let payload = vec![b'x'; args.size];
    let mut samples = Samples::default();
    let mut output = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        if args.pipes {
            piped(&mut starter, &payload, &mut output)?;
        } else {
            let null = null.as_fd();
            wait(starter.start([null, null, null]).context("cannot start the program")?)?;
        }
        samples.record(begun.elapsed());
    }
    Ok(samples)
}

fn piped(starter: &mut Starter, payload: &[u8], output: &mut Vec<u8>) -> anyhow::Result<()> {
    let pipe = || pipe2(OFlag::O_CLOEXEC);
    let (stdin, feed): (OwnedFd, OwnedFd) = pipe()?;
    let (read_stdout, stdout): (OwnedFd, OwnedFd) = pipe()?;
    let (read_stderr, stderr): (OwnedFd, OwnedFd) = pipe()?;
    // A payload fits a pipe's buffer, so that writing it all before anyone reads does not block.
    File::from(feed).write_all(payload)?;
    let pid = starter.start([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).context("cannot start the program")?;
    drop((stdin, stdout, stderr));
    output.clear();
    // One after the other: what the program writes fits the pipe that is not being read.
    File::from(read_stdout).read_to_end(output)?;
    File::from(read_stderr).read_to_end(output)?;
    wait(pid)
}
