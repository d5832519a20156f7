//! Why there is no secure connection: which side, what was expected, and what to do.

use std::io;
use std::path::PathBuf;

use rustls::{AlertDescription, CertificateError, Error};
use thiserror::Error as ThisError;

use crate::stats::Side;

/// Why there is no secure connection.
#[derive(Debug, ThisError)]
pub enum TlsError {
    /// TLS is needed, and nothing to prove one's identity with was given.
    #[error(
        "{place} needs TLS ({why}), and this {side} was given no credentials: make some with `tern tls init DIR` and give \
         them to both sides as --tls-creds DIR, or share a secret (`tern tls secret FILE`) as --tls-psk FILE; on a \
         network that you trust with all of the guest's memory, --insecure on both sides does without"
    )]
    NoCredentials {
        /// `source` or `destination`.
        side: &'static str,
        /// Where to.
        place: String,
        /// What asks for it.
        why: &'static str,
    },
    /// TLS is switched off, and the peer is not on this host.
    #[error(
        "tls=off, and {place} is not loopback: anybody on the way could read and change the guest's memory; use TLS, \
         or give --insecure as well, on both sides"
    )]
    Off {
        /// Where to.
        place: String,
    },
    /// Certificates and a secret at once.
    #[error("tls-creds and tls-psk are both given: one side has one identity; leave one out")]
    TwoIdentities,
    /// A file of the credentials.
    #[error("{path}: {problem}; {remedy}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Credentials that don't fit together.
    #[error("the credentials in {path} can't be used: {problem}")]
    Unusable {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Nobody knows whose certificate the peer should have.
    #[error(
        "{place} has no host name to compare the destination's certificate with: give --tls-hostname NAME"
    )]
    NoHostName {
        /// Where to.
        place: String,
    },
    /// A name that no certificate can have.
    #[error("`{name}` can't be in a certificate: write a host name or an IP address")]
    Name {
        /// What was found.
        name: String,
    },
    /// The peer has begun with something else.
    #[error(
        "this {side} expects TLS, and the peer {found}: give both sides the same (--tls-creds DIR or --tls-psk FILE on \
         both, or on neither)"
    )]
    NotTls {
        /// `source` or `destination`.
        side: &'static str,
        /// What came.
        found: String,
    },
    /// The peer has begun with TLS, and this side has no credentials.
    #[error(
        "the peer speaks TLS, and this {side} does not: give it --tls-creds DIR or --tls-psk FILE as the other side has"
    )]
    Unexpected {
        /// `source` or `destination`.
        side: &'static str,
    },
    /// The two sides did not come to trust each other.
    #[error("{problem}; {remedy}")]
    Handshake {
        /// Who has refused what.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What a side proves its identity with; it decides what an error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::channel) enum Means {
    Certificates,
    Secret,
}

const SAME_CA: &str = "both folders need certificates of one CA, and its ca-cert.pem";
const SAME_SECRET: &str = "give both sides the same file as --tls-psk";
const NEW_CERTIFICATE: &str = "make a new one, or set that host's clock right";
const SAME_KIND: &str = "give both sides --tls-creds, or both --tls-psk";

/// What a failure means, seen from `side`.
pub(super) fn explain(side: Side, means: Means, error: &Error) -> TlsError {
    let (here, there) = (side.name(), side.peer().name());
    let (problem, remedy) = match error {
        Error::AlertReceived(alert) => refused(here, there, means, *alert),
        Error::InvalidCertificate(error) => distrusted(here, there, means, error),
        Error::NoCertificatesPresented => {
            (format!("the {there} has shown no certificate, and this {here} needs one"), SAME_KIND)
        }
        Error::PeerIncompatible(why) => {
            (format!("the {there}'s TLS does not fit this {here}'s ({why:?})"), SAME_KIND)
        }
        Error::InvalidMessage(_) => {
            let found = "has answered with something else".to_owned();
            return TlsError::NotTls { side: here, found };
        }
        other => (format!("TLS with the {there} failed: {other}"), "try again, and over another way"),
    };
    TlsError::Handshake { problem, remedy }
}

/// The peer's word on this side.
fn refused(here: &str, there: &str, means: Means, alert: AlertDescription) -> (String, &'static str) {
    match (alert, means) {
        (AlertDescription::UnknownCA | AlertDescription::DecryptError, Means::Certificates) => (
            format!("the {there} does not trust this {here}'s certificate: another CA has signed it"),
            SAME_CA,
        ),
        (AlertDescription::CertificateUnknown, Means::Certificates) => (
            format!("the {there} does not accept this {here}'s certificate: no name in it is in its list"),
            "add one to --tls-allow there, or use another certificate here",
        ),
        (AlertDescription::CertificateUnknown | AlertDescription::DecryptError, Means::Secret) => {
            (format!("the {there} has another secret than this {here}"), SAME_SECRET)
        }
        (AlertDescription::CertificateExpired, _) => (
            format!("the {there} finds this {here}'s certificate expired, or not valid yet"),
            NEW_CERTIFICATE,
        ),
        (AlertDescription::BadCertificate, _) => (
            format!("the {there} finds that this {here}'s certificate is for another host name"),
            "give the source --tls-hostname, or use a certificate with the name it expects",
        ),
        (
            AlertDescription::HandshakeFailure
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRequired,
            _,
        ) => (
            format!("the {there} wants another proof of identity than this {here} has ({alert:?})"),
            SAME_KIND,
        ),
        _ => (format!("the {there} has ended the TLS handshake ({alert:?})"), "its log says why"),
    }
}

/// This side's finding on the peer.
fn distrusted(here: &str, there: &str, means: Means, error: &CertificateError) -> (String, &'static str) {
    match error {
        // Made by us, with a text.
        CertificateError::Other(other) => {
            let remedy =
                if means == Means::Secret { SAME_SECRET } else { "add one to --tls-allow, or refuse it" };
            (other.to_string(), remedy)
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            format!("the {there}'s certificate is not signed by the CA in this {here}'s ca-cert.pem"),
            SAME_CA,
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            format!("the {there}'s certificate has another name than this {here} expects: {error}"),
            "say the expected name with --tls-hostname; names count in subjectAltName only",
        ),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            (format!("the {there}'s certificate does not hold now: {error}"), NEW_CERTIFICATE)
        }
        other => (format!("the {there}'s certificate can't be accepted: {other}"), SAME_CA),
    }
}
