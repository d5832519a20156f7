//! Network addresses of guests.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

/// Text that is no address of a single interface.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{text}` is not a unicast MAC address: write six hex bytes with an even first one, such as 02:00:00:00:00:01"
)]
pub struct MacError {
    text: String,
}

impl MacAddress {
    /// A locally administered address for the `index`-th interface of the machine `identity`: the same
    /// identity gives the same address on every host.
    pub fn derived(identity: &str, index: usize) -> Self {
        // FNV-1a: any hash does that is the same for ever.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in identity.bytes().chain([0]).chain((index as u64).to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(error)?;
        }
        let unicast = bytes[0] & 1 == 0 && bytes != [0; 6];
        if parts.next().is_some() || !unicast { Err(error()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: MacAddress = "02:aB:00:00:00:0f".parse().unwrap();
        assert_eq!(mac, MacAddress([2, 0xab, 0, 0, 0, 15]));
        assert_eq!(mac.to_string(), "02:ab:00:00:00:0f");
        for text in
            ["", "02", "02:00:00:00:00", "02:00:00:00:00:00:00", "03:00:00:00:00:00", "+2:00:00:00:00:01"]
        {
            assert!(text.parse::<MacAddress>().unwrap_err().to_string().contains("six hex bytes"), "{text}");
        }
    }

    #[test]
    fn derived_addresses_are_stable_local_and_distinct() {
        let first = MacAddress::derived("web", 0);
        assert_eq!(first, MacAddress::derived("web", 0));
        assert_eq!(first.0[0], 0x02);
        assert_ne!(first, MacAddress::derived("web", 1));
        assert_ne!(first, MacAddress::derived("db", 0));
    }
}
