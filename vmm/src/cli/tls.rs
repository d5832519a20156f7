//! `tern tls`: the files with which two hosts prove to each other who they are.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, Error, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::{Exit, Failure, print};

pub(super) const EXAMPLES: &str = "\
Examples:
  tern tls init ./tls --host host-b --host 10.0.0.2
  scp -r ./tls host-b:/etc/tern/tls
  ssh host-b tern run --control /tmp/b.sock --incoming tcp:0.0.0.0:4444 --tls-creds /etc/tern/tls
  tern migrate --control /tmp/a.sock tcp:host-b:4444 --tls-creds ./tls

  tern tls secret ./secret";

/// Names by which a host reaches itself; every server has them.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const SECRET_BYTES: usize = 32;
const SECRET_MODE: u32 = 0o600;
const PUBLIC_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o700;

#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Make a folder for --tls-creds: a certificate authority, and certificates of it for both sides
    ///
    /// Copy the folder to both hosts. Who has ca-key.pem can make certificates that all of them trust: keep it where
    /// you make them, and nowhere else. The files are laid out as QEMU's tls-creds-x509. The certificates hold for ten
    /// years.
    #[command(after_help = EXAMPLES)]
    Init {
        /// The folder; new, or without the files
        dir: PathBuf,
        /// Name or address by which sources reach the destination; may be repeated. It is this host's own name too
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
        /// Name of the source, for --tls-allow at a destination [default: source]
        #[arg(long, value_name = "NAME", default_value = "source", hide_default_value = true)]
        client: String,
    },
    /// Make a file for --tls-psk: a random secret, the same on both hosts
    #[command(after_help = "Example:\n  tern tls secret ./secret && scp ./secret host-b:")]
    Secret {
        /// The new file
        file: PathBuf,
    },
}

pub(super) fn run(command: &TlsCommand) -> Result<Exit, Failure> {
    match command {
        TlsCommand::Init { dir, hosts, client } => init(dir, hosts, client),
        TlsCommand::Secret { file } => {
            let mut secret = [0; SECRET_BYTES];
            let random =
                std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut secret));
            random.map_err(|error| failed(Path::new("/dev/urandom"), &error))?;
            write_new(file, &secret, SECRET_MODE)?;
            print(&format!("{}: give it to both sides as --tls-psk\n", file.display()))
        }
    }
}

fn init(dir: &Path, hosts: &[String], client: &str) -> Result<Exit, Failure> {
    let folder = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(dir);
    folder.map_err(|error| failed(dir, &error))?;
    let mut names: Vec<String> = hosts.to_vec();
    names.extend(own_name());
    names.extend(LOCAL.map(str::to_owned));
    names.dedup();
    let [authority, server, client_files] = made(&names, client).map_err(|error| {
        Failure::text(Exit::Failure, format!("a certificate for {}: {error}", names.join(", ")))
    })?;
    for (whose, (certificate, key)) in [("ca", authority), ("server", server), ("client", client_files)] {
        write_new(&dir.join(format!("{whose}-cert.pem")), certificate.as_bytes(), PUBLIC_MODE)?;
        write_new(&dir.join(format!("{whose}-key.pem")), key.as_bytes(), SECRET_MODE)?;
    }
    print(&format!(
        "{}: give it to both sides as --tls-creds; ca-key.pem is not needed there\n\
         destinations: {}\nsources: {client}\n",
        dir.display(),
        names.join(", ")
    ))
}

/// Certificates and keys of the authority, the server and the client, as PEM.
fn made(names: &[String], client: &str) -> Result<[(String, String); 3], Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "tern migration authority");
    limit(&mut params);
    let authority = (params.self_signed(&key)?.pem(), key.serialize_pem());
    let issuer = Issuer::new(params, key);
    let client = [client.to_owned()];
    let server = signed(&issuer, names, ExtendedKeyUsagePurpose::ServerAuth)?;
    Ok([authority, server, signed(&issuer, &client, ExtendedKeyUsagePurpose::ClientAuth)?])
}

fn signed(
    issuer: &Issuer<'_, KeyPair>,
    names: &[String],
    usage: ExtendedKeyUsagePurpose,
) -> Result<(String, String), Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if let Some(name) = names.first() {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    limit(&mut params);
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

/// From long ago, since hosts' clocks differ, and for ten years from now.
fn limit(params: &mut CertificateParams) {
    const YEAR_S: u64 = 31_556_952;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let year = i32::try_from(1970 + now.as_secs() / YEAR_S).unwrap_or(2026);
    (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year + 10, 12, 31));
}

fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    (!name.is_empty() && name != "(none)").then(|| name.to_owned())
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::AlreadyExists => "; it is not replaced: name another, or remove it",
        _ => "",
    };
    Failure::text(Exit::Failure, format!("{}: {error}{remedy}", path.display()))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| failed(path, &error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_is_made_once_and_its_keys_are_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("tls");
        let command =
            TlsCommand::Init { dir: dir.clone(), hosts: vec!["10.0.0.2".into()], client: "host-a".into() };
        run(&command).unwrap();
        for whose in ["ca", "server", "client"] {
            let key = std::fs::metadata(dir.join(format!("{whose}-key.pem"))).unwrap();
            assert_eq!(key.permissions().mode() & 0o777, SECRET_MODE);
            let certificate = std::fs::read_to_string(dir.join(format!("{whose}-cert.pem"))).unwrap();
            assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        }
        assert!(run(&command).unwrap_err().text.contains("it is not replaced"));
        let wrong = TlsCommand::Init {
            dir: folder.path().join("b"),
            hosts: vec!["a b\u{e4}".into()],
            client: "c".into(),
        };
        assert!(run(&wrong).unwrap_err().text.contains("a certificate for"));
        let file = folder.path().join("secret");
        run(&TlsCommand::Secret { file: file.clone() }).unwrap();
        assert_eq!(std::fs::read(&file).unwrap().len(), SECRET_BYTES);
        run(&TlsCommand::Secret { file }).unwrap_err();
    }
}
