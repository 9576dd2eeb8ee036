//! Parsers of single values, for flags of both programs. Their messages complete clap's "invalid value … for …".

use std::time::Duration;

/// A number of bytes, such as `512M` or `200G`.
///
/// # Errors
/// What is wrong with the text, and how such a value is written.
pub fn byte_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = number_and_unit(text);
    let factor: u64 = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        _ => return Err(format!("unknown unit `{unit}`: use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is not a size such as 512M or 200G"))?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// A time such as `500ms`, `1.5s`, `10m` or `2h`; a bare number is seconds. It may be 0, which most flags take for "never".
///
/// # Errors
/// How a time is written.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time such as 500ms, 30s, 10m or 2h");
    let (digits, unit) = number_and_unit(text);
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// As [`duration`], but longer than nothing.
///
/// # Errors
/// As [`duration`], and if it is 0.
pub fn duration_above_zero(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("must be above 0".to_owned()) } else { Ok(time) })
}

/// The letters at the end, and what is in front of them.
fn number_and_unit(text: &str) -> (&str, &str) {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    (digits, text.strip_prefix(digits).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!((byte_size("512M"), byte_size("3"), byte_size("2GiB")), (Ok(512 << 20), Ok(3), Ok(2 << 30)));
        assert!(byte_size("2X").unwrap_err().contains("use K, M, G or T"));
        for wrong in ["", "M", "-1M", "1.5G", "99999999T", "5 M", "５M"] {
            assert!(byte_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units() {
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!((seconds("90"), seconds("90s"), seconds("1.5s")), (Ok(90.0), Ok(90.0), Ok(1.5)));
        assert_eq!((seconds("500ms"), seconds("10m"), seconds("2h")), (Ok(0.5), Ok(600.0), Ok(7200.0)));
        assert_eq!((seconds("0"), duration_above_zero("1ms").is_ok()), (Ok(0.0), true));
        for wrong in ["", "s", "m", "-1s", "10d", "inf", "nan", "99999999999999999999h"] {
            assert!(seconds(wrong).unwrap_err().contains("10m"), "{wrong}");
        }
        assert_eq!(duration_above_zero("0s").unwrap_err(), "must be above 0");
    }
}
