//! Saved form of a vCPU's registers, and the way from and to KVM's structures.

use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs2, kvm_xcr, kvm_xcrs};
use tern_schema::record;

mod events;

pub use events::EventsV1;

record! {
    /// General-purpose registers.
    pub struct RegsV1 {
        /// RAX.
        [1] rax: u64,
        /// RBX.
        [2] rbx: u64,
        /// RCX.
        [3] rcx: u64,
        /// RDX.
        [4] rdx: u64,
        /// RSI.
        [5] rsi: u64,
        /// RDI.
        [6] rdi: u64,
        /// RSP.
        [7] rsp: u64,
        /// RBP.
        [8] rbp: u64,
        /// R8.
        [9] r8: u64,
        /// R9.
        [10] r9: u64,
        /// R10.
        [11] r10: u64,
        /// R11.
        [12] r11: u64,
        /// R12.
        [13] r12: u64,
        /// R13.
        [14] r13: u64,
        /// R14.
        [15] r14: u64,
        /// R15.
        [16] r15: u64,
        /// RIP.
        [17] rip: u64,
        /// RFLAGS.
        [18] rflags: u64,
    }
}

impl From<kvm_regs> for RegsV1 {
    fn from(regs: kvm_regs) -> Self {
        let kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, .. } = regs;
        let kvm_regs { r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags, .. } = regs;
        Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }
}

impl From<&RegsV1> for kvm_regs {
    fn from(regs: &RegsV1) -> Self {
        let RegsV1 {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rsp,
            rbp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        } = *regs;
        Self { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }
}

record! {
    /// A segment register with its hidden part.
    pub struct SegmentV1 {
        /// Base address.
        [1] base: u64,
        /// Limit.
        [2] limit: u32,
        /// Selector.
        [3] selector: u16,
        /// Type, S, DPL, P, AVL, L, D/B, G and "unusable" in the order of `kvm_segment`, a byte each.
        [4] attributes: [u8; 9],
    }
}

impl From<&kvm_segment> for SegmentV1 {
    fn from(segment: &kvm_segment) -> Self {
        let kvm_segment {
            base,
            limit,
            selector,
            type_,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
            padding: _,
        } = *segment;
        Self { base, limit, selector, attributes: [type_, s, dpl, present, avl, l, db, g, unusable] }
    }
}

impl From<&SegmentV1> for kvm_segment {
    fn from(segment: &SegmentV1) -> Self {
        let SegmentV1 { base, limit, selector, attributes } = *segment;
        let [type_, s, dpl, present, avl, l, db, g, unusable] = attributes;
        Self { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, padding: 0 }
    }
}

record! {
    /// GDTR or IDTR.
    pub struct TableV1 {
        /// Linear address.
        [1] base: u64,
        /// Limit.
        [2] limit: u16,
    }
}

impl From<&kvm_dtable> for TableV1 {
    fn from(table: &kvm_dtable) -> Self {
        let kvm_dtable { base, limit, padding: _ } = *table;
        Self { base, limit }
    }
}

impl From<&TableV1> for kvm_dtable {
    fn from(table: &TableV1) -> Self {
        let TableV1 { base, limit } = *table;
        Self { base, limit, padding: [0; 3] }
    }
}

record! {
    /// Special registers. Pending interrupts are in the events, not here.
    pub struct SregsV1 {
        /// CS.
        [1] cs: SegmentV1,
        /// DS.
        [2] ds: SegmentV1,
        /// ES.
        [3] es: SegmentV1,
        /// FS.
        [4] fs: SegmentV1,
        /// GS.
        [5] gs: SegmentV1,
        /// SS.
        [6] ss: SegmentV1,
        /// Task register.
        [7] tr: SegmentV1,
        /// LDTR.
        [8] ldt: SegmentV1,
        /// GDTR.
        [9] gdt: TableV1,
        /// IDTR.
        [10] idt: TableV1,
        /// CR0.
        [11] cr0: u64,
        /// CR2.
        [12] cr2: u64,
        /// CR3.
        [13] cr3: u64,
        /// CR4.
        [14] cr4: u64,
        /// CR8.
        [15] cr8: u64,
        /// EFER.
        [16] efer: u64,
        /// APIC base.
        [17] apic_base: u64,
        /// The four PDPTRs, where they are valid and the host can read them (SREGS2).
        [18] pdptrs: Option<Vec<u64>>,
    }
}

const PDPTRS_VALID: u64 = kvm_bindings::KVM_SREGS2_FLAGS_PDPTRS_VALID as u64;

impl From<&kvm_sregs2> for SregsV1 {
    fn from(sregs: &kvm_sregs2) -> Self {
        let kvm_sregs2 { cs, ds, es, fs, gs, ss, tr, ldt, gdt, idt, .. } = sregs;
        let kvm_sregs2 { cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags, pdptrs, .. } = *sregs;
        Self {
            cs: cs.into(),
            ds: ds.into(),
            es: es.into(),
            fs: fs.into(),
            gs: gs.into(),
            ss: ss.into(),
            tr: tr.into(),
            ldt: ldt.into(),
            gdt: gdt.into(),
            idt: idt.into(),
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            pdptrs: (flags & PDPTRS_VALID != 0).then(|| pdptrs.to_vec()),
        }
    }
}

impl From<&SregsV1> for kvm_sregs2 {
    fn from(sregs: &SregsV1) -> Self {
        let SregsV1 {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr,
            ldt,
            gdt,
            idt,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            apic_base,
            pdptrs,
        } = sregs;
        let mut words = [0; 4];
        let flags = if pdptrs.is_some() { PDPTRS_VALID } else { 0 };
        words.iter_mut().zip(pdptrs.iter().flatten()).for_each(|(to, from)| *to = *from);
        Self {
            cs: cs.into(),
            ds: ds.into(),
            es: es.into(),
            fs: fs.into(),
            gs: gs.into(),
            ss: ss.into(),
            tr: tr.into(),
            ldt: ldt.into(),
            gdt: gdt.into(),
            idt: idt.into(),
            cr0: *cr0,
            cr2: *cr2,
            cr3: *cr3,
            cr4: *cr4,
            cr8: *cr8,
            efer: *efer,
            apic_base: *apic_base,
            flags,
            pdptrs: words,
        }
    }
}

record! {
    /// An extended control register.
    pub struct XcrV1 {
        /// Number; 0 is XCR0.
        [1] number: u32,
        /// Value.
        [2] value: u64,
    }
}

/// The XCRs that KVM listed.
pub(super) fn xcrs_from(xcrs: &kvm_xcrs) -> Vec<XcrV1> {
    let listed = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
    listed.map(|xcr| XcrV1 { number: xcr.xcr, value: xcr.value }).collect()
}

/// KVM's list of XCRs; `None` if it has no room for all.
pub(super) fn xcrs_to(list: &[XcrV1]) -> Option<kvm_xcrs> {
    let mut xcrs = kvm_xcrs { nr_xcrs: list.len() as u32, ..Default::default() };
    for (index, XcrV1 { number, value }) in list.iter().enumerate() {
        *xcrs.xcrs.get_mut(index)? = kvm_xcr { xcr: *number, reserved: 0, value: *value };
    }
    Some(xcrs)
}

record! {
    /// Debug registers.
    pub struct DebugRegsV1 {
        /// DR0 to DR3.
        [1] db: Vec<u64>,
        /// DR6.
        [2] dr6: u64,
        /// DR7.
        [3] dr7: u64,
    }
}

impl From<&kvm_debugregs> for DebugRegsV1 {
    fn from(regs: &kvm_debugregs) -> Self {
        let kvm_debugregs { db, dr6, dr7, flags: _, reserved: _ } = *regs;
        Self { db: db.to_vec(), dr6, dr7 }
    }
}

impl From<&DebugRegsV1> for kvm_debugregs {
    fn from(regs: &DebugRegsV1) -> Self {
        let DebugRegsV1 { db, dr6, dr7 } = regs;
        let mut out = Self { dr6: *dr6, dr7: *dr7, ..Default::default() };
        out.db.iter_mut().zip(db).for_each(|(to, from)| *to = *from);
        out
    }
}
