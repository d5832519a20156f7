//! KVM for a test, or a skip that is said and counted.

use std::io::Write;
use std::path::Path;

use kvm_ioctls::Kvm;

/// KVM; `None` where the host has none, which is told on stderr and to whoever counts (the file that
/// `TERN_TEST_SKIPPED` names). A KVM that exists and can't be used fails the test.
pub fn kvm() -> Option<Kvm> {
    if Path::new("/dev/kvm").exists() {
        return Some(Kvm::new().expect("/dev/kvm exists but can't be used"));
    }
    let thread = std::thread::current();
    let text = format!("SKIPPED: {}: this host has no /dev/kvm", thread.name().unwrap_or("a test"));
    eprintln!("{text}");
    if let Some(path) = std::env::var_os("TERN_TEST_SKIPPED") {
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        writeln!(file, "{text}").unwrap();
    }
    None
}
