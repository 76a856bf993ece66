//! Invocations over HTTP, so that as many as is said are unfinished.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use flux_testkit::Api;
use futures::StreamExt as _;
use serde_json::json;

use super::FUNCTION;

const CALLERS: usize = 8;
/// Whether there is room for one more.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A closed loop: an end makes room for the next.
#[derive(Debug, Default)]
pub(super) struct Load {
    unfinished: AtomicU64,
    /// Accepted, or just being asked for.
    begun: AtomicU64,
    ended: AtomicU64,
    refused: AtomicU64,
    accepted: Mutex<Vec<String>>,
}

impl Load {
    /// From now on.
    pub(super) fn keep(&self, unfinished: u64) {
        self.unfinished.store(unfinished, Relaxed);
    }

    /// So many ends are recorded by now.
    pub(super) fn saw_ended(&self, count: u64) {
        self.ended.store(count, Relaxed);
    }

    pub(super) fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// In the order in which they were accepted.
    pub(super) fn accepted(&self) -> Vec<String> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nobody is just asking, and all that was accepted has an end.
    pub(super) fn is_done(&self) -> bool {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner).len();
        u64::try_from(accepted).is_ok_and(|accepted| accepted == self.begun()) && self.ended() >= self.begun()
    }

    /// Goes on until it is dropped.
    pub(super) async fn run(&self, api: &Api) {
        futures::stream::repeat(()).for_each_concurrent(CALLERS, |()| self.one(api)).await;
    }

    async fn one(&self, api: &Api) {
        let room = self.begun.fetch_update(Relaxed, Relaxed, |begun| {
            (begun.saturating_sub(self.ended()) < self.unfinished.load(Relaxed)).then_some(begun + 1)
        });
        if room.is_err() {
            return tokio::time::sleep(LOOK_AGAIN).await;
        }
        let answer = api.post(&format!("/execute/{FUNCTION}/async"), &json!({ "payload": {} })).await;
        match answer.json["execution_id"].as_str().filter(|_| answer.status == 202) {
            Some(id) => self.accepted.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned()),
            None => {
                self.begun.fetch_sub(1, Relaxed);
                self.refused.fetch_add(1, Relaxed);
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}
