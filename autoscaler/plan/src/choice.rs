//! Which machine: where the next one is bought, and which goes first.

use std::{cmp::Ordering, collections::BTreeMap};

use crate::{NodeType, Policy, ProviderPolicy, Snapshot, capacity::slots_of_type};

/// Nodes that there are and that are being bought, as a plan goes on.
pub(crate) struct Fleet<'a> {
    policy: &'a Policy,
    snapshot: &'a Snapshot,
    /// By provider.
    counts: BTreeMap<&'a str, u32>,
    cost_per_hour: f64,
}

/// A machine that is to be bought.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer<'a> {
    pub(crate) provider: &'a ProviderPolicy,
    pub(crate) node_type: &'a NodeType,
    pub(crate) slots: f64,
}

/// Why nothing can be bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoOffer {
    /// Every provider is at its `max_nodes`.
    AtMaximum,
    /// `max_cost_per_hour` would be passed.
    AtSpendCap,
    /// Providers have none just now.
    Refused,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(policy: &'a Policy, snapshot: &'a Snapshot) -> Self {
        let mut counts = BTreeMap::new();
        let mut cost_per_hour = 0.0;
        for node in snapshot.managed() {
            *counts.entry(node.provider.as_str()).or_default() += 1;
            cost_per_hour += policy.price(&node.provider, &node.node_type);
        }
        Self { policy, snapshot, counts, cost_per_hour }
    }

    pub(crate) fn count(&self, provider: &str) -> u32 {
        self.counts.get(provider).copied().unwrap_or(0)
    }

    pub(crate) fn total(&self) -> u32 {
        self.counts.values().sum()
    }

    pub(crate) fn cost_per_hour(&self) -> f64 {
        self.cost_per_hour
    }

    /// The next machine of any provider: of the one that is furthest below its share, its smallest type that is to be had.
    pub(crate) fn offer(&self) -> Result<Offer<'a>, NoOffer> {
        let mut providers: Vec<&ProviderPolicy> = self.policy.providers.iter().collect();
        providers.sort_by(|a, b| self.fullness(a).partial_cmp(&self.fullness(b)).unwrap_or(Ordering::Equal));
        let mut why = NoOffer::AtMaximum;
        for provider in providers {
            match self.offer_of(provider) {
                Ok(offer) => return Ok(offer),
                // What would help first is what is said.
                Err(NoOffer::AtMaximum) => {}
                Err(other) => why = other,
            }
        }
        Err(why)
    }

    pub(crate) fn offer_of(&self, provider: &'a ProviderPolicy) -> Result<Offer<'a>, NoOffer> {
        if self.count(&provider.name) >= provider.max_nodes {
            return Err(NoOffer::AtMaximum);
        }
        let mut why = NoOffer::Refused;
        for node_type in &provider.node_types {
            if self.snapshot.is_refused(&provider.name, &node_type.name) {
                continue;
            }
            if !self.affords(node_type.price_per_hour) {
                why = NoOffer::AtSpendCap;
                continue;
            }
            let slots = slots_of_type(&provider.name, node_type, self.snapshot);
            return Ok(Offer { provider, node_type, slots });
        }
        Err(why)
    }

    /// Whether that much more an hour is within the cap.
    pub(crate) fn affords(&self, more_per_hour: f64) -> bool {
        self.policy.max_cost_per_hour.is_none_or(|most| self.cost_per_hour + more_per_hour <= most + 1e-9)
    }

    pub(crate) fn bought(&mut self, offer: &Offer<'a>) {
        *self.counts.entry(offer.provider.name.as_str()).or_default() += 1;
        self.cost_per_hour += offer.node_type.price_per_hour;
    }

    /// A node goes or is as good as gone.
    pub(crate) fn left(&mut self, provider: &str, node_type: &str) {
        if let Some(count) = self.counts.get_mut(provider) {
            *count = count.saturating_sub(1);
        }
        self.cost_per_hour -= self.policy.price(provider, node_type);
    }

    /// Nodes for its share.
    pub(crate) fn fullness(&self, provider: &ProviderPolicy) -> f64 {
        f64::from(self.count(&provider.name) + 1) / provider.share.max(f64::MIN_POSITIVE)
    }
}
