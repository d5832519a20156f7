//! What a guest reads from CPUID is what tern says that it sees: a program of a few instructions reads the
//! registers of features, with and without a profile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use std::io::{Read, Seek};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tern_devices::{BytePort, PortTarget};
use tern_migration::SourceVm;
use tern_schema::decode_record;
use tern_vmm::boot::{Entry, Protocol};
use tern_vmm::config::VmConfig;
use tern_vmm::control::event_queue;
use tern_vmm::devices::Plugs;
use tern_vmm::host::{KvmKind, needs};
use tern_vmm::memory::Backing;
use tern_vmm::platform::PlatformV1;
use tern_vmm::run_control::Hold;
use tern_vmm::vcpu::{CpuidV1, Feature, FeatureSet, Place, Profile};
use tern_vmm::vm::{Host, Vm};
use vm_memory::{Bytes, GuestAddress};

const PATIENCE: Duration = Duration::from_secs(120);
const CODE: u64 = 0x20_0000;
const TABLE: u64 = 0x21_0000;
/// Bytes of a row: leaf, subleaf, and the four registers.
const ROW_BYTES: u64 = 24;

/// 32-bit code: fills each row of the table, writes `.` to the serial port, and halts.
const PROGRAM: &[u8] = &[
    0xbe, 0x00, 0x00, 0x21, 0x00, // mov esi, TABLE
    0xbf, 0x00, 0x00, 0x00, 0x00, // mov edi, number of rows
    0x8b, 0x06, // row: mov eax, [esi]
    0x8b, 0x4e, 0x04, // mov ecx, [esi+4]
    0x0f, 0xa2, // cpuid
    0x89, 0x46, 0x08, // mov [esi+8], eax
    0x89, 0x5e, 0x0c, // mov [esi+12], ebx
    0x89, 0x4e, 0x10, // mov [esi+16], ecx
    0x89, 0x56, 0x14, // mov [esi+20], edx
    0x83, 0xc6, 0x18, // add esi, 24
    0x4f, // dec edi
    0x75, 0xe7, // jnz row
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x2e, // mov al, '.'
    0xee, // out dx, al
    0xf4, // halted: hlt
    0xeb, 0xfd, // jmp halted
];
const PROGRAM_ROWS_AT: usize = 6;

/// The leaves and subleaves that have features.
fn leaves() -> Vec<(u32, u32)> {
    let mut list = Vec::new();
    for feature in Feature::all() {
        if let Some((Place::Cpuid { leaf, subleaf, .. }, _)) = feature.place()
            && !list.contains(&(leaf, subleaf))
        {
            list.push((leaf, subleaf));
        }
    }
    list
}

/// What the program read, and what the machine says that it sees.
fn read_by_guest(kvm: kvm_ioctls::Kvm, cpu: &str) -> (FeatureSet, FeatureSet) {
    let host = Arc::new(Host { kvm, kind: "test".into(), hidden: needs(KvmKind::detect()).hidden });
    let config = VmConfig { cpu: cpu.parse().unwrap(), ..VmConfig::new(64 << 20) };
    let mut words = tempfile::tempfile().unwrap();
    let serial = BytePort::new(PortTarget::File(words.try_clone().unwrap())).unwrap();
    let plugs = Plugs::new(&config, serial, BytePort::new(PortTarget::Null).unwrap()).unwrap();
    let (events, _) = event_queue().unwrap();
    let on_event = Arc::new(|event| panic!("a vCPU ended: {event:?}"));
    let vm =
        Vm::build(&host, &config, &Backing::Anonymous, &plugs, Hold::Building, &events, on_event).unwrap();

    let (ram, leaves) = (SourceVm::ram(&vm), leaves());
    let mut program = PROGRAM.to_vec();
    program[PROGRAM_ROWS_AT..][..4].copy_from_slice(&(leaves.len() as u32).to_le_bytes());
    ram.write_slice(&program, GuestAddress(CODE)).unwrap();
    for (row, (leaf, subleaf)) in (0..).zip(&leaves) {
        let at = TABLE + row * ROW_BYTES;
        ram.write_obj(*leaf, GuestAddress(at)).unwrap();
        ram.write_obj(*subleaf, GuestAddress(at + 4)).unwrap();
    }
    vm.enter(&Entry { protocol: Protocol::Pvh, rip: CODE, rsp: 0, rbx: 0, rsi: 0 }).unwrap();
    vm.core().run().release(Hold::Building);
    wait_for_word(&mut words);
    vm.core().run().hold(Hold::User);

    let value = |row: u64, word: u64| ram.read_obj(GuestAddress(TABLE + row * ROW_BYTES + word * 4)).unwrap();
    let entry = |(row, (leaf, subleaf)): (u64, &(u32, u32))| {
        let [eax, ebx, ecx, edx] = [2, 3, 4, 5].map(|word| value(row, word));
        CpuidV1 { leaf: *leaf, subleaf: *subleaf, flags: 0, eax, ebx, ecx, edx }
    };
    let read: Vec<CpuidV1> = (0..).zip(&leaves).map(entry).collect();
    let platform: PlatformV1 = decode_record(&SourceVm::facts(&vm).platform).unwrap();
    (FeatureSet::seen(&read, &[]), FeatureSet::seen(&platform.cpuid, &[]))
}

fn wait_for_word(words: &mut std::fs::File) {
    let deadline = Instant::now() + PATIENCE;
    let mut text = String::new();
    while !text.contains('.') {
        assert!(Instant::now() < deadline, "the guest has not written");
        std::thread::sleep(Duration::from_millis(2));
        words.rewind().unwrap();
        words.read_to_string(&mut text).unwrap();
    }
}

#[test]
fn a_guest_sees_what_its_machine_says() {
    for cpu in ["host", "x86-64-v1"] {
        let Some(kvm) = host::kvm() else { return };
        let (read, said) = read_by_guest(kvm, cpu);
        let (more, less) = (read.without(&said), said.without(&read));
        assert!(more.is_empty() && less.is_empty(), "--cpu {cpu}: it also sees: {more}; and lacks: {less}");
        assert!(read.contains(Feature::named("sse2").unwrap()));
    }
}

#[test]
fn a_profile_hides_what_this_kind_of_host_can_hide() {
    let Some(kvm) = host::kvm() else { return };
    let profile = Profile::named("x86-64-v1").unwrap();
    let (read, _) = read_by_guest(kvm, "x86-64-v1");
    let beyond = read.without(&profile.visible()).without(&tern_vmm::vcpu::forced(KvmKind::detect()));
    assert!(beyond.is_empty(), "beyond the profile it sees: {beyond}");
}
