//! A Linux guest with everything that it can have moves twice: while all of it is busy, and idle.

use tern_tests::host::image_or_skip;
use tern_tests::{Agent, Incoming, Namespace, TernBuilder, agent, kvm_or_skip, migrate, root_or_skip};

use crate::linux::{file, powers_off};

/// Waits until the disk checker has found `more` further blocks as they should be.
fn disk_goes_on(guest: Agent<'_>, more: u64) {
    let before = guest.status().disk_ok;
    let now = guest.wait_status("the disk checker", |now| now.disk_ok >= before + more);
    assert_eq!(now.disk_bad, 0);
}

/// Waits until the page checker has found `more` further pages as they should be.
fn pages_go_on(guest: Agent<'_>, more: u64) {
    let before = guest.status().pages_verified;
    guest.wait_status("the page checker", |now| now.pages_verified >= before + more);
}

#[test]
fn two_cpus_disks_and_network_move_while_all_is_busy_and_then_idle() {
    if !kvm_or_skip() || !root_or_skip() || !image_or_skip("linux") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = file(folder.path(), "disk", 4 << 20, "");
    let readonly = file(folder.path(), "readonly", 4096, "the disk that can not be written\n");
    let network = Namespace::new(&["tap0", "tap1", "tap2"]);
    let machine = TernBuilder::new().memory("128M").cpus(2).serial_unix().in_namespace(&network).disk(&disk);
    let machine =
        machine.flag("--disk").flag(format!("{},readonly", readonly.display())).flag("--name").flag("moving");
    let source =
        machine.clone().image("linux").cmdline("tern.ip=10.77.0.2/24 tern.echo=7").net("tap0").start_booted();
    let guest = Agent::new(source.serial());
    let ready = guest.wait_ready();
    assert!(ready.contains("cpus=2"), "{ready}");

    // Each device works.
    assert!(guest.run("cat /dev/vdb").contains("the disk that can not be written"));
    network.echo("10.77.0.2:7", 20);
    assert!(guest.run("disk /dev/vda").trim().is_empty());
    disk_goes_on(guest, 4);

    // All at once, over TCP.
    assert!(guest.run("pages 8M 2000").trim().is_empty());
    pages_go_on(guest, 500);
    let second = machine.clone().net("tap1").incoming(Incoming::Tcp).start();
    let before = guest.status();
    let moved = migrate(&source, &second);
    let there = Agent::new(second.serial());
    let after = there.status();
    assert!(after.mono_us > before.mono_us && after.boot_us > before.boot_us, "{before:?} {after:?}");
    assert!(after.mono_us - before.mono_us < 60_000_000 && moved.downtime_us() > 0);
    network.echo("10.77.0.2:7", 20);
    assert!(there.status().echo >= 40);
    pages_go_on(there, 2500);
    disk_goes_on(there, 4);
    let told = source.serial().text();
    assert!(source.quit().success());

    // Idle, over a unix socket; then it goes on.
    there.run("pages off");
    there.run("disk off");
    let third = machine.net("tap2").incoming(Incoming::Unix).start();
    migrate(&second, &third);
    let last = Agent::new(third.serial());
    network.echo("10.77.0.2:7", 5);
    assert!(last.run("disk /dev/vda").trim().is_empty());
    disk_goes_on(last, 2);
    agent::check(&(told + &second.serial().text() + &third.serial().text()));
    powers_off(third);
}
