//! Credentials as they are on the disk, and the two sides' TLS configurations that they make.
//!
//! A folder is laid out as QEMU's `tls-creds-x509`: `ca-cert.pem`, and `server-cert.pem` with `server-key.pem` at a
//! destination, `client-cert.pem` with `client-key.pem` at a source. They are read for each connection of a source, and
//! when a destination begins to listen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};

use super::error::Means;
use super::secret::{SECRET_MAX_BYTES, SECRET_MIN_BYTES, SameSecret, key};
use super::{Security, TlsError};
use crate::stats::Side;

const MAKE: &str = "`tern tls init DIR` makes all files of such a folder";
const MAKE_SECRET: &str = "`tern tls secret FILE` makes a good one";

/// One side's identity, and whom it trusts.
#[derive(Debug, Clone)]
pub(in crate::channel) enum Identity {
    /// The source's.
    Client(Arc<ClientConfig>, ServerName<'static>, Means),
    /// The destination's.
    Server(Arc<ServerConfig>, Means),
}

impl Identity {
    /// A source's, for a destination at `host`.
    pub(in crate::channel) fn client(
        security: &Security,
        host: Option<&str>,
        place: &str,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(Path::new("TLS 1.3"), &error))?;
        let (mut config, name, means) = if let Some(path) = &security.secret {
            let failed = |error: Error| unusable(path, &error);
            let key = key(&read_secret(path)?, &provider).map_err(failed)?;
            let same = SameSecret::new(&key, &provider).map_err(failed)?;
            let config = builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(same))
                .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(key)));
            // Nobody looks at it.
            (config, "tern.invalid", Means::Secret)
        } else {
            let folder = folder(security)?;
            let (chain, key) = pair(folder, "client")?;
            let name = security.host_name.as_deref().or(host);
            let name = name.ok_or_else(|| TlsError::NoHostName { place: place.to_owned() })?;
            let builder = builder.with_root_certificates(authority(folder)?);
            let config =
                builder.with_client_auth_cert(chain, key).map_err(|error| unusable(folder, &error))?;
            (config, name, Means::Certificates)
        };
        config.resumption = Resumption::disabled();
        let server = ServerName::try_from(name.to_owned());
        let server = server.map_err(|_| TlsError::Name { name: name.to_owned() })?;
        Ok(Self::Client(Arc::new(config), server, means))
    }

    /// A destination's.
    pub(in crate::channel) fn server(security: &Security) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(Path::new("TLS 1.3"), &error))?;
        let (mut config, means) = if let Some(path) = &security.secret {
            let failed = |error: Error| unusable(path, &error);
            let key = key(&read_secret(path)?, &provider).map_err(failed)?;
            let same = SameSecret::new(&key, &provider).map_err(failed)?;
            let config = builder
                .with_client_cert_verifier(Arc::new(same))
                .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(key)));
            (config, Means::Secret)
        } else {
            let folder = folder(security)?;
            let (chain, key) = pair(folder, "server")?;
            let verifier = Listed::new(authority(folder)?, &security.allow, provider, folder)?;
            let builder = builder.with_client_cert_verifier(Arc::new(verifier));
            let config = builder.with_single_cert(chain, key).map_err(|error| unusable(folder, &error))?;
            (config, Means::Certificates)
        };
        // Each connection proves itself anew.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self::Server(Arc::new(config), means))
    }

    pub(super) fn means(&self) -> Means {
        match self {
            Self::Client(_, _, means) | Self::Server(_, means) => *means,
        }
    }

    pub(super) fn side(&self) -> Side {
        match self {
            Self::Client(..) => Side::Source,
            Self::Server(..) => Side::Destination,
        }
    }
}

fn unusable(path: &Path, error: &dyn fmt::Display) -> TlsError {
    TlsError::Unusable { path: path.to_owned(), problem: error.to_string() }
}

fn folder(security: &Security) -> Result<&Path, TlsError> {
    // `Security::decide` has seen that one of both is there.
    security.credentials.as_deref().ok_or(TlsError::TwoIdentities)
}

fn bad(path: PathBuf, problem: &dyn fmt::Display) -> TlsError {
    TlsError::File { path, problem: problem.to_string(), remedy: MAKE }
}

fn certificates(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(bad(path, &"there is no certificate in it")),
        Ok(all) => Ok(all),
        Err(error) => Err(bad(path, &error)),
    }
}

fn authority(folder: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let path = folder.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path.clone())? {
        roots.add(certificate).map_err(|error| bad(path.clone(), &error))?;
    }
    Ok(Arc::new(roots))
}

/// `server` or `client`: the certificate with its chain, and its key.
fn pair(
    folder: &Path,
    whose: &str,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(folder.join(format!("{whose}-cert.pem")))?;
    let path = folder.join(format!("{whose}-key.pem"));
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| bad(path, &error))?;
    Ok((chain, key))
}

fn read_secret(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let wrong = |problem: String| TlsError::File { path: path.to_owned(), problem, remedy: MAKE_SECRET };
    let mut secret = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
    let read = file.take(SECRET_MAX_BYTES as u64 + 1).read_to_end(&mut secret);
    read.map_err(|error| wrong(error.to_string()))?;
    match secret.len() {
        SECRET_MIN_BYTES..=SECRET_MAX_BYTES => Ok(secret),
        found => {
            Err(wrong(format!("a secret has {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes, not {found}")))
        }
    }
}

/// The names in a source's certificate are not in the list.
#[derive(Debug)]
struct NotListed {
    problem: String,
}

impl fmt::Display for NotListed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for NotListed {}

/// The names in a certificate, with commas between them; empty if it has none.
pub(super) fn names(shown: &CertificateDer<'_>) -> Result<String, Error> {
    let parsed = ParsedCertificate::try_from(shown)?;
    // rustls tells them where a name is not among them; nobody has this one (RFC 2606).
    let nobody = ServerName::try_from("nobody.invalid").map_err(|error| Error::General(error.to_string()))?;
    let found = match verify_server_name(&parsed, &nobody) {
        Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. })) => {
            presented.join(", ")
        }
        _ => String::new(),
    };
    // As rustls tells them: `DnsName("host-a")`.
    Ok(found.replace("DnsName(\"", "").replace("IpAddress(", "").replace("\")", "").replace(')', ""))
}

/// Accepts certificates of the CA that have one of the listed names.
#[derive(Debug)]
struct Listed {
    inner: Arc<dyn ClientCertVerifier>,
    names: Vec<ServerName<'static>>,
}

impl Listed {
    fn new(
        roots: Arc<RootCertStore>,
        names: &[String],
        provider: Arc<CryptoProvider>,
        folder: &Path,
    ) -> Result<Self, TlsError> {
        let inner = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        let name = |name: &String| {
            ServerName::try_from(name.clone()).map_err(|_| TlsError::Name { name: name.clone() })
        };
        let names = names.iter().map(name).collect::<Result<_, _>>()?;
        Ok(Self { inner: inner.map_err(|error| unusable(folder, &error))?, names })
    }

    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(shown)?;
        let mut allowed = self.names.iter().map(|name| verify_server_name(&parsed, name));
        if self.names.is_empty() || allowed.any(|allowed| allowed.is_ok()) {
            return Ok(());
        }
        let listed: Vec<_> = self.names.iter().map(ServerName::to_str).collect();
        let presented = names(shown)?;
        let problem = format!(
            "the source's certificate is for {}, and tls-allow has {}",
            if presented.is_empty() { "no name" } else { &presented },
            listed.join(", ")
        );
        Err(CertificateError::Other(OtherError(Arc::new(NotListed { problem }))).into())
    }
}

impl ClientCertVerifier for Listed {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
