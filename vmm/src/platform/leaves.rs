//! CPUID beyond features: what each leaf means to a guest that moves, one rule a row, each with its reason.
//!
//! A guest's CPUID travels with it: on the destination it is shown what it was shown before. So a field needs
//! a rule only where the processor itself must behave as the field says. A leaf that isn't in these tables is
//! one that this tern doesn't know: profiles hide it, and without a profile both hosts must have it alike.

use std::ops::RangeInclusive;

use tern_migration::Aspect;

use crate::vcpu::{CpuidV1, Register};

/// Leaves of which nothing but features and the fields below must agree, and why.
const FREE: [(RangeInclusive<u32>, &str); 20] = [
    (0..=0, "the highest leaf travels with the guest; the vendor is compared by itself"),
    (1..=1, "family, model and stepping travel with the guest; what they stand for is in the features"),
    (2..=5, "caches and MONITOR's line size are hints"),
    (6..=7, "features; the number of subleaves travels with the guest"),
    (9..=9, "direct cache access is a hint"),
    (0xa..=0xb, "no counters are shown, and tern writes the topology"),
    (0xd..=0xd, "areas are compared for the components that the guest may use"),
    (0xf..=0x10, "resource monitoring is not virtualised"),
    (0x12..=0x12, "enclaves are not shown"),
    (0x14..=0x16, "no traces are shown; frequencies are compared by what the TSC does"),
    (0x18..=0x1c, "TLB sizes are hints; key locker is a feature; no branch records are shown"),
    (0x1d..=0x1e, "tiles are compared below"),
    (0x1f..=0x1f, "tern writes the topology"),
    (0x24..=0x24, "AVX10's version is compared below"),
    (0x4000_0000..=0x4000_0001, "features; hints travel with the guest"),
    (0x4000_0010..=0x4000_0010, "tern writes the frequency"),
    (0x8000_0000..=0x8000_0008, "brand, caches and numbers of cores travel with the guest"),
    (0x8000_000a..=0x8000_000a, "nested guests are not shown"),
    (0x8000_0019..=0x8000_001f, "TLB sizes, caches and topology are hints; memory encryption is a feature"),
    (0x8000_0021..=0x8000_0022, "features; no counters are shown"),
];

/// Does tern know what this leaf says?
pub(crate) fn is_known_leaf(leaf: u32) -> bool {
    FREE.iter().any(|(range, _)| range.contains(&leaf))
}

/// How two values of a field have to agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The host must have what the guest sees.
    Same,
    /// The host must have as much as the guest sees, or more.
    AtLeast,
}

/// A part of a register that isn't a set of features and yet must agree.
struct Field {
    name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: Register,
    mask: u32,
    rule: Rule,
    why: &'static str,
}

const fn field(
    name: &'static str,
    (leaf, subleaf, register, mask): (u32, u32, Register, u32),
    rule: Rule,
    why: &'static str,
) -> Field {
    Field { name, leaf, subleaf, register, mask, rule, why }
}

const PROTOCOL: &str = "the guest talks to this hypervisor";
const TILES: &str = "tile registers have this shape in every instruction and in saved state";

const FIELDS: [Field; 12] = [
    field("CLFLUSH line", (1, 0, Register::Ebx, 0xff00), Rule::Same, "a guest flushes memory in such steps"),
    field("physical address bits", ADDRESS_PHYSICAL, Rule::AtLeast, "a guest may map that far"),
    field("linear address bits", ADDRESS_LINEAR, Rule::AtLeast, "a guest may map that far"),
    field("hypervisor", (0x4000_0000, 0, Register::Ebx, !0), Rule::Same, PROTOCOL),
    field("hypervisor", (0x4000_0000, 0, Register::Ecx, !0), Rule::Same, PROTOCOL),
    field("hypervisor", (0x4000_0000, 0, Register::Edx, !0), Rule::Same, PROTOCOL),
    field("AMX palettes", (0x1d, 0, Register::Eax, !0), Rule::AtLeast, "a guest may choose any of them"),
    field("AMX tile bytes", (0x1d, 1, Register::Eax, !0), Rule::Same, TILES),
    field("AMX tile rows", (0x1d, 1, Register::Ebx, !0), Rule::Same, TILES),
    field("AMX tile names", (0x1d, 1, Register::Ecx, !0), Rule::Same, TILES),
    field("AMX multiplier", (0x1e, 0, Register::Ebx, !0), Rule::Same, TILES),
    field("AVX10 version", (0x24, 0, Register::Ebx, 0xff), Rule::AtLeast, "a version has the ones below it"),
];

const ADDRESS_PHYSICAL: (u32, u32, Register, u32) = (0x8000_0008, 0, Register::Eax, 0xff);
const ADDRESS_LINEAR: (u32, u32, Register, u32) = (0x8000_0008, 0, Register::Eax, 0xff00);
const LEAF_XSAVE: u32 = 0xd;
/// The code of these aspects.
const CODE: &str = "cpuid";

fn entry(list: &[CpuidV1], leaf: u32, subleaf: u32) -> Option<&CpuidV1> {
    list.iter().find(|entry| entry.leaf == leaf && entry.subleaf == subleaf)
}

fn value(list: &[CpuidV1], leaf: u32, subleaf: u32, register: Register) -> u32 {
    entry(list, leaf, subleaf).map_or(0, |entry| entry.register(register))
}

/// Compares what isn't a feature and not the vendor: one aspect that fits, or one for each field that
/// doesn't. A field that the guest sees as zero asks nothing of the host.
pub(super) fn compare(guest: &[CpuidV1], host: &[CpuidV1]) -> Vec<Aspect> {
    let mut list: Vec<Aspect> = FIELDS.iter().filter_map(|field| difference(field, guest, host)).collect();
    list.extend(xsave_differences(guest, host));
    list.extend(guest.iter().filter_map(|theirs| unknown_difference(theirs, host)));
    if list.is_empty() {
        list.push(Aspect::fits(CODE, "other CPUID fields", "as the guest sees them", "alike, or more"));
    }
    list
}

fn difference(field: &Field, guest: &[CpuidV1], host: &[CpuidV1]) -> Option<Aspect> {
    let Field { name, leaf, subleaf, register, mask, rule, why } = field;
    let of = |list| (value(list, *leaf, *subleaf, *register) & mask) >> mask.trailing_zeros();
    let (seen, here) = (of(guest), of(host));
    let (fits, relation) = match rule {
        Rule::Same => (seen == here, "the same"),
        Rule::AtLeast => (seen <= here, "as much or more"),
    };
    let remedy = format!("use a host that has {relation}: {why}");
    (seen != 0 && !fits).then(|| Aspect::differs(CODE, name, seen.to_string(), here.to_string(), remedy))
}

fn unknown_difference(theirs: &CpuidV1, host: &[CpuidV1]) -> Option<Aspect> {
    let CpuidV1 { leaf, subleaf, flags: _, eax, ebx, ecx, edx } = theirs;
    let seen = [*eax, *ebx, *ecx, *edx];
    let here = entry(host, *leaf, *subleaf).map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx]);
    let differs = !is_known_leaf(*leaf) && seen != [0; 4] && seen != here;
    let text = |words: [u32; 4]| words.map(|word| format!("{word:#x}")).join(" ");
    differs.then(|| {
        let name = format!("CPUID leaf {leaf:#x}.{subleaf:#x}");
        let remedy =
            "this tern does not know what it says, so both must have it alike; a profile hides it (--cpu)";
        Aspect::differs(CODE, &name, text(seen), text(here), remedy)
    })
}

/// Where each component of the XSAVE area is, for those that the guest may use: its saved area is laid out
/// so, and the processor has no other layout.
fn xsave_differences(guest: &[CpuidV1], host: &[CpuidV1]) -> Vec<Aspect> {
    let used = value(guest, LEAF_XSAVE, 0, Register::Eax) | value(guest, LEAF_XSAVE, 1, Register::Ecx);
    let area = |list, component| entry(list, LEAF_XSAVE, component).map(|e| (e.eax, e.ebx, e.ecx));
    let text = |found: Option<(u32, u32, u32)>| {
        found.map_or("none".to_owned(), |(bytes, offset, _)| format!("{bytes} bytes at {offset}"))
    };
    let compare = |component: u32| {
        let (theirs, here) = (area(guest, component), area(host, component));
        (theirs.is_some() && theirs != here).then(|| {
            let name = format!("XSAVE component {component}");
            let remedy = "its place is the processor's: hide it at the source (--cpu)";
            Aspect::differs(CODE, &name, text(theirs), text(here), remedy)
        })
    };
    (2..32).filter(|component| used >> component & 1 == 1).filter_map(compare).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(leaf: u32, subleaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidV1 {
        CpuidV1 { leaf, subleaf, flags: 0, eax, ebx, ecx, edx }
    }

    fn texts(guest: &[CpuidV1], host: &[CpuidV1]) -> Vec<String> {
        compare(guest, host).iter().filter(|aspect| !aspect.is_ok()).map(Aspect::text).collect()
    }

    #[test]
    fn hints_may_differ() {
        let guest = [
            leaf(4, 0, [1, 2, 3, 4]),
            leaf(0x8000_0002, 0, [5; 4]),
            leaf(1, 0, [0xc06f2, 0x0002_0800, 0, 0]),
        ];
        let host = [leaf(1, 0, [0x806f8, 0x0700_0800, 0, 0])];
        assert_eq!(texts(&guest, &host), Vec::<String>::new());
        assert_eq!(compare(&guest, &host).len(), 1);
    }

    #[test]
    fn fields_that_the_processor_obeys_must_agree() {
        let host = [leaf(1, 0, [0, 0x0800, 0, 0]), leaf(0x8000_0008, 0, [0x3028, 0, 0, 0])];
        let found = texts(&[leaf(1, 0, [0, 0x0400, 0, 0]), leaf(0x8000_0008, 0, [0x392e, 0, 0, 0])], &host);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("CLFLUSH line: source 4, destination 8"), "{found:?}");
        assert!(found[1].contains("physical address bits: source 46, destination 40"), "{found:?}");
        assert_eq!(texts(&[leaf(0x8000_0008, 0, [0x3024, 0, 0, 0])], &host), Vec::<String>::new());
    }

    #[test]
    fn components_in_use_have_one_place() {
        let (used, area) = (leaf(0xd, 0, [0b111, 0, 0, 0]), |offset| leaf(0xd, 2, [256, offset, 0, 0]));
        let text = texts(&[used.clone(), area(576)], &[area(832)]).join("");
        assert!(
            text.contains("component 2: source 256 bytes at 576, destination 256 bytes at 832"),
            "{text}"
        );
        assert!(texts(&[used, area(576)], &[]).join("").contains("destination none"));
        assert_eq!(texts(&[area(576)], &[]), Vec::<String>::new(), "not in use");
    }

    #[test]
    fn a_leaf_that_nobody_knows_must_be_alike() {
        let (seen, other) = (leaf(0x99, 1, [1, 0, 0, 0]), leaf(0x99, 1, [2, 0, 0, 0]));
        let guest = [seen];
        assert!(texts(&guest, &[other]).join("").contains("CPUID leaf 0x99.0x1: source 0x1 0x0"));
        assert_eq!(texts(&guest, &guest), Vec::<String>::new());
        assert_eq!(texts(&[leaf(0x99, 1, [0; 4])], &[]), Vec::<String>::new());
    }

    #[test]
    fn the_table_of_leaves_is_in_order() {
        for pair in FREE.windows(2) {
            assert!(pair[0].0.end() < pair[1].0.start(), "{:?} {:?}", pair[0], pair[1]);
        }
        for Field { leaf, name, .. } in &FIELDS {
            assert!(is_known_leaf(*leaf), "{name}");
        }
    }
}
