//! How memory is to be sent: one wish, in the words of both VMMs.

use serde_json::{Value, json};
use tern_tests::Qmp;

use crate::contender::Vmm;

/// A wish.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// For people.
    pub name: &'static str,
    /// Connections that memory takes.
    pub channels: u64,
    /// tern's `compress`; QEMU's `multifd-compression`, where that has it.
    pub compress: &'static str,
    /// Only what has changed in a page.
    pub xbzrle: bool,
    /// Bytes a second; 0: no limit.
    pub max_bandwidth: u64,
    /// tern's proof of equality. QEMU has none.
    pub verify: bool,
}

/// Pages as they are over one connection, as both do it if nobody says anything else.
pub const PLAIN: Way =
    Way { name: "raw", channels: 1, compress: "none", xbzrle: false, max_bandwidth: 0, verify: true };

impl Way {
    /// Has the VMM anything like it?
    pub fn known_to(&self, vmm: Vmm) -> bool {
        vmm == Vmm::Tern || (["none", "zstd", "zlib"].contains(&self.compress) && self.verify)
    }

    /// QEMU compresses with multifd only, whose channels are beside the first connection.
    fn multifd(&self) -> bool {
        self.channels > 1 || self.compress != "none"
    }

    /// Threads that work on pages at the source and at the destination.
    pub fn threads(&self, cpus: usize) -> [usize; 2] {
        let compressing = if self.compress == "none" { 1 } else { cpus.min(8) };
        let decoding = if self.compress == "none" && !self.xbzrle { 1 } else { cpus.min(8) };
        let channels = usize::try_from(self.channels).unwrap_or(usize::MAX);
        [channels.max(compressing), channels.max(decoding)]
    }

    /// Tells a destination before it listens.
    pub fn tell_destination(&self, vmm: Vmm, destination: &mut Qmp) {
        if vmm == Vmm::Qemu {
            self.set_up_qemu(destination);
        }
    }

    /// Tells a source; returns the arguments of `migrate`.
    pub fn request(&self, vmm: Vmm, source: &mut Qmp, uri: &str) -> Value {
        if vmm == Vmm::Qemu {
            self.set_up_qemu(source);
            return json!({ "uri": uri });
        }
        let switch = |name: &str, state: bool| json!({ "capability": name, "state": state });
        json!({
            "uri": uri,
            "capabilities": [switch("xbzrle", self.xbzrle), switch("verify", self.verify)],
            "parameters": {
                "channels": self.channels,
                "compress": self.compress,
                "max-bandwidth": self.max_bandwidth,
            },
        })
    }

    fn set_up_qemu(&self, qmp: &mut Qmp) {
        let switch = |name: &str, state: bool| json!({ "capability": name, "state": state });
        let switches =
            [switch("events", true), switch("multifd", self.multifd()), switch("xbzrle", self.xbzrle)];
        qmp.execute("migrate-set-capabilities", json!({ "capabilities": switches }));
        let parameters = json!({
            "max-bandwidth": self.max_bandwidth,
            // Its default is 2, the same as tern has threads that compress where there are two processors.
            "multifd-channels": self.channels.max(2),
            "multifd-compression": self.compress,
        });
        qmp.execute("migrate-set-parameters", parameters);
    }
}
