//! Durations as people write them: `30` (seconds), `1.5`, `250ms`, `10s`, `5m`, `6h`.

use std::time::Duration;

/// # Errors
/// The text is no number with an optional unit of `ms s m h d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let shown = || text.chars().take(64).collect::<String>();
    let wrong = || format!("`{}` is not a duration: write 250ms, 10s, 5m or 6h", shown());
    let unit_at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_millis: u32 = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    let duration = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(u64::from(unit_millis)).map(Duration::from_millis),
        Err(_) => {
            let number: f64 = number.parse().map_err(|_| wrong())?;
            Duration::try_from_secs_f64(number * f64::from(unit_millis) / 1000.0).ok().and_then(whole_millis)
        }
    };
    duration.ok_or_else(|| format!("`{}` is out of range for a duration", shown()))
}

/// The next whole millisecond: what [`format_duration`] writes. Up, since 0 often means "without limit".
pub(super) fn whole_millis(duration: Duration) -> Option<Duration> {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).ok().map(Duration::from_millis)
}

/// The shortest exact form of a duration in whole milliseconds.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        m if m % 3_600_000 == 0 => format!("{}h", m / 3_600_000),
        m if m % 60_000 == 0 => format!("{}m", m / 60_000),
        m if m % 1000 == 0 => format!("{}s", m / 1000),
        m => format!("{m}ms"),
    }
}

pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(in crate::function) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_duration(*value))
    }

    pub(in crate::function) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

pub(super) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(in crate::function) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            None => serializer.serialize_u64(0),
            Some(value) if value.subsec_nanos() == 0 => serializer.serialize_u64(value.as_secs()),
            Some(value) => serializer.serialize_f64(value.as_secs_f64()),
        }
    }

    pub(in crate::function) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        let duration = Duration::try_from_secs_f64(seconds).map_err(D::Error::custom)?;
        Ok((!duration.is_zero()).then_some(duration))
    }
}
