//! Finds `clock_gettime` in the vDSO, the shared object that the kernel maps into every process.
//! Kernel document: `Documentation/ABI/stable/vdso`.

#![allow(unsafe_code, reason = "the kernel's vDSO is an ELF image at an address")]

use crate::sys::Timespec;

/// `__vdso_clock_gettime`: 0 on success.
pub type ClockGettime = extern "C" fn(clock: i32, time: *mut Timespec) -> i32;

const AT_SYSINFO_EHDR: usize = 33;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_HASH: usize = 4;
const DT_STRTAB: usize = 5;
const DT_SYMTAB: usize = 6;
const NAME: &[u8] = b"__vdso_clock_gettime\0";

/// Looks for the vDSO behind the environment that the kernel put on the initial stack.
///
/// # Safety
/// `stack` must be the stack pointer that the kernel gave to `_start`.
pub unsafe fn find(stack: *const usize) -> Option<ClockGettime> {
    // SAFETY: the System V ABI lays out argc, argv, 0, envp, 0, auxiliary pairs, (0, 0).
    unsafe {
        let mut at = stack.add(1 + *stack + 1);
        while *at != 0 {
            at = at.add(1);
        }
        at = at.add(1);
        while *at != 0 {
            if *at == AT_SYSINFO_EHDR {
                return symbol(*at.add(1));
            }
            at = at.add(2);
        }
    }
    None
}

/// Reads a little-endian value inside the image.
///
/// # Safety
/// `address` must lie in the mapped vDSO.
unsafe fn get<T: Copy>(address: usize) -> T {
    // SAFETY: promised by the caller; the kernel aligns nothing for us, so neither do we assume it.
    unsafe { (address as *const T).read_unaligned() }
}

/// # Safety
/// `image` must be the address of the kernel's vDSO, a well-formed ELF image.
pub unsafe fn symbol(image: usize) -> Option<ClockGettime> {
    // SAFETY: offsets are those of Elf64_Ehdr, _Phdr, _Dyn and _Sym; the image is the kernel's own.
    unsafe {
        let headers = image + get::<u64>(image + 32) as usize;
        let (mut bias, mut dynamic) = (image, 0);
        for index in 0..usize::from(get::<u16>(image + 56)) {
            let header = headers + index * 56;
            let (offset, address) = (get::<u64>(header + 8) as usize, get::<u64>(header + 16) as usize);
            match get::<u32>(header) {
                PT_LOAD => bias = image.wrapping_add(offset).wrapping_sub(address),
                PT_DYNAMIC => dynamic = image + offset,
                _ => {}
            }
        }
        let (mut strings, mut symbols, mut hash) = (0, 0, 0);
        while dynamic != 0 && get::<usize>(dynamic) != 0 {
            let value = bias.wrapping_add(get::<usize>(dynamic + 8));
            match get::<usize>(dynamic) {
                DT_STRTAB => strings = value,
                DT_SYMTAB => symbols = value,
                DT_HASH => hash = value,
                _ => {}
            }
            dynamic += 16;
        }
        if strings == 0 || symbols == 0 || hash == 0 {
            return None;
        }
        // The classic hash table's second word is the number of symbols.
        for index in 0..get::<u32>(hash + 4) as usize {
            let entry = symbols + index * 24;
            let name = strings + get::<u32>(entry) as usize;
            if NAME.iter().enumerate().all(|(at, byte)| get::<u8>(name + at) == *byte) {
                let address = bias.wrapping_add(get::<u64>(entry + 8) as usize);
                return Some(core::mem::transmute::<usize, ClockGettime>(address));
            }
        }
    }
    None
}
