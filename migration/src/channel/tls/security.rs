//! What the parameters ask for, and whether a connection may be plain.

use std::path::PathBuf;

use super::TlsError;
use crate::config::Parameters;
use crate::stats::Side;

/// The `tls` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// With credentials always; without them only where nobody else can listen.
    #[default]
    Auto,
    Require,
    Off,
}

/// How one side's connections are protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Security {
    mode: Mode,
    insecure: bool,
    pub(super) credentials: Option<PathBuf>,
    pub(super) secret: Option<PathBuf>,
    pub(super) host_name: Option<String>,
    /// Names of the sources that a destination accepts; empty: all whom the CA has signed.
    pub(super) allow: Vec<String>,
}

impl Security {
    /// What one side's parameters ask for.
    pub fn of(parameters: &Parameters) -> Self {
        let names = parameters.tls_allow.as_deref().unwrap_or_default().split(',').map(str::trim);
        Self {
            mode: match parameters.tls {
                "require" => Mode::Require,
                "off" => Mode::Off,
                _ => Mode::Auto,
            },
            insecure: parameters.insecure,
            credentials: parameters.tls_creds.as_deref().map(PathBuf::from),
            secret: parameters.tls_psk.as_deref().map(PathBuf::from),
            host_name: parameters.tls_hostname.as_deref().map(str::to_owned),
            allow: names.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        }
    }

    /// Is TLS used? `local`: nobody on a network can see or reach the connection. `place` is for texts.
    pub(in crate::channel) fn decide(&self, side: Side, local: bool, place: &str) -> Result<bool, TlsError> {
        let given = self.credentials.is_some() || self.secret.is_some();
        let (side, place) = (side.name(), place.to_owned());
        match self.mode {
            _ if self.credentials.is_some() && self.secret.is_some() => Err(TlsError::TwoIdentities),
            Mode::Require if !given => Err(TlsError::NoCredentials { side, place, why: "tls=require" }),
            Mode::Require => Ok(true),
            Mode::Auto if given => Ok(true),
            Mode::Auto if local || self.insecure => Ok(false),
            Mode::Auto => {
                Err(TlsError::NoCredentials { side, place, why: "an address that is not loopback" })
            }
            Mode::Off if local || self.insecure => Ok(false),
            Mode::Off => Err(TlsError::Off { place }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(changes: &str, local: bool) -> Result<bool, String> {
        let changes = serde_json::from_str(changes).unwrap();
        let security = Security::of(&Parameters::default().merged(&changes).unwrap());
        security.decide(Side::Source, local, "tcp:b:1").map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_word_insecure_lets_a_guest_cross_a_network_in_plain() {
        assert_eq!(decided("{}", true), Ok(false));
        let error = decided("{}", false).unwrap_err();
        for part in ["tcp:b:1", "tern tls init", "--tls-creds", "--tls-psk", "--insecure"] {
            assert!(error.contains(part), "no {part} in {error}");
        }
        assert_eq!(decided(r#"{"insecure": true}"#, false), Ok(false));
        assert!(decided(r#"{"tls": "off"}"#, false).unwrap_err().contains("--insecure"));
        assert_eq!(decided(r#"{"tls": "off"}"#, true), Ok(false));
        assert_eq!(decided(r#"{"tls": "off", "insecure": true, "tls-creds": "/c"}"#, false), Ok(false));
        decided(r#"{"tls": "require", "insecure": true}"#, true).unwrap_err();
        for given in
            [r#"{"tls-creds": "/c"}"#, r#"{"tls-psk": "/s"}"#, r#"{"tls": "require", "tls-psk": "/s"}"#]
        {
            assert_eq!((decided(given, true), decided(given, false)), (Ok(true), Ok(true)));
        }
        decided(r#"{"tls-creds": "/c", "tls-psk": "/s"}"#, true).unwrap_err();
    }

    #[test]
    fn names_are_separated_by_commas() {
        let changes = serde_json::from_str(r#"{"tls-allow": "host-a, host-b,,"}"#).unwrap();
        let security = Security::of(&Parameters::default().merged(&changes).unwrap());
        assert_eq!(security.allow, ["host-a", "host-b"]);
    }
}
