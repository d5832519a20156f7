//! Guests that booted earlier: what the tests of the Linux guest start with.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tern_guest_images::Cache;
use tern_tests::{PulseLog, Tern, kvm_or_skip};

/// Pages of `pulse`'s memory begin there, in the file too (behind the 2 MiB with which a snapshot begins).
const WORKING_SET: u64 = (16 << 20) + (2 << 20);

fn cached(cache: &Cache) -> Vec<PathBuf> {
    let all = fs::read_dir(cache.root()).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.join("guest.snap").exists()).collect()
}

/// Starts a booted guest. Was it booted for that?
fn start(cache: &Cache, memory: &str) -> (Tern, bool) {
    let boots = std::cell::Cell::new(0);
    let machine = Tern::pulse("ws=1M rate=1000 interval=20").memory(memory);
    let guest = machine.start_booted_in(cache, |tern| {
        boots.set(boots.get() + 1);
        tern.wait_beats(1, 1);
    });
    (guest, boots.get() == 1)
}

/// The guest goes on where it was, here.
fn goes_on(guest: Tern) {
    let before = guest.pulse_log().beats.len();
    guest.wait_beats(1, before + 2);
    PulseLog::read(&guest.serial().text());
    assert!(guest.quit().success());
}

#[test]
fn a_guest_boots_once_and_again_if_its_snapshot_is_spoilt() {
    if !kvm_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path());
    for boots in [true, false, false] {
        let (guest, booted) = start(&cache, "64M");
        assert_eq!(booted, boots);
        goes_on(guest);
    }
    // Of two at once none is in the other's way.
    let [(one, _), (other, _)] = [(); 2].map(|()| start(&cache, "64M"));
    goes_on(one);
    goes_on(other);

    // Another machine has another snapshot.
    let (guest, booted) = start(&cache, "72M");
    assert!(booted && cached(&cache).len() == 2);
    goes_on(guest);

    for spoilt in cached(&cache) {
        let file = fs::OpenOptions::new().write(true).open(spoilt.join("guest.snap")).unwrap();
        file.write_all_at(b"spoilt", WORKING_SET + 5).unwrap();
    }
    let (guest, booted) = start(&cache, "64M");
    assert!(booted, "a spoilt snapshot was used");
    goes_on(guest);
    assert!(!start(&cache, "64M").1, "the spoilt snapshot was not replaced");
    for cut in cached(&cache) {
        fs::File::create(cut.join("guest.snap")).unwrap();
    }
    assert!(start(&cache, "64M").1, "an empty snapshot was used");
}
