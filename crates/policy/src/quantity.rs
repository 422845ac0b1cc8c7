//! Sizes, times and shares as people write them: `"512m"`, `"2GiB"`, `"10m"`, `1.5`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Larger sizes are a slip: one exbibyte.
pub const MAX_BYTES: u64 = 1 << 60;
/// Longer times are a slip: one year, in milliseconds.
pub const MAX_MILLIS: u64 = 365 * 24 * 60 * 60 * 1000;
/// More is a slip: 1024 CPUs, in hundredths.
pub const MAX_CPU_PERCENT: u32 = 102_400;

/// A size in bytes, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bytes(pub Option<u64>);

impl Bytes {
    pub const UNLIMITED: Self = Self(None);

    pub const fn new(bytes: u64) -> Self {
        Self(Some(bytes))
    }

    /// Reads `512m`, `1g`, `2GiB`, `4096`, `unlimited`. Units are powers of 1024.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not a size; write bytes or a number with k, m, g or t (\"512m\")"
            )
        };
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::UNLIMITED);
        }
        if trimmed.starts_with('-') {
            return Err(format!("\"{text}\" is negative; a size is 0 or more"));
        }
        let (number, unit) = split_unit(trimmed);
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return Err(wrong()),
        };
        match scaled(number, factor) {
            Ok(bytes) if bytes <= MAX_BYTES => Ok(Self::new(bytes)),
            Err(Unscalable::NotANumber) => Err(wrong()),
            Ok(_) | Err(Unscalable::TooLarge) => {
                Err(format!("\"{text}\" is absurdly large; the largest size is 1024 pebibytes"))
            }
        }
    }
}

/// A time in milliseconds, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Millis(pub Option<u64>);

impl Millis {
    pub const UNLIMITED: Self = Self(None);

    pub const fn new(millis: u64) -> Self {
        Self(Some(millis))
    }

    /// Reads `500ms`, `30s`, `10m`, `2h`, `1d`, `90` (seconds), `1m30s`, `unlimited`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not a time; write seconds or a number with ms, s, m, h or d (\"10m\")"
            )
        };
        let mut rest = text.trim();
        if rest.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::UNLIMITED);
        }
        if rest.starts_with('-') {
            return Err(format!("\"{text}\" is negative; a time is 0 or more"));
        }
        if rest.is_empty() {
            return Err(wrong());
        }
        let absurd = || format!("\"{text}\" is absurdly long; the longest time is 365 days");
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (number, tail) = split_unit(rest);
            let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let factor: u64 = match &tail[..end].trim().to_ascii_lowercase()[..] {
                "ms" => 1,
                "" | "s" | "sec" => 1000,
                "m" | "min" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(wrong()),
            };
            let part = scaled(number, factor).map_err(|e| match e {
                Unscalable::NotANumber => wrong(),
                Unscalable::TooLarge => absurd(),
            })?;
            total = total.checked_add(part).ok_or_else(absurd)?;
            rest = &tail[end..];
        }
        if total > MAX_MILLIS { Err(absurd()) } else { Ok(Self::new(total)) }
    }
}

/// Hundredths of one CPU, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cpu(pub Option<u32>);

impl Cpu {
    pub const UNLIMITED: Self = Self(None);

    pub const fn percent(percent: u32) -> Self {
        Self(Some(percent))
    }

    /// Reads `1.5`, `2`, `150%`, `unlimited`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::UNLIMITED);
        }
        let (number, scale) = match trimmed.strip_suffix('%') {
            Some(number) => (number, 1.0),
            None => (trimmed, 100.0),
        };
        let value: f64 = number
            .trim()
            .parse()
            .map_err(|_| format!("\"{text}\" is not a number of cpus; write 1.5 or \"150%\""))?;
        Self::from_hundredths(value * scale)
    }

    fn from_hundredths(value: f64) -> Result<Self, String> {
        let value = value.round();
        if value >= 1.0 && value <= f64::from(MAX_CPU_PERCENT) {
            Ok(Self::percent(value as u32))
        } else {
            Err("a number of cpus lies between 0.01 and 1024".to_owned())
        }
    }
}

/// A count, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Count(pub Option<u64>);

impl Count {
    pub const UNLIMITED: Self = Self(None);

    pub const fn new(count: u64) -> Self {
        Self(Some(count))
    }

    pub fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::UNLIMITED);
        }
        let wrong = || format!("\"{text}\" is not a count; write a whole number or \"unlimited\"");
        // As people write it: 100k, in thousands.
        let (number, factor) = match trimmed.strip_suffix(['k', 'K']) {
            Some(thousands) => (thousands, 1000),
            None => (trimmed, 1),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Self::new).ok_or_else(wrong)
    }
}

/// The leading number and what follows it.
fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

enum Unscalable {
    NotANumber,
    TooLarge,
}

/// `number` (digits, at most one dot) times `factor`.
fn scaled(number: &str, factor: u64) -> Result<u64, Unscalable> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && part.is_empty()) || part.contains('.') {
        return Err(Unscalable::NotANumber);
    }
    // More digits than these fit no limit and would overflow the arithmetic below.
    if whole.len() > 20 || part.len() > 9 {
        return Err(Unscalable::TooLarge);
    }
    let digits = |text: &str| match text {
        "" => Ok(0),
        text => text.parse::<u128>().map_err(|_| Unscalable::NotANumber),
    };
    let (whole, numerator) = (digits(whole)?, digits(part)?);
    let denominator = 10u128.pow(part.len() as u32);
    let total = whole * u128::from(factor) + numerator * u128::from(factor) / denominator;
    u64::try_from(total).map_err(|_| Unscalable::TooLarge)
}

macro_rules! quantity {
    ($type:ident, $expecting:literal, $doc:literal, $from_f64:expr, $schema:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Read;
                impl Visitor<'_> for Read {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_u64<E: de::Error>(self, n: u64) -> Result<$type, E> {
                        $type::parse(&n.to_string()).map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, n: i64) -> Result<$type, E> {
                        match u64::try_from(n) {
                            Ok(n) => self.visit_u64(n),
                            Err(_) => Err(E::custom(format!("{n} is negative"))),
                        }
                    }
                    fn visit_f64<E: de::Error>(self, n: f64) -> Result<$type, E> {
                        if n < 0.0 {
                            return Err(E::custom(format!("{n} is negative")));
                        }
                        $from_f64(n).map_err(E::custom)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        $type::parse(text).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Read)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let types: serde_json::Value = $schema;
                json_schema!({ "description": $doc, "anyOf": types })
            }
        }
    };
}

quantity!(
    Bytes,
    "a size such as 1048576, \"512m\" or \"2GiB\"",
    "Bytes as a whole number, or text with a unit (k, m, g, t: powers of 1024), or \"unlimited\".",
    |n: f64| Err::<Bytes, _>(format!("{n} is not a whole number of bytes")),
    serde_json::json!([
        { "type": "integer", "minimum": 0 },
        { "type": "string", "pattern": "^([0-9.]+ *([kKmMgGtT]?([iI]?[bB])?)|unlimited)$" }
    ])
);
quantity!(
    Millis,
    "a time such as 30 (seconds), \"500ms\" or \"10m\"",
    "Seconds as a number, or text with a unit (ms, s, m, h, d), or \"unlimited\".",
    |n: f64| Millis::parse(&format!("{n}")),
    serde_json::json!([
        { "type": "number", "minimum": 0 },
        { "type": "string", "pattern": "^(([0-9.]+ *(ms|s|sec|m|min|h|d)?)+|unlimited)$" }
    ])
);
quantity!(
    Cpu,
    "a number of cpus such as 1.5",
    "CPUs as a number, or text in per cent (\"150%\"), or \"unlimited\".",
    |n: f64| Cpu::from_hundredths(n * 100.0),
    serde_json::json!([
        { "type": "number", "exclusiveMinimum": 0 },
        { "type": "string", "pattern": "^([0-9.]+%?|unlimited)$" }
    ])
);
quantity!(
    Count,
    "a whole number or \"unlimited\"",
    "A whole number, or \"unlimited\".",
    |n: f64| Err::<Count, _>(format!("{n} is not a whole number")),
    serde_json::json!([{ "type": "integer", "minimum": 0 }, { "const": "unlimited" }])
);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(bytes) => serializer.serialize_u64(bytes),
            None => serializer.serialize_str("unlimited"),
        }
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(millis) if millis % 1000 == 0 => serializer.serialize_u64(millis / 1000),
            Some(millis) => serializer.serialize_str(&format!("{millis}ms")),
            None => serializer.serialize_str("unlimited"),
        }
    }
}

impl Serialize for Cpu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(percent) => serializer.serialize_f64(f64::from(percent) / 100.0),
            None => serializer.serialize_str("unlimited"),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(count) => serializer.serialize_u64(count),
            None => serializer.serialize_str("unlimited"),
        }
    }
}
