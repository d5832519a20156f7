//! The sections of a machine, and each section's record.

use tern_devices::{AcpiPmV1, BlkV1, ConsoleV1, I8042V1, NetV1, RngV1, RtcV1, SerialV1};
use tern_migration::VmFacts;
use tern_schema::{Record, Section, StateSet, decode_record, encode_record};
use tern_vmm::kvm::{ClockV1, IoapicV1, PicV1, PitV1};
use tern_vmm::platform::PlatformV1;
use tern_vmm::vcpu::VcpuV1;

use super::{Target, Verdict};
use crate::corpus::golden;
use crate::sections;

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "state",
        what: "all sections, as they are",
        run: state,
        seeds: || vec![sections::write(&golden_sections())],
        allowance: (4096, 128),
    },
    Target {
        name: "state-sealed",
        what: "all sections, their checksums made right, taken as this build's machine takes them",
        run: |bytes| take_all(&sections::write(&sections::parse(bytes))),
        seeds: || vec![sections::write(&golden_sections())],
        allowance: (4096, 128),
    },
    record::<VcpuV1>("record-vcpu", || golden("vcpu-v1")),
    record::<ClockV1>("record-clock", || golden("clock-v1")),
    record::<PitV1>("record-pit", || golden("pit-v1")),
    record::<PicV1>("record-pic", || golden("pic-v1")),
    record::<IoapicV1>("record-ioapic", || golden("ioapic-v1")),
    record::<SerialV1>("record-serial", || golden("serial-v1")),
    record::<I8042V1>("record-i8042", || golden("i8042-v1")),
    record::<RtcV1>("record-rtc", || golden("rtc-v1")),
    record::<AcpiPmV1>("record-acpi-pm", || golden("acpi-pm-v1")),
    record::<BlkV1>("record-virtio-blk", || golden("virtio-blk-v1")),
    record::<NetV1>("record-virtio-net", || golden("virtio-net-v1")),
    record::<RngV1>("record-virtio-rng", || golden("virtio-rng-v1")),
    record::<ConsoleV1>("record-virtio-console", || golden("virtio-console-v1")),
    record::<VmFacts>("record-vm-facts", || golden("handshake-vm-facts")),
    record::<PlatformV1>("record-platform", || golden("handshake-platform-v1")),
];

const fn record<R: Record + PartialEq>(name: &'static str, seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target {
        name,
        what: "a record, from its golden bytes",
        run: comes_back::<R>,
        seeds,
        allowance: (4096, 64),
    }
}

/// What is taken is written, and read again as the same.
fn comes_back<R: Record + PartialEq>(bytes: &[u8]) -> Verdict {
    let Ok(record) = decode_record::<R>(bytes) else { return Verdict::Refused };
    let written = encode_record(&record);
    assert!(decode_record::<R>(&written).as_ref() == Ok(&record), "{} changed", R::RECORD);
    Verdict::Accepted
}

fn state(bytes: &[u8]) -> Verdict {
    let Ok(set) = StateSet::decode(bytes) else { return Verdict::Refused };
    let mut written = Vec::new();
    set.encode(&mut written);
    let again = StateSet::decode(&written);
    assert!(again.is_ok_and(|again| again.sections() == set.sections()), "a state changed");
    Verdict::Accepted
}

/// One of each section, which golden bytes are.
fn golden_sections() -> Vec<sections::Section> {
    fn of<S: Section>() -> Option<sections::Section> {
        let body = golden(&format!("{}-v{}", S::NAME, S::VERSION)).pop()?;
        Some(sections::Section::new(S::NAME, 0, S::VERSION, body))
    }
    [
        of::<VcpuV1>(),
        of::<ClockV1>(),
        of::<PitV1>(),
        of::<PicV1>(),
        of::<IoapicV1>(),
        of::<SerialV1>(),
        of::<RtcV1>(),
        of::<BlkV1>(),
        of::<NetV1>(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn take_all(bytes: &[u8]) -> Verdict {
    fn taken<S: Section>(set: &mut StateSet) -> bool {
        set.take::<S>(0).is_ok()
    }
    let Ok(mut set) = StateSet::decode(bytes) else { return Verdict::Refused };
    let all = [
        taken::<VcpuV1>(&mut set),
        taken::<ClockV1>(&mut set),
        taken::<PitV1>(&mut set),
        taken::<PicV1>(&mut set),
        taken::<IoapicV1>(&mut set),
        taken::<SerialV1>(&mut set),
        taken::<RtcV1>(&mut set),
        taken::<BlkV1>(&mut set),
        taken::<NetV1>(&mut set),
    ];
    let nothing_left = set.finish().is_ok();
    Verdict::accepted(nothing_left && all.iter().all(|taken| *taken))
}
