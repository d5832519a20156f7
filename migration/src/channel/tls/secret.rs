//! A secret that both sides know as their identity.
//!
//! A key pair is derived from it, which both sides show as a raw public key (RFC 7250): whoever can sign the handshake
//! with it knows the secret. A signature says for which side it is made (RFC 8446, 4.4.3), so it can't be reflected, and
//! the session's keys come from an ephemeral exchange, so who learns the secret later can read nothing that was recorded.
//! Who connects can see the public key and try guesses against it: so the secret must not be one that can be guessed.

use std::fmt;
use std::sync::Arc;

use ring::hkdf;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

/// Fewer bytes could be guessed.
pub(super) const SECRET_MIN_BYTES: usize = 32;
/// More are not needed.
pub(super) const SECRET_MAX_BYTES: usize = 64 << 10;

const SALT: &[u8] = b"tern migration";
const INFO: &[u8] = b"tls-psk ed25519 v1";
const SEED_BYTES: usize = 32;
/// An Ed25519 key in PKCS #8 (RFC 8410, 7), in front of its 32 bytes.
const PKCS8_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

struct Seed;

impl hkdf::KeyType for Seed {
    fn len(&self) -> usize {
        SEED_BYTES
    }
}

/// The key pair that a secret makes.
pub(super) fn key(secret: &[u8], provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, Error> {
    let failed = |_| Error::General("the secret's key can't be derived".into());
    let mut pkcs8 = [0; PKCS8_PREFIX.len() + SEED_BYTES];
    let (prefix, seed) = pkcs8.split_at_mut(PKCS8_PREFIX.len());
    prefix.copy_from_slice(&PKCS8_PREFIX);
    let pseudo_random = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(secret);
    pseudo_random.expand(&[INFO], Seed).and_then(|okm| okm.fill(seed)).map_err(failed)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.to_vec()));
    let key = provider.key_provider.load_private_key(key)?;
    let public = key.public_key().ok_or_else(|| Error::General("an Ed25519 key has a public key".into()))?;
    let shown = CertificateDer::from(public.as_ref().to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![shown], key)))
}

/// The peer has another secret.
#[derive(Debug)]
struct AnotherSecret;

impl fmt::Display for AnotherSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the peer has another secret than this side")
    }
}

impl std::error::Error for AnotherSecret {}

/// Accepts whoever signs with the secret's key.
#[derive(Debug)]
pub(super) struct SameSecret {
    key: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl SameSecret {
    pub(super) fn new(key: &CertifiedKey, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let shown = key.cert.first().ok_or(Error::NoCertificatesPresented)?.clone();
        Ok(Self { key: shown, provider: Arc::clone(provider) })
    }

    /// Nothing here is secret: it is the public key.
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if *shown == self.key {
            return Ok(());
        }
        Err(CertificateError::Other(OtherError(Arc::new(AnotherSecret))).into())
    }

    fn signed(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(shown.as_ref());
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
    }
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken".into())
}

impl ServerCertVerifier for SameSecret {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for SameSecret {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
