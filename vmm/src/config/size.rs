//! Sizes as people write them: `512M`, `2G`, `1.5G`, `4096`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A number of bytes. Units are powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// What is wrong with a size.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SizeError {
    /// Not a number with a known unit.
    #[error("not a size: write bytes, or a number with K, M, G or T, such as 512M, 2G or 1.5G")]
    Malformed,
    /// More than 64 bits of bytes.
    #[error("the size is beyond 16 EiB: is the unit right?")]
    TooLarge,
}

const UNITS: [(&str, u64); 5] = [("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)];
/// Decimals beyond these can't change a byte of anything sensible, and would overflow the exact arithmetic.
const MAX_DECIMALS: usize = 12;

impl FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit_bytes = unit_bytes(unit).ok_or(SizeError::Malformed)?;
        let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
        let digits_only = decimals.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits_only || number.ends_with('.') || decimals.len() > MAX_DECIMALS {
            return Err(SizeError::Malformed);
        }
        let whole: u64 = whole.parse().map_err(|_| SizeError::TooLarge)?;
        let mut bytes = u128::from(whole) * u128::from(unit_bytes);
        if let Ok(fraction) = decimals.parse::<u128>() {
            // At most 10^12 * 2^40: far from overflow.
            bytes += fraction * u128::from(unit_bytes) / 10_u128.pow(decimals.len() as u32);
        }
        u64::try_from(bytes).map(Self).map_err(|_| SizeError::TooLarge)
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let upper = unit.to_ascii_uppercase();
    let letter = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    UNITS.iter().find(|(name, _)| *name == letter).map(|(_, bytes)| *bytes)
}

impl ByteSize {
    /// For errors: short and to the byte, as in `10 TiB (10995116277760 bytes)`.
    pub fn exact(self) -> String {
        let short = self.to_string();
        if self.0 < UNITS[1].1 { short } else { format!("{short} ({} bytes)", self.0) }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, unit) = UNITS.iter().rev().find(|(_, unit)| self.0 >= *unit).unwrap_or(&UNITS[0]);
        if *unit == 1 {
            return write!(f, "{} bytes", self.0);
        }
        let hundredths = u128::from(self.0) * 100 / u128::from(*unit);
        match (hundredths / 100, hundredths % 100) {
            (whole, 0) => write!(f, "{whole} {name}iB"),
            (whole, rest) => write!(f, "{whole}.{rest:02} {name}iB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn people_write_sizes() {
        let cases = [
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("1.5G", 3 << 29),
            ("4096", 4096),
            ("64k", 64 << 10),
            ("1GiB", 1 << 30),
            ("100MB", 100 << 20),
            ("0.5K", 512),
            ("0", 0),
            ("1T", 1 << 40),
            ("512b", 512),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "G", "-1", "1X", "1.", ".5G", "1.5.5G", "1 G", "1e9", "1.0000000000001G", "é", "1iG"]
        {
            assert_eq!(text.parse::<ByteSize>(), Err(SizeError::Malformed), "{text}");
        }
        for text in ["99999999999999999999", "18446744073709551615K"] {
            assert_eq!(text.parse::<ByteSize>(), Err(SizeError::TooLarge), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(ByteSize(512 << 20).to_string(), "512 MiB");
        assert_eq!(ByteSize(3 << 29).to_string(), "1.50 GiB");
        assert_eq!(ByteSize(100).to_string(), "100 bytes");
        assert_eq!(ByteSize(10 << 40).exact(), "10 TiB (10995116277760 bytes)");
        assert_eq!(ByteSize(100).exact(), "100 bytes");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
        }

        #[test]
        fn whole_bytes_come_back(bytes: u64) {
            prop_assert_eq!(bytes.to_string().parse(), Ok(ByteSize(bytes)));
            prop_assert!(!ByteSize(bytes).to_string().is_empty());
        }
    }
}
