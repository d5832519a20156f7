//! How connections come about: everything moves the same guest.

use std::sync::Arc;

use tern_migration::channel::{
    Acceptor, Address, Connection, Connector, Listener, Ready, Security, Uri, descriptor, listen,
};
use tern_migration::destination::receive_from;
use tern_migration::fake::{FakeVm, Options};
use tern_migration::source::{Outcome, migrate_by, migrate_to};
use tern_migration::{LiveParameters, MigrationError, Side};

use crate::harness::{Ends, PATIENT, assert_moved, control};
use crate::skip::skip;

/// Moves a guest from here to there.
pub fn moved(connector: &Arc<dyn Connector>, acceptor: &Arc<dyn Acceptor>) -> Ends {
    let (here, there) = (control(Side::Source), control(Side::Destination));
    let (source, empty) =
        (FakeVm::booted(Options::default()).unwrap(), FakeVm::new(Options::default()).unwrap());
    let (source, destination) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive_from(empty, acceptor, &there));
        let source = migrate_by(source, connector, &LiveParameters::default(), &here);
        (source, receiving.join().unwrap())
    });
    let ends = Ends { source, destination, source_report: here.report(), destination_report: there.report() };
    assert_moved(&ends, true);
    ends
}

#[test]
fn connections_that_are_there_already_are_taken_in_their_order() {
    let (near, far) = Connection::pair().unwrap();
    let (near, far) = (near.with_timeout(PATIENT), far.with_timeout(PATIENT));
    let connector = Ready::only(near, "a test has made it").unwrap();
    let acceptor = Arc::new(Ready::new().unwrap());
    acceptor.push(far).unwrap();
    let connector: Arc<dyn Connector> = Arc::new(connector);
    let acceptor: Arc<dyn Acceptor> = acceptor;
    moved(&connector, &acceptor);
    let error = connector.connect(&control(Side::Source)).unwrap_err();
    assert_eq!((error.code(), connector.only_one()), ("used-up", Some("a test has made it")));
}

#[test]
fn a_destination_whose_only_peer_was_a_stranger_waits_for_nobody() {
    let (near, far) = Connection::pair().unwrap();
    drop(near);
    let acceptor: Arc<dyn Acceptor> = Arc::new(Ready::only(far, "a test has made it").unwrap());
    let there = control(Side::Destination);
    let failed =
        receive_from(FakeVm::new(Options::default()).unwrap(), &acceptor, &there).map(drop).unwrap_err();
    assert_eq!(failed.error.code(), "used-up");
}

/// From an address to what listens there.
fn moved_to(uri: &Uri) -> Result<Ends, MigrationError> {
    let listener = Arc::new(Listener::bind(uri)?);
    let acceptor: Arc<dyn Acceptor> = listener.clone();
    let connector: Arc<dyn Connector> = Arc::new(Address::new(listener.uri(), Security::default()));
    // Whether it can be reached at all, such as a family that the kernel has no loopback for.
    drop(connector.connect(&control(Side::Source))?);
    Ok(moved(&connector, &acceptor))
}

#[test]
fn a_guest_goes_over_every_kind_of_socket() {
    let folder = tempfile::tempdir().unwrap();
    moved_to(&Uri::Unix { path: folder.path().join("socket") }).unwrap();
    let ends = moved_to(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    assert!(ends.destination_report.peer_address.is_some());
    match moved_to(&"tcp:[::1]:0".parse().unwrap()) {
        Ok(ends) => assert!(ends.source_report.peer_address.unwrap().starts_with("[::1]:")),
        Err(error) => skip(&format!("IPv6: {}", error.text())),
    }
    match moved_to(&"vsock:1:0".parse().unwrap()) {
        Ok(ends) => assert_eq!(ends.source_report.transport, "vsock"),
        Err(error) => {
            assert!(error.text().contains("vsock"), "{}", error.text());
            skip(&format!("vsock: {}", error.text()));
        }
    }
}

#[test]
fn a_guest_goes_over_descriptors() {
    let far = descriptor::give_pair("engine-near").unwrap();
    descriptor::give("engine-far", far.into()).unwrap();
    let (near, far): (Uri, Uri) = ("fd:engine-near".parse().unwrap(), "fd:engine-far".parse().unwrap());
    let connector: Arc<dyn Connector> = Arc::new(Address::new(&near, Security::default()));
    assert_eq!(connector.only_one(), Some("an inherited descriptor is one connection"));
    let ends = moved(&connector, &listen(&far, &Security::default()).unwrap());
    assert_eq!((ends.source_report.transport, ends.destination_report.transport), ("fd", "fd"));
    let error = connector.connect(&control(Side::Source)).unwrap_err();
    assert!(error.text().contains("it has been used already"), "{}", error.text());
    assert!(
        listen(&"fd:99999".parse().unwrap(), &Security::default())
            .unwrap_err()
            .text()
            .contains("neither inherited")
    );
}

#[test]
fn a_guest_goes_through_commands() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = |name: &str| {
        let path = folder.path().join(name).display().to_string();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    };
    let (there, back) = (pipe("there"), pipe("back"));
    let near = Uri::Exec { command: format!("cat {back} & exec cat > {there}") };
    let far = Uri::Exec { command: format!("cat {there} & exec cat > {back}") };
    let connector: Arc<dyn Connector> = Arc::new(Address::new(&near, Security::default()));
    let acceptor = listen(&far, &Security::default()).unwrap();
    assert_eq!((connector.only_one().is_some(), acceptor.only_one().is_some()), (false, true));
    let ends = moved(&connector, &acceptor);
    assert_eq!((ends.source_report.transport, ends.destination_report.transport), ("exec", "exec"));
}

#[test]
fn a_command_that_fails_leaves_the_guest_running_and_is_told() {
    let uri = Uri::Exec { command: "exit 41".into() };
    let (here, live) = (control(Side::Source), LiveParameters::default());
    let end = migrate_to(FakeVm::booted(Options::default()).unwrap(), &uri, &live, &here);
    let Outcome::Failed(error) = end.outcome else { panic!("{:?}", end.outcome) };
    assert!(error.text().contains("the command has ended with exit status: 41"), "{}", error.text());
    assert!(end.vm.is_running());
}
