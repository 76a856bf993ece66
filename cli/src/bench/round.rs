//! One round: each floor, and beside it what stands on it. Every round has a Flux of its own, so that none inherits a
//! backlog, a cache or a grown database from the one before.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tokio::time::Instant;

use super::{
    Durability, Effort, Part,
    costs::{Cost, Costs, Role, Snapshot},
    figures::{Figures, summary},
    guarded::Server,
    live,
    subject::{self, ECHO, FRESH, LAMBDA, Subject, WAITS, WARM, body, headers},
    yardstick::{BODY, Load, Loaded, Yardsticks},
};
use crate::error::CliError;

/// Concurrent connections of the throughput figures.
pub(super) const MANY: usize = 16;
/// Threads of the spawn loop that throughput is compared with.
const SPAWNERS: usize = 2;

/// What every round needs.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) effort: Effort,
    pub(super) parts: Vec<Part>,
    pub(super) yardsticks: Yardsticks,
    pub(super) echo: Server,
    /// The static program that starting is measured with.
    pub(super) program: PathBuf,
    /// What is deployed; the echo first.
    pub(super) functions: Vec<PathBuf>,
}

/// What came of one durability.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) figures: Figures,
    pub(super) costs: Costs,
}

impl Bench {
    pub(super) fn wants(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    pub(super) fn load(&self, url: &str, concurrency: usize) -> Load {
        Load::new(url, concurrency, self.effort.seconds, self.effort.warm_up)
    }

    /// The floors that have neither a queue nor a disk, and so are the same for every durability.
    pub(super) fn floors(&self) -> Result<Figures, CliError> {
        let mut figures = Figures::default();
        if self.wants(Part::Output) {
            let one = self.yardsticks.load(&self.load(&self.echo.url, 1).body(BODY))?;
            figures.add("echo_p50_us", one.p50_us);
        }
        if self.wants(Part::Async) {
            let many = self.yardsticks.load(&self.load(&self.echo.url, MANY).body(BODY))?;
            figures.add("echo_per_s", many.per_s);
        }
        if self.wants(Part::Sync) || self.wants(Part::Dispatch) {
            let spawn = self.yardsticks.spawn_loop(&self.program, 1, false, self.effort.seconds)?;
            figures.add("spawn_p50_us", spawn.p50_us);
        }
        if self.wants(Part::Sync) {
            let spawn = self.yardsticks.spawn_loop(&self.program, SPAWNERS, true, self.effort.seconds)?;
            figures.add("spawn_per_s", spawn.per_s);
        }
        Ok(figures)
    }

    /// A Flux of one durability, beside the floors on the same queue.
    pub(super) async fn flux(&self, measured: &mut Measured, durability: Durability) -> Result<(), CliError> {
        let subject = Subject::start(&self.yardsticks.program, &self.functions, durability).await?;
        subject.until_quiet().await;
        if self.wants(Part::Memory) {
            memory(&mut measured.figures, &subject.look(), ["up_worker_mb", "up_launcher_mb", "up_nats_mb"]);
        }
        if [Part::Dispatch, Part::Output, Part::Direct, Part::Warm].into_iter().any(|part| self.wants(part)) {
            // A synced queue is ten times slower and more.
            let fewer = if durability == Durability::Fsync { 10 } else { 1 };
            let (messages, singles) = (self.effort.piped / fewer, self.effort.singles * 5);
            let pipe = self.yardsticks.nats_pipe(subject.queue(), messages, singles)?;
            measured.figures.add("delivered_p50_us", pipe.delivered_p50_us);
            measured.figures.add("core_p50_us", pipe.core_p50_us);
            measured.figures.add("pipe_per_s", pipe.pipe_per_s);
        }
        if self.wants(Part::Dispatch) {
            subject.until_quiet().await;
            let mut dispatched = subject.dispatch(self.effort.singles).await?;
            let [p50, p95] = dispatched.accepted_us();
            measured.figures.add("dispatch_p50_us", p50);
            measured.figures.add("dispatch_p95_us", p95);
            let [p50, p95] = dispatched.asked_us();
            measured.figures.add("asked_p50_us", p50);
            measured.figures.add("asked_p95_us", p95);
        }
        if self.wants(Part::Output) {
            subject.until_quiet().await;
            let mut delays = live::delays_us(&subject.client).await?;
            delays.sort_by(f64::total_cmp);
            measured.figures.add("output_p50_us", summary(&delays).median);
        }
        if self.wants(Part::Sync) {
            self.sync(measured, &subject)?;
        }
        if self.wants(Part::Direct) {
            let published =
                self.yardsticks.publish(subject.queue(), &subject::queue(ECHO)?, self.effort.invocations)?;
            measured.figures.add("direct_per_s", published.executed_per_s);
            subject.until_done(ECHO).await?;
        }
        if self.wants(Part::Warm) {
            self.warm(measured, &subject).await?;
        }
        if self.wants(Part::Fresh) {
            self.fresh(measured, &subject)?;
        }
        if self.wants(Part::Lambda) {
            self.lambda(measured, &subject)?;
        }
        if self.wants(Part::Async) {
            self.asynchronous(measured, &subject).await?;
        }
        if self.wants(Part::Memory) {
            let names = ["up_worker_after_mb", "up_launcher_after_mb", "up_nats_after_mb"];
            memory(&mut measured.figures, &subject.look(), names);
        }
        Ok(())
    }

    fn sync(&self, measured: &mut Measured, subject: &Subject) -> Result<(), CliError> {
        let route = self.yardsticks.route(subject.queue())?;
        let floor = self.yardsticks.load(&self.load(&route.url, 1).body(BODY))?;
        measured.figures.add("route_p50_us", floor.p50_us);
        let url = subject.execute_url(ECHO);
        let (one, used) = self.costing(subject, &self.load(&url, 1).headers(&headers()).body(&body()))?;
        measured.figures.add("sync_p50_us", one.p50_us);
        measured.figures.add("sync_p99_us", one.p99_us);
        measured.costs.add("sync, c=1", used, one.calls());

        let floor = self.yardsticks.load(&self.load(&route.url, MANY).body(BODY))?;
        measured.figures.add("route_per_s", floor.per_s);
        let (many, used) = self.costing(subject, &self.load(&url, MANY).headers(&headers()).body(&body()))?;
        measured.figures.add("sync_per_s", many.per_s);
        measured.figures.add("sync_many_p99_us", many.p99_us);
        measured.costs.add("sync, c=16", used, many.calls());
        Ok(())
    }

    /// The route is measured again beside it: a part may be measured by itself.
    async fn warm(&self, measured: &mut Measured, subject: &Subject) -> Result<(), CliError> {
        let route = self.yardsticks.route(subject.queue())?;
        let url = subject.execute_url(WARM);
        let floor = self.yardsticks.load(&self.load(&route.url, 1).body(BODY))?;
        let (one, used) = self.costing(subject, &self.load(&url, 1).headers(&headers()).body(&body()))?;
        measured.figures.add("warm_route_p50_us", floor.p50_us);
        measured.figures.add("warm_p50_us", one.p50_us);
        measured.figures.add("warm_p99_us", one.p99_us);
        measured.costs.add("sync, a warm Python handler, c=1", used, one.calls());

        let floor = self.yardsticks.load(&self.load(&route.url, MANY).body(BODY))?;
        let (many, used) = self.costing(subject, &self.load(&url, MANY).headers(&headers()).body(&body()))?;
        measured.figures.add("warm_route_per_s", floor.per_s);
        measured.figures.add("warm_per_s", many.per_s);
        measured.figures.add("warm_many_p99_us", many.p99_us);
        measured.costs.add("sync, a warm Python handler, c=16", used, many.calls());

        // Each is far quicker than a process: more of them, or their beginning is most of it.
        let messages = self.effort.invocations * 5;
        let published = self.yardsticks.publish(subject.queue(), &subject::queue(WARM)?, messages)?;
        measured.figures.add("warm_direct_per_s", published.executed_per_s);
        subject.until_done(WARM).await
    }

    /// The whole call, HTTP and queue and all, against what starting an interpreter alone takes.
    fn fresh(&self, measured: &mut Measured, subject: &Subject) -> Result<(), CliError> {
        let python = self.yardsticks.python_start(self.effort.seconds)?;
        let url = subject.execute_url(FRESH);
        let (one, used) = self.costing(subject, &self.load(&url, 1).headers(&headers()).body(&body()))?;
        measured.figures.add("python_p50_us", python.p50_us);
        measured.figures.add("fresh_p50_us", one.p50_us);
        measured.figures.add("fresh_p99_us", one.p99_us);
        measured.costs.add("sync, a forked Python handler, c=1", used, one.calls());
        Ok(())
    }

    /// The warm worker is measured again beside it: a part may be measured by itself.
    fn lambda(&self, measured: &mut Measured, subject: &Subject) -> Result<(), CliError> {
        let framed = self.load(&subject.execute_url(WARM), 1);
        let framed = self.yardsticks.load(&framed.headers(&headers()).body(&body()))?;
        let url = subject.execute_url(LAMBDA);
        let (one, used) = self.costing(subject, &self.load(&url, 1).headers(&headers()).body(&body()))?;
        measured.figures.add("framed_p50_us", framed.p50_us);
        measured.figures.add("lambda_p50_us", one.p50_us);
        measured.figures.add("lambda_p99_us", one.p99_us);
        measured.costs.add("sync, a warm Lambda package, c=1", used, one.calls());
        let many = self.yardsticks.load(&self.load(&url, MANY).headers(&headers()).body(&body()))?;
        measured.figures.add("lambda_per_s", many.per_s);
        Ok(())
    }

    async fn asynchronous(&self, measured: &mut Measured, subject: &Subject) -> Result<(), CliError> {
        let url = subject.async_url(ECHO);
        let load = Load::counted(&url, MANY, self.effort.invocations).headers(&headers()).body(&body());
        let (begun, before) = (Instant::now(), subject.look());
        let accepted = self.yardsticks.load(&load)?;
        subject.until_done(ECHO).await?;
        measured.figures.add("executed_per_s", accepted.calls() / begun.elapsed().as_secs_f64());
        let used = with_generator(&subject.look(), &before, &accepted);
        measured.costs.add("async, accepted to outcome, c=16", used, accepted.calls());

        // Of a function that no agent has room for: what accepting costs, without what running costs. What it leaves
        // behind ends with this Flux.
        let url = subject.async_url(WAITS);
        let accepted = self.yardsticks.load(&self.load(&url, MANY).headers(&headers()).body(&body()))?;
        measured.figures.add("accepted_per_s", accepted.per_s);
        Ok(())
    }

    fn costing(&self, subject: &Subject, load: &Load) -> Result<(Loaded, BTreeMap<Role, Cost>), CliError> {
        let before = subject.look();
        let loaded = self.yardsticks.load(load)?;
        let used = with_generator(&subject.look(), &before, &loaded);
        Ok((loaded, used))
    }
}

fn with_generator(now: &Snapshot, before: &Snapshot, load: &Loaded) -> BTreeMap<Role, Cost> {
    let mut used = now.since(before);
    used.insert(Role::Generator, load.generator);
    used
}

fn memory(figures: &mut Figures, look: &Snapshot, [worker, launcher, nats]: [&'static str; 3]) {
    let resident = look.resident_mb();
    for (name, role) in [(worker, Role::Worker), (launcher, Role::Launcher), (nats, Role::Nats)] {
        figures.add(name, resident.get(&role).copied().unwrap_or_default());
    }
}

/// Another function, whose folder is beside the echo's.
pub(super) fn beside(function: &Path, name: &str) -> PathBuf {
    function.with_file_name(name)
}
