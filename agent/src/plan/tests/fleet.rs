//! Several agents at the same queues, and a gateway that tells one of them by name where none can wait everywhere.

use flux_protocol::{agent::waits_everywhere, limits};

use super::*;

struct Waiting {
    agent: usize,
    credit: Credit,
    expires_at_ms: u64,
}

struct Fleet {
    agents: Vec<Planner>,
    tasks: u64,
    queues: Vec<QueueName>,
    /// Pulls that wait, oldest first.
    waiting: HashMap<QueueName, VecDeque<Waiting>>,
    messages: HashMap<QueueName, u64>,
    running: Vec<(u64, usize, Slot)>,
    now_ms: u64,
    pulls: u64,
}

impl Fleet {
    fn new(agents: usize, tasks: u64, queues: usize) -> Self {
        let planners = (0..agents).map(|seed| Planner::new(budget(tasks), seed as u64)).collect();
        let mut fleet = Self {
            agents: planners,
            tasks,
            queues: (0..queues).map(|n| name(Lane::Call, n)).collect(),
            waiting: HashMap::new(),
            messages: HashMap::new(),
            running: Vec::new(),
            now_ms: 0,
            pulls: 0,
        };
        for queue in fleet.queues.clone() {
            fleet.heat(&queue);
        }
        fleet
    }

    fn heat(&mut self, queue: &QueueName) {
        for agent in &mut self.agents {
            agent.heat(queue, Some(need(100, 128, u64::MAX)), false);
        }
        self.settle();
    }

    /// As gateways do, who tell one more agent of what is not taken at once.
    fn publish(&mut self, queue: &QueueName, home: usize) {
        *self.messages.entry(queue.clone()).or_default() += 1;
        if !waits_everywhere(self.tasks, self.queues.len() as u64) {
            self.tell(queue, home);
        }
        self.settle();
    }

    fn tell(&mut self, queue: &QueueName, home: usize) {
        let home = home % self.agents.len();
        self.agents[home].ring(queue);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for agent in 0..self.agents.len() {
                let mut grants = Vec::new();
                self.agents[agent].plan(self.now_ms, &mut grants);
                for grant in grants {
                    moved = true;
                    self.pulls += 1;
                    let waiting = self.waiting.entry(grant.name).or_default();
                    if waiting.len() >= limits::PULLS_WAITING as usize {
                        self.agents[agent].ended(grant.credit, PullEnd::Covered, self.now_ms);
                        continue;
                    }
                    let expires_at_ms = self.now_ms + u64::try_from(grant.expires.as_millis()).expect("short");
                    waiting.push_back(Waiting { agent, credit: grant.credit, expires_at_ms });
                }
            }
            moved |= self.deliver();
            if !moved {
                return;
            }
        }
    }

    fn deliver(&mut self) -> bool {
        let mut any = false;
        for (queue, left) in self.messages.iter_mut().filter(|(_, left)| **left > 0) {
            let Some(waiting) = self.waiting.get_mut(queue) else { continue };
            while *left > 0
                && let Some(mut pull) = waiting.pop_front()
            {
                any = true;
                *left -= 1;
                let planner = &mut self.agents[pull.agent];
                let slot = planner.delivered(&mut pull.credit, Some(*left), self.now_ms);
                self.running.push((self.now_ms + 5, pull.agent, slot));
                if pull.credit.left == 0 {
                    planner.ended(pull.credit, PullEnd::Expired, self.now_ms);
                } else {
                    waiting.push_back(pull);
                }
            }
        }
        any
    }

    fn advance(&mut self, by_ms: u64) {
        self.now_ms += by_ms;
        let now_ms = self.now_ms;
        let (over, going): (Vec<_>, Vec<_>) = self.running.drain(..).partition(|(ends, _, _)| *ends <= now_ms);
        self.running = going;
        for (_, agent, slot) in over {
            self.agents[agent].finished(slot);
        }
        for waiting in self.waiting.values_mut() {
            let (over, going): (VecDeque<_>, VecDeque<_>) =
                waiting.drain(..).partition(|pull| pull.expires_at_ms <= now_ms);
            *waiting = going;
            for pull in over {
                self.agents[pull.agent].ended(pull.credit, PullEnd::Expired, now_ms);
            }
        }
        self.settle();
    }

    fn left(&self) -> u64 {
        self.messages.values().sum()
    }
}

/// What was wrong: an idle node lent its last slots to queues that had worked a moment ago, so that the sixth function in a
/// row that got its first message waited for a pull on another to end.
#[test]
fn first_messages_in_a_row_find_a_credit() {
    let mut fleet = Fleet::new(1, 32, 20);
    for _ in 0..20 {
        fleet.advance(500);
    }
    for n in 20..120 {
        let queue = name(Lane::Call, n);
        fleet.queues.push(queue.clone());
        fleet.heat(&queue);
        fleet.publish(&queue, 0);
        assert_eq!(fleet.left(), 0, "function {n} waits");
        fleet.advance(3);
    }
}

/// Where agents wait everywhere nobody tells them: then the last slot is one to wait with, too.
#[test]
fn every_slot_is_reached_where_nobody_tells() {
    for tasks in [1, 2, 8, 32] {
        let mut world = World::new(budget(tasks));
        let queue = name(Lane::Invoke, 0);
        world.add(&queue, need(100, 128, u64::MAX), 600_000);
        for _ in 0..tasks {
            world.arrive(&queue, 1);
            world.run(10_000, 100, |_| ());
        }
        assert_eq!(world.running_of(&queue), tasks);
    }
}

/// What was wrong: with more hot queues than agents can wait at, each agent chose by itself where to wait, and 100 of them
/// sent ten thousand pulls a second.
#[test]
fn many_idle_hot_queues_cost_little_and_no_more_when_they_are_more() {
    let pulls = |queues| {
        let mut fleet = Fleet::new(20, 32, queues);
        fleet.advance(7_000);
        fleet.pulls = 0;
        for _ in 0..600 {
            fleet.advance(100);
        }
        fleet.pulls
    };
    let (some, many) = (pulls(100), pulls(400));
    assert!(some <= 20 * 32 / 8 * 11, "{some} pulls in a minute");
    assert!(many <= some + some / 10, "{some} pulls with 100 queues, {many} with 400");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However many agents and hot queues there are, a message of any queue is taken, by about one pull of its own: at once,
    /// unless the reserve of those who were told is lent to what they were told of before in vain; then when that is over.
    #[test]
    fn every_message_finds_an_agent(
        agents in 1_usize..16,
        tasks in 2_u64..40,
        queues in 1_usize..150,
        seed in any::<u64>(),
    ) {
        let mut random = flux_testkit::Seed::new(seed);
        let mut below = |most: usize| usize::try_from(random.below(most as u64)).expect("an index");
        let mut fleet = Fleet::new(agents, tasks, queues);
        for _ in 0..8 {
            fleet.advance(1_000);
        }
        let (pulls, began_ms) = (fleet.pulls, fleet.now_ms);
        let mut late = 0;
        let rung_ms = u64::try_from(limits::PULL_EXPIRES_RUNG.as_millis()).expect("short");
        for _ in 0..300 {
            let queue = below(queues);
            let name = fleet.queues[queue].clone();
            let asked_ms = fleet.now_ms;
            fleet.publish(&name, queue);
            late += fleet.left();
            while fleet.left() > 0 {
                fleet.advance(5);
                fleet.tell(&name, queue + 1);
                prop_assert!(fleet.now_ms - asked_ms <= rung_ms + 5, "{:?} waits", name);
            }
            fleet.advance(6 + below(100) as u64);
        }
        prop_assert!(tasks < 32 || late == 0, "{} of 300 waited", late);
        // Beside those that waited anyway, long or in turns.
        let idle = (fleet.now_ms - began_ms) / 250 * (agents as u64 * tasks).min((queues as u64) * u64::from(limits::PULLS_WAITING));
        let sent = fleet.pulls - pulls;
        prop_assert!(sent <= 3 * 300 + idle, "{} pulls for 300 messages, {} might have been idle", sent, idle);
    }
}
