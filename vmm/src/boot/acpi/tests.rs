//! The tables as a kernel walks them, and as iasl reads them.

use std::path::Path;
use std::process::Command;

use super::*;
use crate::boot::testing::{ram, read, u16_at, u32_at, u64_at};
use crate::layout::virtio_slot;
use crate::skip::skip;

struct Tables {
    facs: Vec<u8>,
    fadt: Vec<u8>,
    madt: Vec<u8>,
    dsdt: Vec<u8>,
    xsdt: Vec<u8>,
}

fn all_slots() -> Vec<VirtioSlot> {
    (0..layout::VIRTIO_GSIS.len()).map(|index| virtio_slot(index).unwrap()).collect()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Follows every pointer from the RSDP, checking signatures, lengths and checksums on the way.
fn walk(cpus: u8, virtio: &[VirtioSlot]) -> Tables {
    let memory = ram(2 << 20);
    write_tables(&memory, &AcpiConfig { cpus, virtio }).unwrap();
    let rsdp = read(&memory, layout::ACPI_RSDP, 36);
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));

    let table = |gpa: u64, signature: &[u8]| {
        let bytes = u32_at(&read(&memory, gpa, 8), 4) as usize;
        let table = read(&memory, gpa, bytes);
        assert_eq!(&table[..4], signature);
        assert!(gpa >= layout::ACPI_TABLES && gpa + bytes as u64 <= layout::ACPI_TABLES_END);
        assert!(
            signature == b"FACS" || sum(&table) == 0,
            "checksum of {}",
            String::from_utf8_lossy(signature)
        );
        table
    };
    let xsdt = table(u64_at(&rsdp, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(u64_at(&xsdt, 36), b"FACP");
    let madt = table(u64_at(&xsdt, 44), b"APIC");
    let facs_gpa = u64_at(&fadt, 132);
    assert_eq!(facs_gpa % 64, 0);
    Tables { facs: table(facs_gpa, b"FACS"), dsdt: table(u64_at(&fadt, 140), b"DSDT"), fadt, madt, xsdt }
}

#[test]
fn fadt_describes_the_pm1_registers_and_the_reset() {
    let fadt = walk(1, &[]).fadt;
    assert_eq!(fadt.len(), 276);
    assert_eq!(u16_at(&fadt, 46), 9);
    assert_eq!((u32_at(&fadt, 48), u32_at(&fadt, 56), u32_at(&fadt, 64)), (0, 0x600, 0x604));
    assert_eq!((fadt[88], fadt[89]), (4, 2));
    assert_eq!((u32_at(&fadt, 80), fadt[92]), (0x608, 2));
    let flags = u32_at(&fadt, 112);
    assert_eq!(flags & Flags::HwReducedAcpi as u32, 0);
    assert_eq!(flags & Flags::PwrButton as u32, 0);
    assert_ne!(flags & Flags::ResetRegSup as u32, 0);
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0x64, 0, 0, 0, 0, 0, 0, 0, 0xfe]);
    assert_eq!(fadt[148..160], [1, 32, 0, 2, 0, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[172..184], [1, 16, 0, 2, 4, 6, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[220..232], [1, 16, 0, 1, 8, 6, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn madt_lists_processors_and_the_sci() {
    let madt = walk(3, &[]).madt;
    assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xfee0_0000, 1));
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while let Some(length) = rest.get(1) {
        let (entry, after) = rest.split_at(usize::from(*length));
        entries.push(entry);
        rest = after;
    }
    assert_eq!(entries[..3], [[0, 8, 0, 0, 1, 0, 0, 0], [0, 8, 1, 1, 1, 0, 0, 0], [0, 8, 2, 2, 1, 0, 0, 0]]);
    assert_eq!(entries[3], [1, 12, 3, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(entries[4], [2, 10, 0, 9, 9, 0, 0, 0, 5, 0]);
    assert_eq!(entries[5], [4, 6, 0xff, 0, 0, 1]);
    assert_eq!(entries.len(), 6);
}

#[test]
fn the_largest_machine_fits() {
    let tables = walk(layout::MAX_CPUS, &all_slots());
    assert_eq!(tables.madt.len(), 44 + 254 * 8 + 12 + 10 + 6);
}

/// Runs `iasl` in `directory`; its whole output, which must have ended well.
fn iasl(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl").args(arguments).current_dir(directory).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|stream| String::from_utf8_lossy(&stream).into_owned()).concat();
    assert!(output.status.success(), "iasl {arguments:?}: {text}");
    text
}

const IASL_MISSING: &str = "iasl is missing: apt-get install acpica-tools";

/// `iasl` (package acpica-tools) is the reference implementation's own reader. Where `TERN_TEST_STRICT` is 1 it
/// must be there; elsewhere the test is skipped, and counted.
fn iasl_is_there() -> bool {
    let found = Command::new("iasl").arg("-v").output().is_ok();
    if !found {
        let strict = std::env::var_os("TERN_TEST_STRICT").is_some_and(|value| value == "1");
        assert!(!strict, "{IASL_MISSING}");
        skip(IASL_MISSING);
    }
    found
}

#[test]
fn iasl_disassembles_every_table() {
    if !iasl_is_there() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tables = walk(2, &all_slots());
    let named = [
        ("facs", &tables.facs),
        ("facp", &tables.fadt),
        ("apic", &tables.madt),
        ("dsdt", &tables.dsdt),
        ("xsdt", &tables.xsdt),
    ];
    for (name, bytes) in named {
        std::fs::write(directory.path().join(format!("{name}.dat")), bytes).unwrap();
        let said = iasl(directory.path(), &["-d", &format!("{name}.dat")]);
        let source = std::fs::read_to_string(directory.path().join(format!("{name}.dsl"))).unwrap();
        for complaint in ["Error", "Warning", "Incorrect checksum", "Invalid", "Unknown", "**"] {
            assert!(!said.contains(complaint), "{name}: {said}");
        }
        assert!(!source.contains("Incorrect checksum") && !source.contains("should be"), "{name}: {source}");
    }
}

#[test]
fn iasl_compiles_the_disassembled_dsdt_without_complaint() {
    if !iasl_is_there() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("dsdt.dat"), walk(2, &all_slots()).dsdt).unwrap();
    iasl(directory.path(), &["-d", "dsdt.dat"]);
    let source = std::fs::read_to_string(directory.path().join("dsdt.dsl")).unwrap();
    let expected = [
        "\"LNRO0005\"",
        "EisaId (\"PNP0501\")",
        "EisaId (\"PNP0B00\")",
        "Name (\\_S5, Package",
        "V010",
        "\"VM_Gen_Counter\"",
        "0x000FF008",
        "Method (_E00",
        "Notify (\\_SB.VGEN, 0x80)",
    ];
    for expected in expected {
        assert!(source.contains(expected), "no {expected} in {source}");
    }
    let said = iasl(directory.path(), &["dsdt.dsl"]);
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
}
