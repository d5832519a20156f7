//! KVM for a test, or a skip that is said and counted.

use std::path::Path;

use kvm_ioctls::Kvm;

#[path = "../../../migration/tests/skip/mod.rs"]
mod skip;

#[allow(unused_imports, reason = "not every test has something else to skip for")]
pub use skip::skip;

/// KVM; `None` where the host has none, which is said and counted. A KVM that exists and can't be used fails the test.
pub fn kvm() -> Option<Kvm> {
    if Path::new("/dev/kvm").exists() {
        return Some(Kvm::new().expect("/dev/kvm exists but can't be used"));
    }
    skip("this host has no /dev/kvm");
    None
}
