//! A Linux guest with ACPI: it is told that it was restored from a file, and not that it moved; its power button works.

use serde_json::json;
use tern_tests::host::image_or_skip;
use tern_tests::{Agent, Incoming, Tern, TernBuilder, kvm_or_skip, migrate, save};

/// What the kernel says, at a level that `loglevel=6` lets through.
const RESEEDED: &str = "crng reseeded due to virtual machine fork";

fn generation(tern: &Tern) -> String {
    let answer = tern.qmp().execute("query-vm-generation-id", json!({}));
    answer["guid"].as_str().expect("a generation ID").to_owned()
}

#[test]
fn a_restored_guest_reseeds_its_random_numbers_and_hears_the_power_button() {
    if !kvm_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let given = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f1";
    let machine = TernBuilder::new().memory("96M").serial_unix();
    let first = machine
        .clone()
        .image("linux-up")
        .cmdline("acpi=force loglevel=6")
        .flag("--vm-generation-id")
        .flag(given);
    let first = first.start();
    let guest = Agent::new(first.serial());
    guest.wait_ready();
    assert!(
        guest.run("ls /sys/bus/platform/drivers/vmgenid").contains("TERN0001:00"),
        "no driver took the device"
    );
    assert_eq!(generation(&first), given);

    // A guest that moves is the same one.
    let second = machine.incoming(Incoming::Unix).start();
    let none = second.qmp().try_execute("query-vm-generation-id", json!({})).unwrap_err();
    assert!(none["desc"].as_str().unwrap().contains("no VM generation ID"), "{none}");
    migrate(&first, &second);
    assert!(first.quit().success());
    let guest = Agent::new(second.serial());
    guest.run("clock");
    assert!(!second.serial().text().contains(RESEEDED));
    assert_eq!(generation(&second), given);

    // Two that go on from a file are two others.
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("guest.snap");
    save(&second, &snapshot);
    assert!(second.quit().success());
    let mut ids = vec![given.to_owned()];
    for _ in 0..2 {
        let mut restored = TernBuilder::restore(&snapshot).serial_unix().start();
        restored.serial().wait_text(RESEEDED);
        ids.push(generation(&restored));
        restored.qmp().execute("system_powerdown", json!({}));
        restored.serial().wait_text("AGENT poweroff");
        assert!(restored.wait_end().success(), "{}", restored.stderr());
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3, "{ids:?}");
}
