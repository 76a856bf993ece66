//! Who knows the future: the cheapest nodes with which nothing ever waits.
//!
//! With as many slots as anybody wants, executions take as many as there are at each second. The k-th node is needed while they
//! are more than k - 1 nodes have. It is ordered its boot time before, and kept over a gap that is shorter than its boot: that is what
//! another start would cost.

use flux_plan::{Action, Phase, Snapshot};

use crate::{
    Scaler, Setting, Traffic,
    policies::{drained, launch},
    world::at,
};

pub(crate) struct Oracle {
    /// Nodes to have ordered at each poll, ready or booting.
    wanted: Vec<u32>,
    poll: f64,
    mean: u32,
    peak: u32,
}

impl Oracle {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds
    pub(crate) fn new(traffic: &Traffic, setting: &Setting) -> Self {
        let seconds = traffic.lasts as usize + 1;
        let occupied = occupied(traffic, seconds);
        let mean: f64 = occupied.iter().map(|count| f64::from(*count)).sum::<f64>() / seconds as f64;
        let peak = occupied.iter().copied().max().unwrap_or(0).div_ceil(setting.slots).min(setting.max_nodes);
        let boot = setting.boot.as_secs() as usize;
        // How many are there at each second.
        let mut there = vec![0u32; seconds];
        for level in 0..peak {
            let needed = |second: usize| occupied[second] > level * setting.slots;
            let mut second = 0;
            while second < seconds {
                if !needed(second) {
                    second += 1;
                    continue;
                }
                let (from, mut to) = (second.saturating_sub(boot), second);
                while let Some(next) = (to + 1..seconds.min(to + 2 + boot)).find(|next| needed(*next)) {
                    to = next;
                }
                there[from..=to].iter_mut().for_each(|count| *count += 1);
                second = to + 1;
            }
        }
        let poll = setting.poll.as_secs_f64();
        let polls = (seconds as f64 / poll) as usize + 1;
        // Between two polls it wants what is most.
        let wanted = (0..polls).map(|n| {
            let from = (n as f64 * poll) as usize;
            let to = ((n + 1) as f64 * poll).ceil() as usize + 1;
            there[from.min(seconds)..to.min(seconds)].iter().copied().max().unwrap_or(0)
        });
        let mean = (mean / f64::from(setting.slots)).ceil() as u32;
        Self { wanted: wanted.collect(), poll, mean: mean.max(1), peak: peak.max(1) }
    }

    pub(crate) fn mean_nodes(&self) -> u32 {
        self.mean
    }

    pub(crate) fn peak_nodes(&self) -> u32 {
        self.peak
    }
}

/// Executions in each second, if none waits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds
fn occupied(traffic: &Traffic, seconds: usize) -> Vec<u32> {
    // The most at once within each second: starts and ends in order.
    let mut edges: Vec<(f64, i64)> = Vec::with_capacity(traffic.arrivals.len() * 2);
    for arrival in &traffic.arrivals {
        edges.push((arrival.at, 1));
        edges.push((arrival.at + arrival.takes, -1));
    }
    edges.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut most = vec![0u32; seconds];
    let (mut now, mut next) = (0i64, 0);
    for (second, most) in most.iter_mut().enumerate() {
        let mut highest = now;
        while let Some((at, change)) = edges.get(next).filter(|(at, _)| (*at as usize) <= second) {
            debug_assert!(*at >= 0.0);
            now += change;
            highest = highest.max(now);
            next += 1;
        }
        *most = u32::try_from(highest).unwrap_or(0);
    }
    most
}

impl Scaler for Oracle {
    fn name(&self) -> String {
        "oracle".to_owned()
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // seconds
    fn decide(&mut self, snapshot: &Snapshot) -> Vec<Action> {
        let poll = (snapshot.at.since(at(0.0)).as_secs_f64() / self.poll).round() as usize;
        let wanted = self.wanted.get(poll).copied().unwrap_or(0) as usize;
        let draining = |node: &flux_plan::Node| matches!(node.phase, Phase::Draining { .. });
        let there = snapshot.nodes.iter().filter(|node| !draining(node)).count();
        // One that drains is taken back: it was not needed for a moment only.
        let back: Vec<&flux_plan::Node> = snapshot.nodes.iter().filter(|node| draining(node)).collect();
        let again = back.len().min(wanted.saturating_sub(there));
        let mut actions: Vec<Action> =
            back[..again].iter().map(|node| Action::Undrain { node: node.name.clone() }).collect();
        actions.extend((there + again..wanted).map(|_| launch()));
        let mut ready: Vec<&flux_plan::Node> =
            snapshot.nodes.iter().filter(|node| node.phase == Phase::Ready).collect();
        ready.sort_by_key(|node| node.load.map_or(0, |load| load.running));
        let excess = ready.iter().take(there.saturating_sub(wanted));
        actions.extend(excess.map(|node| Action::Drain { node: node.name.clone(), replaced_by: None }));
        let again: Vec<&String> = back[..again].iter().map(|node| &node.name).collect();
        let gone =
            drained(snapshot).filter(|action| !matches!(action, Action::Terminate { node } if again.contains(&node)));
        actions.extend(gone);
        actions
    }
}
