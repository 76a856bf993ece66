//! What is shown of a look and of what was decided at it.

use std::collections::BTreeMap;

use flux_plan::{Act, Action, Decision, Demand, Reason, Rule};
use flux_protocol::autoscaler::{ActionRecord, DecisionRecord, SaidReason};
use flux_provider::NodeId;

pub(crate) fn numbers(demand: &Demand) -> BTreeMap<String, f64> {
    let numbers = [
        ("wanted_slots", demand.wanted),
        ("capacity_slots", demand.capacity),
        ("load_slots", demand.load),
        ("burst_slots", demand.burst),
        ("service_sec", demand.service_seconds),
        ("waiting", count(demand.waiting)),
        ("oldest_wait_sec", demand.oldest_seconds),
        ("running", f64::from(demand.running)),
    ];
    // To be read: two places are enough, without a sign on zero.
    let rounded = |value: f64| (value * 100.0).round() / 100.0 + 0.0;
    numbers.into_iter().map(|(name, value)| (name.to_owned(), rounded(value))).collect()
}

pub(crate) fn recorded(decision: &Decision) -> DecisionRecord {
    let action = |act: &Act| {
        let (action, what) = match &act.action {
            Action::Launch { provider, node_type } => ("launch", format!("{node_type} at {provider}")),
            Action::Undrain { node } => ("undrain", node.clone()),
            Action::Drain { node, replaced_by: None } => ("drain", node.clone()),
            Action::Drain { node, replaced_by: Some(larger) } => ("drain", format!("{node}, for a {larger}")),
            Action::Terminate { node } => ("terminate", node.clone()),
        };
        ActionRecord { action: action.to_owned(), what, reason: said(&act.reason), output: None }
    };
    DecisionRecord { at: decision.at, actions: decision.actions.iter().map(action).collect() }
}

pub(crate) fn stray(id: &NodeId) -> Reason {
    let said = format!("{id} has this cluster's tag and no name of ours: it is left alone");
    Reason { rule: Rule::Held, said, inputs: BTreeMap::new() }
}

pub(crate) fn said(reason: &Reason) -> SaidReason {
    let Reason { rule, said, inputs } = reason.clone();
    SaidReason { rule: rule.as_str().to_owned(), said, inputs }
}

#[allow(clippy::cast_precision_loss)] // a count of invocations or machines
pub(crate) fn count(value: u64) -> f64 {
    value as f64
}
