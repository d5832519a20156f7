//! How connections come about: everything moves the same guest.

use std::sync::Arc;

use tern_migration::channel::{Acceptor, Connection, Connector, Ready};
use tern_migration::destination::receive_from;
use tern_migration::fake::{FakeVm, Options};
use tern_migration::source::migrate_by;
use tern_migration::{LiveParameters, Side};

use crate::harness::{Ends, PATIENT, assert_moved, control};

/// Moves a guest from here to there.
fn moved(connector: &Arc<dyn Connector>, acceptor: &Arc<dyn Acceptor>) -> Ends {
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
