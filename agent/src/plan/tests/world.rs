//! A broker, its queues and what runs, as one agent's planner sees them. After every step the books must balance.

use super::*;

pub(super) fn name(lane: Lane, function: usize) -> QueueName {
    let function = FunctionName::parse(&format!("f{function}")).expect("a name");
    QueueName::new(lane, PoolName::default(), function)
}

pub(super) fn need(cpu: u32, memory: u32, max_concurrency: u64) -> Need {
    let each = Amount::of_one(flux_protocol::function::Resources { cpu, memory });
    Need { each, max_concurrency }
}

pub(super) fn budget(tasks: u64) -> Amount {
    Amount { tasks, cpu_millicores: tasks * 100, memory_mb: tasks * 128 }
}

pub(super) struct Pull {
    pub(super) credit: Credit,
    pub(super) expires_at_ms: u64,
}

/// One agent's planner and all that happens around it.
pub(super) struct World {
    pub(super) planner: Planner,
    pub(super) total: Amount,
    pub(super) now_ms: u64,
    pub(super) needs: HashMap<FunctionName, Need>,
    pub(super) waiting: HashMap<QueueName, u64>,
    pub(super) waiting_since_ms: HashMap<QueueName, u64>,
    pub(super) longest_wait_ms: u64,
    pub(super) pulls: HashMap<QueueName, VecDeque<Pull>>,
    pub(super) running: Vec<(u64, QueueName, Slot)>,
    pub(super) duration_ms: HashMap<QueueName, u64>,
    pub(super) delivered: HashMap<QueueName, u64>,
    pub(super) pulls_sent: u64,
    pub(super) pending_counts: bool,
}

impl World {
    pub(super) fn new(total: Amount) -> Self {
        Self {
            planner: Planner::new(total, 0),
            total,
            now_ms: 0,
            needs: HashMap::new(),
            waiting: HashMap::new(),
            waiting_since_ms: HashMap::new(),
            longest_wait_ms: 0,
            pulls: HashMap::new(),
            running: Vec::new(),
            duration_ms: HashMap::new(),
            delivered: HashMap::new(),
            pulls_sent: 0,
            pending_counts: true,
        }
    }

    pub(super) fn add(&mut self, queue: &QueueName, need: Need, duration_ms: u64) {
        let need = *self.needs.entry(queue.function.clone()).or_insert(need);
        self.duration_ms.insert(queue.clone(), duration_ms);
        self.planner.heat(queue, Some(need), true);
        self.settle();
    }

    pub(super) fn arrive(&mut self, queue: &QueueName, count: u64) {
        if *self.waiting.entry(queue.clone()).or_default() == 0 {
            self.waiting_since_ms.insert(queue.clone(), self.now_ms);
        }
        *self.waiting.entry(queue.clone()).or_default() += count;
        self.settle();
    }

    pub(super) fn credit_of(&self, queue: &QueueName) -> u64 {
        self.pulls.get(queue).map_or(0, |pulls| pulls.iter().map(|pull| pull.credit.left).sum())
    }

    pub(super) fn running_of(&self, queue: &QueueName) -> u64 {
        self.running.iter().filter(|(_, of, _)| of == queue).count() as u64
    }

    /// Plans, delivers what can be delivered, and again, until nothing moves.
    pub(super) fn settle(&mut self) {
        loop {
            let mut grants = Vec::new();
            self.planner.plan(self.now_ms, &mut grants);
            self.check_books_after(&grants);
            let granted = !grants.is_empty();
            for grant in grants {
                assert!(grant.batch() > 0);
                self.pulls_sent += 1;
                let expires_at_ms = self.now_ms + u64::try_from(grant.expires.as_millis()).expect("short");
                self.pulls.entry(grant.name).or_default().push_back(Pull { credit: grant.credit, expires_at_ms });
            }
            self.check_work_conserving();
            let delivered = self.deliver();
            if !granted && !delivered {
                return;
            }
        }
    }

    pub(super) fn deliver(&mut self) -> bool {
        let mut any = false;
        let queues: Vec<QueueName> = self.waiting.iter().filter(|(_, n)| **n > 0).map(|(q, _)| q.clone()).collect();
        for queue in queues {
            while self.waiting[&queue] > 0 {
                let Some(pull) = self.pulls.get_mut(&queue).and_then(VecDeque::front_mut) else { break };
                let left = self.waiting[&queue] - 1;
                self.waiting.insert(queue.clone(), left);
                let pending = self.pending_counts.then_some(left);
                let slot = self.planner.delivered(&mut pull.credit, pending, self.now_ms);
                if pull.credit.left == 0 {
                    let pull = self.pulls.get_mut(&queue).and_then(VecDeque::pop_front).expect("it was there");
                    self.planner.ended(pull.credit, PullEnd::Expired, self.now_ms);
                }
                self.running.push((self.now_ms + self.duration_ms[&queue], queue.clone(), slot));
                *self.delivered.entry(queue.clone()).or_default() += 1;
                let since = self.waiting_since_ms.insert(queue.clone(), self.now_ms).expect("it waited");
                self.longest_wait_ms = self.longest_wait_ms.max(self.now_ms - since);
                any = true;
            }
        }
        any
    }

    pub(super) fn advance(&mut self, by_ms: u64) {
        self.now_ms += by_ms;
        let now_ms = self.now_ms;
        let (over, going): (Vec<_>, Vec<_>) = self.running.drain(..).partition(|(ends, _, _)| *ends <= now_ms);
        self.running = going;
        for (_, _, slot) in over {
            self.planner.finished(slot);
        }
        for pulls in self.pulls.values_mut() {
            let (over, going): (VecDeque<_>, VecDeque<_>) =
                pulls.drain(..).partition(|pull| pull.expires_at_ms <= now_ms);
            *pulls = going;
            for pull in over {
                self.planner.ended(pull.credit, PullEnd::Expired, now_ms);
            }
        }
        self.settle();
    }

    pub(super) fn run(&mut self, for_ms: u64, step_ms: u64, mut each: impl FnMut(&mut Self)) {
        let end = self.now_ms + for_ms;
        while self.now_ms < end {
            self.advance(step_ms);
            each(self);
        }
    }

    /// A queue whose first message waits for longer than this.
    pub(super) fn starved(&self, most_ms: u64) -> Option<&QueueName> {
        let waits = |queue: &&QueueName| self.now_ms - self.waiting_since_ms[*queue] > most_ms;
        self.waiting.iter().filter(|(_, left)| **left > 0).map(|(queue, _)| queue).find(waits)
    }

    /// What is out, counted from the outside, is within the budget and within each function's concurrency.
    pub(super) fn check_books_after(&self, grants: &[Grant]) {
        let mut used = Amount::default();
        let mut per_function: HashMap<&FunctionName, u64> = HashMap::new();
        let pulls =
            self.pulls.iter().flat_map(|(queue, pulls)| pulls.iter().map(move |pull| (queue, pull.credit.left)));
        let running = self.running.iter().map(|(_, queue, _)| (queue, 1));
        let granted = grants.iter().map(|grant| (&grant.name, grant.batch()));
        for (queue, count) in pulls.chain(running).chain(granted) {
            used = used.plus(self.needs[&queue.function].each.times(count));
            *per_function.entry(&queue.function).or_default() += count;
        }
        assert!(used.fits_in(self.total), "{used:?} is over {:?}", self.total);
        assert_eq!(used, self.planner.used, "the planner's books");
        for (function, count) in per_function {
            assert!(count <= self.needs[function].max_concurrency, "{function} has {count}");
        }
    }

    /// Room stays free beside known work only where a claim saves it up.
    pub(super) fn check_work_conserving(&self) {
        if self.planner.claim.is_some() {
            return;
        }
        let room = self.total.minus(self.planner.used);
        for key in self.planner.busy.iter().take(LOOKED_AT) {
            let need = self.planner.each_of(key.2).expect("busy queues have a need");
            assert!(!need.fits_in(room), "{:?} waits beside {room:?}", self.planner.queue(key.2));
        }
    }
}

impl Planner {
    pub(super) fn each_of(&self, queue: usize) -> Option<Amount> {
        self.function(self.queue(queue)?.function)?.need.map(|need| need.each)
    }
}
