//! TLS in front of everything: who is let in, who is not, and what both sides are told.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tempfile::TempDir;
use tern_migration::channel::{Address, Connector, Security, Uri, listen};
use tern_migration::destination::receive_from;
use tern_migration::fake::{FakeVm, Options};
use tern_migration::source::{Outcome, check, migrate_to};
use tern_migration::{Control, LiveParameters, Observer, Parameters, Side, SourceVm, Status};

use crate::harness::control;
use crate::transports::moved;

/// A certificate authority.
struct Authority(Issuer<'static, KeyPair>, String);

/// What is special about a folder's certificates.
#[derive(Clone, Copy, Default)]
struct Special {
    expired: bool,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    fn sign(&self, folder: &Path, whose: &str, name: &str, special: Special) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let server = whose == "server";
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        params.extended_key_usages = vec![if server { usage } else { ExtendedKeyUsagePurpose::ClientAuth }];
        if special.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
        }
        let pem = params.signed_by(&key, &self.0).unwrap().pem();
        std::fs::write(folder.join(format!("{whose}-cert.pem")), pem).unwrap();
        std::fs::write(folder.join(format!("{whose}-key.pem")), key.serialize_pem()).unwrap();
    }

    /// A folder for both sides, with a server of this name and a source called `host-a`.
    fn folder(&self, server: &str, special: Special) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca-cert.pem"), &self.1).unwrap();
        self.sign(folder.path(), "server", server, special);
        self.sign(folder.path(), "client", "host-a", special);
        folder
    }
}

fn secret(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn parameters(changes: &[(&str, &str)]) -> Parameters {
    let changes = changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    Parameters::default().merged(&changes).unwrap()
}

fn path(at: &Path) -> &str {
    at.to_str().unwrap()
}

/// Collects why somebody was turned away.
#[derive(Default, Clone)]
struct Doorkeeper(Arc<Mutex<Vec<String>>>);

impl Observer for Doorkeeper {
    fn status(&self, _: Status) {}
    fn pass(&self, _: u32) {}
    fn turned_away(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

/// A source that isn't let in; what it and the destination say. Its guest runs on, and the destination still waits.
fn refused(source: &[(&str, &str)], destination: &[(&str, &str)]) -> (String, String) {
    let acceptor =
        listen(&"tcp:127.0.0.1:0".parse().unwrap(), &Security::of(&parameters(destination))).unwrap();
    let uri: Uri = acceptor.route().place().parse().unwrap();
    let door = Doorkeeper::default();
    let there = Control::new(Side::Destination, Box::new(door.clone())).unwrap();
    let empty = FakeVm::new(Options::default()).unwrap();
    let guest = FakeVm::booted(Options::default()).unwrap();
    let told = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_from(empty, &acceptor, &there).map(drop));
        let end = migrate_to(guest, &uri, &LiveParameters::new(parameters(source)), &control(Side::Source));
        while door.0.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert!(!receiving.is_finished());
        assert!(there.cancel());
        assert!(!receiving.join().unwrap().unwrap_err().vm.is_running());
        assert!(end.vm.is_running());
        let Outcome::Failed(error) = end.outcome else { panic!("{:?}", end.outcome) };
        error.text()
    });
    (told, door.0.lock().unwrap().join("\n"))
}

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
}

#[test]
fn certificates_and_secrets_carry_a_guest_over_any_connection() {
    let folder = Authority::new().folder("localhost", Special::default());
    let file = secret(&[7; 32]);
    let sockets = tempfile::tempdir().unwrap();
    let certificates = [("tls", "require"), ("tls-creds", path(folder.path()))];
    let source = [certificates[0], certificates[1], ("tls-hostname", "localhost")];
    let destination = [certificates[0], certificates[1], ("tls-allow", "host-b, host-a")];
    let same = [("tls-psk", path(file.path()))];
    for [source, destination] in [[&source[..], &destination[..]], [&same, &same]] {
        let unix = Uri::Unix { path: sockets.path().join("socket") };
        for uri in ["tcp:127.0.0.1:0".parse().unwrap(), unix] {
            let acceptor = listen(&uri, &Security::of(&parameters(destination))).unwrap();
            let at: Uri = acceptor.route().place().parse().unwrap();
            let connector: Arc<dyn Connector> =
                Arc::new(Address::new(&at, Security::of(&parameters(source))));
            moved(&connector, &acceptor);
        }
    }
}

#[test]
fn who_is_not_trusted_is_told_why_and_his_guest_runs_on() {
    let (ours, other) = (Authority::new(), Authority::new());
    let good = ours.folder("localhost", Special::default());
    let foreign = other.folder("localhost", Special::default());
    let expired = ours.folder("localhost", Special { expired: true });
    let (one, two) = (secret(&[1; 32]), secret(&[2; 32]));
    let name = ("tls-hostname", "localhost");
    let [good, foreign, expired] =
        [&good, &foreign, &expired].map(|folder| ("tls-creds", path(folder.path())));
    let [one, two] = [&one, &two].map(|file| ("tls-psk", path(file.path())));

    let (source, destination) = refused(&[foreign, name], &[good]);
    says(&source, &["the destination's certificate is not signed by the CA", "certificates of one CA"]);
    says(&destination, &["the source does not trust this destination's certificate"]);

    let (source, destination) = refused(&[good, ("tls-hostname", "host-z")], &[good]);
    says(&source, &["host-z", "localhost", "--tls-hostname"]);
    says(&destination, &["is for another host name"]);

    let (source, destination) = refused(&[good, name], &[good, ("tls-allow", "host-b,host-c")]);
    says(&source, &["the destination does not accept this source's certificate", "--tls-allow there"]);
    says(&destination, &["host-a", "tls-allow has host-b, host-c"]);

    let (source, destination) = refused(&[good, name], &[expired]);
    says(&source, &["the destination's certificate does not hold now", "clock"]);
    says(&destination, &["the source finds this destination's certificate expired"]);

    let (source, destination) = refused(&[expired, name], &[good]);
    says(&source, &["the destination finds this source's certificate expired"]);
    says(&destination, &["the source's certificate does not hold now"]);

    let (source, destination) = refused(&[one], &[two]);
    says(&source, &["has another secret", "--tls-psk"]);
    says(&destination, &["the source has another secret than this destination"]);

    let (source, destination) = refused(&[one], &[good]);
    says(&source, &["both --tls-psk"]);
    says(&destination, &["both --tls-psk"]);
    let (source, destination) = refused(&[good, name], &[one]);
    says(&source, &["both --tls-psk"]);
    says(&destination, &["both --tls-psk"]);

    let (source, destination) = refused(&[], &[good]);
    says(&source, &["the peer speaks TLS, and this source does not", "--tls-creds"]);
    says(&destination, &["this destination expects TLS, and the peer speaks without it"]);

    let (source, destination) = refused(&[good, name], &[]);
    says(&source, &["has closed the connection in the TLS handshake", "--tls-creds or --tls-psk too"]);
    says(&destination, &["the peer speaks TLS, and this destination does not", "--tls-psk"]);
}

#[test]
fn credentials_that_can_not_be_used_are_named() {
    let folder = Authority::new().folder("localhost", Special::default());
    let at = |changes: &[(&str, &str)]| {
        listen(&"tcp:127.0.0.1:0".parse().unwrap(), &Security::of(&parameters(changes))).unwrap_err().text()
    };
    says(&at(&[("tls-creds", "/no/such")]), &["/no/such/server-cert.pem", "tern tls init"]);
    let short = secret(b"easily guessed");
    says(&at(&[("tls-psk", path(short.path()))]), &["not 14", "tern tls secret"]);
    std::fs::write(folder.path().join("ca-cert.pem"), "no certificate").unwrap();
    says(&at(&[("tls-creds", path(folder.path()))]), &["ca-cert.pem", "there is no certificate in it"]);
    let outside = listen(&"tcp:0.0.0.0:0".parse().unwrap(), &Security::default()).unwrap_err().text();
    says(&outside, &["tcp:0.0.0.0:0 needs TLS", "--insecure on both sides"]);
    let insecure =
        Parameters::default().merged(&[("insecure".to_owned(), true.into())].into_iter().collect());
    listen(&"tcp:0.0.0.0:0".parse().unwrap(), &Security::of(&insecure.unwrap())).unwrap();
}

#[test]
fn a_check_asks_in_secret_and_who_stalls_in_his_handshake_keeps_nobody_waiting() {
    let file = secret(&[3; 40]);
    let ours = parameters(&[("tls-psk", path(file.path()))]);
    let acceptor = listen(&"tcp:127.0.0.1:0".parse().unwrap(), &Security::of(&ours)).unwrap();
    let uri: Uri = acceptor.route().place().parse().unwrap();
    let address = uri.to_string().replace("tcp:", "");
    // Nothing, the beginning of a record, and a record that promises more than comes.
    let beginnings: [&[u8]; 3] = [b"", b"\x16\x03", b"\x16\x03\x01\x40\x00\x01\x00"];
    let stalled = beginnings.map(|first| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(first).unwrap();
        stream
    });
    let empty = FakeVm::new(Options::default()).unwrap();
    let guest = FakeVm::booted(Options::default()).unwrap();
    let there = control(Side::Destination);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_from(empty, &acceptor, &there));
        let report = check(guest.facts(), &uri, &ours, &control(Side::Source)).unwrap();
        assert!(report.fits && report.link_bytes_per_s > 0, "{report:?}");
        let end = migrate_to(guest, &uri, &LiveParameters::new(ours.clone()), &control(Side::Source));
        assert!(matches!(end.outcome, Outcome::Completed), "{:?}", end.outcome);
        assert!(receiving.join().unwrap().unwrap().vm.is_running());
    });
    drop(stalled);
    assert_eq!(there.report().strangers, 0, "{:?}", there.report().warnings);
}

#[test]
fn every_channel_is_secret_and_a_further_one_without_the_secret_is_turned_away() {
    let file = secret(&[5; 32]);
    let ours = parameters(&[("tls-psk", path(file.path()))]);
    let several = ours.merged(&[("channels".to_owned(), 5.into())].into_iter().collect()).unwrap();
    let acceptor = listen(&"tcp:127.0.0.1:0".parse().unwrap(), &Security::of(&ours)).unwrap();
    let uri: Uri = acceptor.route().place().parse().unwrap();
    let (guest, empty) =
        (FakeVm::booted(Options::default()).unwrap(), FakeVm::new(Options::default()).unwrap());
    let there = control(Side::Destination);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_from(empty, &acceptor, &there));
        let plain = TcpStream::connect(uri.to_string().replace("tcp:", "")).unwrap();
        (&plain).write_all(b"TERN-MIG and no secret").unwrap();
        let end = migrate_to(guest, &uri, &LiveParameters::new(several), &control(Side::Source));
        assert!(matches!(end.outcome, Outcome::Completed), "{:?}", end.outcome);
        let received = receiving.join().unwrap().unwrap();
        assert_eq!(end.vm.first_difference(&received.vm), None);
    });
    let report = there.report();
    assert_eq!(report.strangers, 1, "{:?}", report.warnings);
    says(&report.warnings.join("\n"), &["speaks without it"]);
}

/// What happens to the bytes from the source on their way.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut(usize),
    Flip(usize),
    Noise(usize),
}

/// Carries bytes both ways between a peer and `to`, with this damage; ends when either side does.
fn damaging(to: String, damage: Damage) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(to).unwrap();
        let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut back_from, &mut back_to);
            let _ = back_to.shutdown(std::net::Shutdown::Both);
        });
        let (mut near, mut far, mut at) = (near, far, 0);
        let mut buffer = [0; 1];
        let mut out = |byte: u8| far.write_all(&[byte]).is_ok();
        while near.read(&mut buffer).is_ok_and(|count| count == 1) {
            let [byte] = buffer;
            let sent = match damage {
                Damage::Cut(place) if place == at => break,
                Damage::Flip(place) if place == at => out(byte ^ 1),
                Damage::Noise(place) if place == at => (0..200).all(|n| out(n ^ 0x5a)),
                _ => out(byte),
            };
            at += 1;
            if !sent {
                break;
            }
        }
        let _ = near.shutdown(std::net::Shutdown::Both);
        let _ = far.shutdown(std::net::Shutdown::Both);
    });
    address
}

#[test]
fn a_connection_that_is_cut_or_changed_anywhere_leaves_the_guest_here_and_the_destination_waiting() {
    let file = secret(&[4; 32]);
    let ours = parameters(&[("tls-psk", path(file.path()))]);
    let places = [0, 1, 4, 5, 60, 200, 300, 420, 500, 700, 2000];
    let damages: Vec<Damage> =
        places.iter().flat_map(|at| [Damage::Cut(*at), Damage::Flip(*at), Damage::Noise(*at)]).collect();
    crate::harness::on_threads(&damages, |damage| {
        let acceptor = listen(&"tcp:127.0.0.1:0".parse().unwrap(), &Security::of(&ours)).unwrap();
        let to = acceptor.route().place().replace("tcp:", "");
        let way: Uri = format!("tcp:{}", damaging(to, *damage)).parse().unwrap();
        let options = Options { region_pages: vec![16], ..Options::default() };
        let guest = FakeVm::booted(options.clone()).unwrap();
        let there = control(Side::Destination);
        std::thread::scope(|scope| {
            let empty = FakeVm::new(options.clone()).unwrap();
            let receiving = scope.spawn(|| receive_from(empty, &acceptor, &there).map(drop));
            let live = LiveParameters::new(ours.clone());
            let end = migrate_to(guest, &way, &live, &control(Side::Source));
            assert!(matches!(end.outcome, Outcome::Failed(_)), "{damage:?}: {:?}", end.outcome);
            assert!(end.vm.is_running(), "{damage:?}");
            // Before its hello it was a stranger, and later an attempt that has failed.
            there.cancel();
            assert!(!receiving.join().unwrap().unwrap_err().vm.is_running(), "{damage:?}");
        });
    });
}
