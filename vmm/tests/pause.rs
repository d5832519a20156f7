//! Stopping vCPUs in the middle of what they do: no access to a device is lost or made twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tern_vmm::kvm::set_slot;
use tern_vmm::vcpu::{self, Bus, Offer, Template, Vcpu, VcpuEvent, VcpuSet};
use tern_vmm::{layout, memory};
use vm_memory::{Bytes, GuestAddress};

/// Real mode: `mov ax, 0x9000; mov ds, ax; again: inc word [0]; jmp again`.
const COUNT_IN_A_REGISTER: [u8; 11] = [0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xff, 0x06, 0x00, 0x00, 0xeb, 0xfa];
const CODE: GuestAddress = GuestAddress(0x1000);
const REGISTER: u64 = 0x9_0000;
/// Ends below the register.
const MEMORY_BYTES: u64 = 0x8_0000;

/// A device with one register of 16 bits, which counts its accesses.
#[derive(Default)]
struct Register {
    value: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    /// What should not happen: a panic in a vCPU's thread would leave the test waiting for it.
    strange: AtomicU64,
}

impl Bus for Register {
    fn port_read(&self, _: u16, _: usize, _: &mut [u8]) {
        self.strange.fetch_add(1, Ordering::SeqCst);
    }

    fn port_write(&self, _: u16, _: usize, _: &[u8]) {
        self.strange.fetch_add(1, Ordering::SeqCst);
    }

    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.strange.fetch_add((gpa != REGISTER || data.len() != 2).into(), Ordering::SeqCst);
        data.iter_mut()
            .zip(self.value.load(Ordering::SeqCst).to_le_bytes())
            .for_each(|(to, byte)| *to = byte);
        self.reads.fetch_add(1, Ordering::SeqCst);
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.strange.fetch_add((gpa != REGISTER || data.len() != 2).into(), Ordering::SeqCst);
        let value = data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        self.value.store(value, Ordering::SeqCst);
        self.writes.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn an_access_in_two_halves_is_whole_when_the_vcpu_stands_still() {
    let Some(kvm) = host::kvm() else { return };
    let vm = kvm.create_vm().unwrap();
    let ram = memory::map(MEMORY_BYTES, &memory::Backing::Anonymous).unwrap();
    ram.write_slice(&COUNT_IN_A_REGISTER, CODE).unwrap();
    set_slot(&vm, 0, &memory::slots(&ram)[0], 0).unwrap();
    vm.set_tss_address(layout::KVM_TSS as usize).unwrap();
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).unwrap();
    vm.create_irq_chip().unwrap();
    let template = Template::new(Offer::of(&kvm, &[]).unwrap(), 1);
    let msrs = vcpu::msr_indices(&kvm).unwrap();
    let mut only = Vcpu::new(&vm, 0, 1, &template, &msrs, ram.clone()).unwrap();
    let mut state = only.save().unwrap();
    (state.sregs.cs.base, state.sregs.cs.selector, state.regs.rip) = (0, 0, CODE.0);
    only.restore(&state, None).unwrap();

    let register = Arc::new(Register::default());
    let bus: Arc<dyn Bus> = register.clone();
    let ended = Arc::clone(&register);
    let on_event: Arc<dyn Fn(VcpuEvent) + Send + Sync> = Arc::new(move |event| {
        eprintln!("the vCPU ended: {event:?}");
        ended.strange.fetch_add(1, Ordering::SeqCst);
    });
    let set = VcpuSet::new(vec![only], &bus, &on_event).unwrap();
    for round in 0..500 {
        set.run();
        std::thread::sleep(Duration::from_micros(round % 50 * 20));
        set.pause();
        let counts = [&register.reads, &register.writes].map(|count| count.load(Ordering::SeqCst));
        assert_eq!(register.strange.load(Ordering::SeqCst), 0);
        assert_eq!(counts[0], counts[1], "round {round}: reads and writes");
        assert_eq!(register.value.load(Ordering::SeqCst), counts[1] & 0xffff, "round {round}");
    }
    assert!(register.writes.load(Ordering::SeqCst) > 100, "the guest hardly ran");
}
