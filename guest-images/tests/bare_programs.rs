//! The programs that `build.rs` makes are what loaders and kernels expect: static ELF files
//! that ask for no interpreter, and for pulse a PVH entry inside its own code.

const PULSE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pulse"));
const AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const PT_NOTE: u64 = 4;
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// A program header (ELF-64, "Elf64_Phdr").
struct Segment {
    kind: u64,
    offset: u64,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

fn number(elf: &[u8], at: u64, bytes: usize) -> u64 {
    let at = at as usize;
    elf[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn segments(elf: &[u8]) -> Vec<Segment> {
    let (table, size, count) = (number(elf, 32, 8), number(elf, 54, 2), number(elf, 56, 2));
    (0..count)
        .map(|index| table + index * size)
        .map(|at| Segment {
            kind: number(elf, at, 4),
            offset: number(elf, at + 8, 8),
            physical: number(elf, at + 24, 8),
            file_bytes: number(elf, at + 32, 8),
            memory_bytes: number(elf, at + 40, 8),
        })
        .collect()
}

#[test]
fn both_are_static_x86_64_programs() {
    for (name, elf) in [("pulse", PULSE), ("agent", AGENT)] {
        assert_eq!(&elf[..5], b"\x7fELF\x02", "{name}");
        assert_eq!(number(elf, 16, 2), 2, "{name} is ET_EXEC");
        assert_eq!(number(elf, 18, 2), 62, "{name} is EM_X86_64");
        let dynamic = segments(elf).iter().any(|segment| [PT_DYNAMIC, PT_INTERP].contains(&segment.kind));
        assert!(!dynamic, "{name} asks for a dynamic linker");
    }
}

#[test]
fn pulse_has_a_pvh_entry_in_its_code() {
    let segments = segments(PULSE);
    let notes: Vec<&Segment> = segments.iter().filter(|segment| segment.kind == PT_NOTE).collect();
    assert_eq!(notes.len(), 1);
    let note = notes[0].offset;
    let (name_bytes, entry_bytes) = (number(PULSE, note, 4), number(PULSE, note + 4, 4));
    assert_eq!((name_bytes, entry_bytes), (4, 8));
    assert_eq!(number(PULSE, note + 8, 4), XEN_ELFNOTE_PHYS32_ENTRY);
    assert_eq!(&PULSE[note as usize + 12..note as usize + 16], b"Xen\0");
    let entry = number(PULSE, note + 16, 8);
    let in_code = segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .any(|segment| (segment.physical..segment.physical + segment.file_bytes).contains(&entry));
    assert!(in_code, "entry {entry:#x}");
}

#[test]
fn pulse_lies_between_1_mib_and_the_default_start() {
    for segment in segments(PULSE).iter().filter(|segment| segment.kind == PT_LOAD) {
        let end = segment.physical + segment.memory_bytes;
        assert!(segment.physical >= 1 << 20 && end <= 2 << 20, "{:#x}..{end:#x}", segment.physical);
    }
}
