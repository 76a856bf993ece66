//! Progress of what takes more than a moment: a bar for uploads, a spinner for waiting; on a terminal only.

use std::time::Duration;

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// Bytes handed to the connection at a time: as far as a bar can be told.
const PIECE: usize = 64 * 1024;
/// What takes no longer than this shows nothing.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// A body that moves a bar as it is sent.
pub(crate) fn upload(out: Output, what: &str, body: Bytes) -> (reqwest::Body, ProgressBar) {
    let bar = hidden_unless_terminal(out, ProgressBar::new(body.len() as u64));
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    let total = body.len();
    if total <= PIECE {
        return (body.into(), bar);
    }
    let moved = bar.clone();
    let pieces = (0..total.div_ceil(PIECE)).map(move |index| {
        let piece = body.slice(index * PIECE..total.min((index + 1) * PIECE));
        moved.inc(piece.len() as u64);
        Ok::<_, std::io::Error>(piece)
    });
    (reqwest::Body::wrap_stream(futures::stream::iter(pieces)), bar)
}

/// Waits for `work` with a spinner, once that has taken a second.
pub(crate) async fn waiting<T>(out: Output, what: String, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(SHOWN_AFTER, &mut work).await {
        return done;
    }
    let bar = hidden_unless_terminal(out, ProgressBar::new_spinner());
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(120));
    let done = work.await;
    bar.finish_and_clear();
    done
}

/// A spinner whose text changes; elsewhere than on a terminal the text is a note, once.
pub(crate) fn spinner(out: Output, what: &str) -> ProgressBar {
    let bar = hidden_unless_terminal(out, ProgressBar::new_spinner());
    if bar.is_hidden() {
        out.note(what);
        return bar;
    }
    let style = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn hidden_unless_terminal(out: Output, bar: ProgressBar) -> ProgressBar {
    if !out.stderr_is_terminal || out.json {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}
