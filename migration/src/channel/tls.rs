//! TLS 1.3 over any connection, in front of the first byte of ours.
//!
//! ```text
//! parameters -> Security -- decide(local?) --> plain | Identity (x509 folder, or secret) --> Secure: a Stream over a Stream
//! ```
//!
//! Both sides prove who they are: by certificates of one CA, or by knowing one secret. When the destination has seen
//! that the source is one of those whom it accepts it says so by one byte; the source sends nothing before. So whoever
//! is refused hears why, and a source knows before its guest is touched.

mod error;
mod identity;
mod secret;
mod secure;
mod security;

pub use error::TlsError;
pub(super) use identity::Identity;
pub(super) use secure::Secure;
pub use security::Security;
