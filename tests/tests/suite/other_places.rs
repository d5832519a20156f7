//! A Linux guest from a file whose interface is at another TAP and has another address: it is reachable there at once, the
//! next file has both, and its driver takes the address when it starts anew.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tern_tests::binary::tern_binary;
use tern_tests::host::image_or_skip;
use tern_tests::{Agent, Namespace, TernBuilder, kvm_or_skip, root_or_skip, save};

const GUEST: &str = "10.77.0.2:7";
const MAC: &str = "02:00:00:00:00:77";

/// What `tern inspect` shows under this name, anywhere in the file.
fn shown(file: &Path, name: &str) -> Vec<Value> {
    let output = Command::new(tern_binary()).args(["inspect", "--json"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (mut waiting, mut found) =
        (vec![serde_json::from_slice::<Value>(&output.stdout).unwrap()], Vec::new());
    while let Some(mut node) = waiting.pop() {
        if node["name"] == name {
            found.push(node["value"].take());
        }
        waiting.extend(node["children"].as_array().into_iter().flatten().cloned());
    }
    found
}

fn address(guest: Agent<'_>) -> String {
    guest.run("cat /sys/class/net/eth0/address").trim().to_owned()
}

#[test]
fn an_interface_has_another_tap_and_another_address_from_then_on() {
    if !kvm_or_skip() || !root_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let network = Namespace::new(&["tap0", "tap1"]);
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let machine = TernBuilder::new().memory("96M").in_namespace(&network).net("tap0");
    let guest = machine.image("linux-up").cmdline("tern.ip=10.77.0.2/24 tern.echo=7").start_booted();
    network.echo(GUEST, 1);
    let before = address(Agent::new(guest.serial()));
    save(&guest, &first);
    assert!(guest.quit().success());

    let restored = TernBuilder::restore(&first).in_namespace(&network).serial_unix();
    let restored = restored.flag("--net").flag(format!("0=tap=tap1,mac={MAC}")).start();
    network.echo(GUEST, 3);
    let said = restored.stderr();
    assert!(said.contains(MAC) && said.contains(&before), "both addresses are to be told: {said}");
    let here = Agent::new(restored.serial());
    assert_eq!(address(here), before, "a driver at work keeps the address that it has read");
    save(&restored, &second);
    // Of the device's state and of the machine's description: none has the one of before.
    assert_eq!(shown(&second, "mac"), [MAC.replace(':', ""), MAC.replace(':', "")]);
    assert_eq!(shown(&second, "tap"), ["tap1"]);
    restored.qmp().execute("cont", json!({}));
    restored.qmp().execute("system_reset", json!({}));
    here.wait_ready();
    assert_eq!(address(here), MAC);
    network.echo(GUEST, 1);
}
