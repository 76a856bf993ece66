//! When invocations come, and how long each takes.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Shapes of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// 40 a second for two hours.
    Steady,
    /// From 5 to 60 a second and back, in a day.
    Daily,
    /// 8 a second, and ten times that for ten minutes of every hour.
    Spike,
    /// 4 a second, and 300 more within five seconds every five minutes.
    Burst,
    /// Nothing, and 24 a second for eight minutes of every half hour.
    Zero,
}

impl Shape {
    pub const ALL: [Self; 5] = [Self::Steady, Self::Daily, Self::Spike, Self::Burst, Self::Zero];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Daily => "daily",
            Self::Spike => "spike",
            Self::Burst => "burst",
            Self::Zero => "zero",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.as_str() == name)
    }

    /// Seconds.
    pub const fn lasts(self) -> u32 {
        match self {
            Self::Steady => 2 * 3600,
            Self::Daily => 24 * 3600,
            Self::Spike | Self::Zero => 4 * 3600,
            Self::Burst => 3 * 3600,
        }
    }

    /// Invocations a second, at a second.
    fn rate(self, second: u32) -> f64 {
        match self {
            Self::Steady => 40.0,
            Self::Daily => {
                let turn = f64::from(second) / 86_400.0 * std::f64::consts::TAU;
                32.5 - 27.5 * turn.cos()
            }
            Self::Spike if (2400..3000).contains(&(second % 3600)) => 80.0,
            Self::Spike => 8.0,
            Self::Burst if second % 300 < 5 => 64.0,
            Self::Burst => 4.0,
            Self::Zero if (900..1380).contains(&(second % 1800)) => 24.0,
            Self::Zero => 0.0,
        }
    }
}

/// One invocation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Seconds from the start.
    pub at: f64,
    /// Seconds that it takes.
    pub takes: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    pub name: String,
    /// In order.
    pub arrivals: Vec<Arrival>,
    /// Seconds.
    pub lasts: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrafficError {
    #[error("line {line}: {what}; each is `second,invocations` or `second,invocations,seconds each`")]
    Line { line: usize, what: &'static str },
    #[error("there are more than {most} invocations in it")]
    TooMany { most: usize },
    #[error("there is no invocation in it")]
    Empty,
}

/// What is simulated at most.
const MOST: usize = 20_000_000;
/// Two weeks.
const LONGEST: f64 = 14.0 * 86_400.0;

impl Traffic {
    /// Made from a shape: arrivals and lengths are exponential, with lengths of a second on average.
    pub fn of_shape(shape: Shape, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut arrivals = Vec::new();
        for second in 0..shape.lasts() {
            push_second(&mut arrivals, &mut random, f64::from(second), shape.rate(second), 1.0);
        }
        Self { name: shape.as_str().to_owned(), arrivals, lasts: shape.lasts() }
    }

    /// Recorded: a line for each second that had any, with how many came, and how long they took on average.
    ///
    /// # Errors
    /// A line is not one, or there is nothing, or too much, in it.
    pub fn of_trace(name: &str, text: &str, seed: u64) -> Result<Self, TrafficError> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut arrivals: Vec<Arrival> = Vec::new();
        let mut lasts = 0.0_f64;
        for (line, text) in text.lines().enumerate() {
            let line = line + 1;
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let mut fields =
                text.split(',').map(|field| field.trim().parse::<f64>().ok().filter(|value| *value >= 0.0));
            let second = fields.next().flatten().filter(|second| *second < LONGEST);
            let second = second.ok_or(TrafficError::Line { line, what: "the first field is no second" })?;
            let count = fields.next().flatten();
            let count =
                count.ok_or(TrafficError::Line { line, what: "the second field is no number of invocations" })?;
            let takes = match fields.next() {
                None => 1.0,
                Some(takes) => takes.ok_or(TrafficError::Line { line, what: "the third field is no length" })?,
            };
            if second < lasts - 1.0 {
                return Err(TrafficError::Line { line, what: "it is earlier than the line before" });
            }
            let whole = usize::try_from(whole(count)).unwrap_or(usize::MAX);
            if arrivals.len().saturating_add(whole) > MOST {
                return Err(TrafficError::TooMany { most: MOST });
            }
            let mut offsets: Vec<f64> = (0..whole).map(|_| random.random()).collect();
            offsets.sort_by(f64::total_cmp);
            arrivals.extend(
                offsets
                    .into_iter()
                    .map(|offset| Arrival { at: second + offset, takes: exponential(&mut random) * takes }),
            );
            lasts = second + 1.0;
        }
        if arrivals.is_empty() {
            return Err(TrafficError::Empty);
        }
        arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(Self { name: name.to_owned(), arrivals, lasts: u32::try_from(whole(lasts)).unwrap_or(u32::MAX) })
    }
}

fn push_second(arrivals: &mut Vec<Arrival>, random: &mut StdRng, second: f64, rate: f64, takes: f64) {
    if rate <= 0.0 {
        return;
    }
    let mut at = exponential(random) / rate;
    while at < 1.0 {
        arrivals.push(Arrival { at: second + at, takes: exponential(random) * takes });
        at += exponential(random) / rate;
    }
}

/// Of mean one.
fn exponential(random: &mut StdRng) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // not negative, and saturating
fn whole(value: f64) -> u64 {
    value as u64
}
