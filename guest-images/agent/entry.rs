//! Where the kernel enters: with the arguments on the stack, which `vdso` needs.

#![allow(unsafe_code, reason = "the first instructions are assembly, and pass on a bare pointer")]

use crate::vdso;
use core::arch::global_asm;

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    main = sym agent_main,
);

extern "C" fn agent_main(stack: *const usize) -> ! {
    // SAFETY: `_start` passes on the stack pointer that the kernel gave.
    crate::run(unsafe { vdso::find(stack) })
}
