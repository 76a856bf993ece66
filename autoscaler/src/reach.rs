//! Whose machines can be ended.
//!
//! A provider that is not configured any more ends none; one that is configured for another place (a region, a project, another
//! cluster's name) does not find those that it had, and its list would say that they are gone. Either way they run, and cost:
//! they stay in the record, nothing is asked of the provider, and people are told, with what to do.

use std::{collections::BTreeMap, sync::Arc};

use flux_plan::{Reason, Rule};
use flux_provider::SharedProvider;

use crate::{fleet::Fleet, shown::count};

/// What is configured.
pub(crate) struct Reach {
    pub(crate) providers: BTreeMap<String, SharedProvider>,
    /// Where each has its machines, for people.
    pub(crate) places: BTreeMap<String, String>,
}

/// What of it may be used for a fleet.
pub(crate) struct Reached {
    pub(crate) providers: BTreeMap<String, SharedProvider>,
    /// Those that are configured, and have their machines elsewhere.
    pub(crate) moved: Vec<String>,
    /// Of machines that nobody ends.
    pub(crate) notes: Vec<Reason>,
}

impl Reach {
    /// Writes down where the machines of providers that have none yet will be.
    pub(crate) fn of(&self, fleet: &mut Fleet) -> Reached {
        let moved = fleet.settle(&self.places);
        let in_reach = self.providers.iter().filter(|(name, _)| !moved.contains_key(*name));
        let providers = in_reach.map(|(name, provider)| (name.clone(), Arc::clone(provider))).collect();
        let notes = self.notes(fleet, &providers, &moved);
        Reached { providers, moved: moved.into_keys().collect(), notes }
    }

    fn notes(
        &self,
        fleet: &Fleet,
        in_reach: &BTreeMap<String, SharedProvider>,
        moved: &BTreeMap<String, String>,
    ) -> Vec<Reason> {
        let mut of: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (name, member) in fleet.members.iter().filter(|(_, member)| !in_reach.contains_key(&member.provider)) {
            let id = member.provider_id.as_ref().map_or_else(|| name.clone(), ToString::to_string);
            of.entry(&member.provider).or_default().push(id);
        }
        let note = |(provider, ids): (&str, Vec<String>)| {
            let (is, then) = match (moved.get(provider), self.places.get(provider)) {
                (Some(from), Some(to)) => (format!("is configured for {to}, and has machines in {from}"), "change"),
                _ => ("is not in `autoscaler.providers`, and has machines".to_owned(), "remove"),
            };
            let said = format!(
                "{provider} {is} that nobody ends: {}. Configure it again as it was, run `flux autoscaler remove-nodes`, and {then} \
                 it when they are gone",
                ids.join(", ")
            );
            let machines = count(u64::try_from(ids.len()).unwrap_or(u64::MAX));
            Reason { rule: Rule::Held, said, inputs: BTreeMap::from([("machines".to_owned(), machines)]) }
        };
        of.into_iter().map(note).collect()
    }
}
