//! How values are worded in tables.

use std::{borrow::Cow, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use flux_protocol::{Timestamp, time};

use crate::output::Output;

pub(crate) const NOTHING: &str = "-";

/// The time since, in its largest unit: `12s`, `5m`, `3h`, `2d`.
pub(crate) fn age(since: Option<Timestamp>) -> String {
    since.map_or_else(|| NOTHING.to_owned(), |since| span(time::now().since(since)))
}

pub(crate) fn span(span: Duration) -> String {
    match span.as_secs() {
        s if s < 120 => format!("{s}s"),
        s if s < 2 * 3600 => format!("{}m", s / 60),
        s if s < 48 * 3600 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// An output as it was written: the exact bytes, where the answer has them beside the text.
pub(crate) fn output_bytes<'a>(text: &'a str, exact: Option<&str>) -> Cow<'a, [u8]> {
    match exact.and_then(|encoded| BASE64.decode(encoded).ok()) {
        Some(bytes) => bytes.into(),
        None => text.as_bytes().into(),
    }
}

/// Says that an output is not whole.
pub(crate) fn note_dropped(out: Output, bytes: u64) {
    if bytes > 0 {
        out.note(format!("{bytes} bytes of the middle of the output were not kept: it was over the limit"));
    }
}

/// Milliseconds with as many digits as mean something.
pub(crate) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.1} s", ms / 1_000.0),
        ms => format!("{:.0} min", ms / 60_000.0),
    }
}

pub(crate) fn mb(mb: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // one decimal is shown
    let gb = mb as f64 / 1024.0;
    if mb < 1024 { format!("{mb} MB") } else { format!("{gb:.1} GB") }
}

/// The first digits of a digest: enough to tell two apart.
pub(crate) fn digest(digest: Option<&str>) -> String {
    digest.map_or_else(|| NOTHING.to_owned(), |text| text.chars().take("sha256:".len() + 12).collect())
}

/// One line of at most `width` characters.
pub(crate) fn one_line(text: &str, width: usize) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    if line.chars().count() <= width {
        return line.to_owned();
    }
    line.chars().take(width - 1).chain(['…']).collect()
}

pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_keep_two_digits_or_so() {
        assert_eq!(span(Duration::from_secs(119)), "119s");
        assert_eq!(span(Duration::from_secs(120)), "2m");
        assert_eq!(span(Duration::from_secs(86_400)), "24h");
        assert_eq!(millis(1.234), "1.23 ms");
        assert_eq!(millis(1_500.0), "1.5 s");
        assert_eq!(mb(1536), "1.5 GB");
        assert_eq!(one_line("\n  first line is long\nsecond", 8), "first l…");
        assert_eq!(digest(Some("sha256:0123456789abcdef")), "sha256:0123456789ab");
    }
}
