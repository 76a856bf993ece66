//! Trying again what the broker refused for now, with growing pauses.

use std::time::Duration;

use flux_broker::BrokerError;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The pause before try `number` (from 1): doubling, with jitter, so that agents do not come back in step.
pub(crate) fn pause(number: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << number.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
    doubled.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// Tries until it works. Whoever may have to give up drops the future. What fails is said once, and its recovery too.
pub(crate) async fn until_ok<T, F>(what: &'static str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, BrokerError>>,
{
    let mut tries = 0_u32;
    loop {
        match attempt().await {
            Ok(value) => {
                if tries > 0 {
                    tracing::info!(what, tries, "the queue takes it again");
                }
                return value;
            }
            Err(error) => {
                tries = tries.saturating_add(1);
                if tries == 1 {
                    tracing::warn!(what, error = &error as &dyn std::error::Error, "the queue refused; trying on");
                }
                tokio::time::sleep(pause(tries)).await;
            }
        }
    }
}
