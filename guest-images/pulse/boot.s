// The ring-0 half of pulse: from PVH entry (or INIT/SIPI) to ring 3, and the few things
// that only ring 0 may do. It is plain on purpose: on hosts without VMX or SVM, ring 0 is
// interpreted by KVM at about a million instructions a second, from a limited set.
//
//   pvh_start (32 bit) --.
//   ap_trampoline (16) --+--> enter_long --> long_start --iretq--> cpu_main (Rust, ring 3)

// XEN_ELFNOTE_PHYS32_ENTRY: where a PVH loader jumps to (Xen's public/elfnote.h).
.section .note.pvh, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad pvh_start

.set DATA32, 0x10
.set CODE64, 0x18
.set USER_DATA, 0x23
.set USER_CODE, 0x2b
.set TSS_BASE, 0x30
// IOPL 3, and an I/O bitmap that allows every port used: kvm_pvm loses the former, some VMMs
// don't look at the latter. IF 0: interrupts are taken only while asleep.
.set USER_FLAGS, 0x3002
.set TSS_BYTES, 104 + 256           // ports below 0x7f8, and the end mark
.set TSS_SHIFT, 9
.set KERNEL_STACK_SHIFT, 12
.set USER_STACK_SHIFT, 14
.set LAPIC_TIMER_COUNT, 0xfee00380
.set LAPIC_EOI, 0xfee000b0
// Known to cpu.rs, too.
.set SERVICE_SLEEP, 1
.set SERVICE_CPUID, 2
.set SERVICE_WRMSR, 3
.set SERVICE_RDMSR, 5
.set SERVICE_HALT, 6
.set SERVICE_SET_DEBUG, 7
.set SERVICE_GET_DEBUG, 8
.set SERVICE_COPY, 9
.set SERVICE_AVX, 10
.set CR4_OSXSAVE, 0x40000
.set X87_SSE_AVX, 7
.set MSR_TSC_DEADLINE, 0x6e0
.set MSR_EFER, 0xc0000080

.section .text.boot, "ax"
.code32
// PVH: 32-bit protected mode, paging off, ebx = hvm_start_info.
.globl pvh_start
pvh_start:
    cli
    cld
    movl %ebx, %edi
    xorl %esi, %esi

// esi = index of this vCPU, edi = hvm_start_info (boot vCPU only).
enter_long:
    lgdt gdt_pointer
    movl $0x620, %eax               // PAE, OSFXSR, OSXMMEXCPT
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    movl $0x100, %eax               // LME
    xorl %edx, %edx
    wrmsr
    movl $0x80010033, %eax          // PG, WP, NE, ET, MP, PE
    movl %eax, %cr0
    ljmpl $CODE64, $long_start

.code64
long_start:
    movl $DATA32, %eax
    movl %eax, %ss
    movl %esi, %eax
    shll $KERNEL_STACK_SHIFT, %eax
    addl $kernel_stacks, %eax
    movl %esi, (%rax)               // the handlers find their vCPU at the bottom of the stack
    leaq 4096(%rax), %rsp

    movl %esi, %ebx                 // TSS: only RSP0 and the bitmap, all zero
    shll $TSS_SHIFT, %ebx
    addl $task_states, %ebx
    movq %rsp, 4(%rbx)
    movw $104, 102(%rbx)
    movb $0xff, (TSS_BYTES - 1)(%rbx)

    movl %esi, %ecx                 // and its descriptor, which scatters the address
    shll $4, %ecx
    leal TSS_BASE(%ecx), %edx
    addl $gdt_tss, %ecx
    movw $(TSS_BYTES - 1), (%rcx)
    movw %bx, 2(%rcx)
    shrl $16, %ebx
    movb %bl, 4(%rcx)
    movb $0x89, 5(%rcx)
    movb %bh, 7(%rcx)
    ltr %dx
    lidt idt_pointer

    movl $USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %esi, %eax
    incl %eax
    shll $USER_STACK_SHIFT, %eax
    addl $(user_stacks - 8), %eax   // as if cpu_main had been called
    pushq $USER_DATA
    pushq %rax
    pushq $USER_FLAGS
    pushq $USER_CODE
    pushq $cpu_main                 // cpu_main(edi = start info, esi = vCPU)
    iretq

// Copied to 0x8000 for SIPI: real mode, cs = 0x800. cpu_main sets ap_index before each SIPI.
.code16
.globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    cld
    lgdtl %cs:(ap_gdt_pointer - ap_trampoline)
    movl $0x11, %eax                // PE, ET
    movl %eax, %cr0
    ljmpl $0x08, $ap_protected
.balign 4
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:

.code32
ap_protected:
    movl $DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl ap_index, %esi
    xorl %edi, %edi
    jmp enter_long

.code64
// Ring 3 asks ring 0 by an invalid opcode at one known place, the number of the service in r8d:
// on kvm_pvm, `syscall` stays in ring 3 and `int N` is refused, but exceptions arrive.
.globl call_ring0, invalid_opcode, general_protection, timer_interrupt, ignore_interrupt
call_ring0:
    ud2
    ret

invalid_opcode:
    cmpq $call_ring0, (%rsp)
    je 1f
    cmpq $avx_xsetbv, (%rsp)
    jne exception_stubs + 6 * 16
    movq $avx_refused, (%rsp)
    iretq
1:
    addq $2, (%rsp)
    cmpl $SERVICE_SLEEP, %r8d
    je service_sleep
    cmpl $SERVICE_CPUID, %r8d
    je service_cpuid
    cmpl $SERVICE_WRMSR, %r8d
    jne 1f
    wrmsr
    iretq
1:  cmpl $SERVICE_RDMSR, %r8d
    je service_rdmsr
    cmpl $SERVICE_HALT, %r8d
    je service_halt
    cmpl $SERVICE_SET_DEBUG, %r8d
    je service_set_debug
    cmpl $SERVICE_GET_DEBUG, %r8d
    je service_get_debug
    cmpl $SERVICE_AVX, %r8d
    je service_avx
    cmpl $SERVICE_COPY, %r8d
    jne service_stop
    rep movsb                       // rdi, rsi, rcx: in ring 0, and so interpreted on some hosts
    iretq

service_rdmsr:
    rdmsr
    iretq

// rdi = six words: DR0 to DR3, DR6, DR7. All changes rax.
service_set_debug:
    movq (%rdi), %rax
    movq %rax, %dr0
    movq 8(%rdi), %rax
    movq %rax, %dr1
    movq 16(%rdi), %rax
    movq %rax, %dr2
    movq 24(%rdi), %rax
    movq %rax, %dr3
    movq 32(%rdi), %rax
    movq %rax, %dr6
    movq 40(%rdi), %rax
    movq %rax, %dr7
    iretq

service_get_debug:
    movq %dr0, %rax
    movq %rax, (%rdi)
    movq %dr1, %rax
    movq %rax, 8(%rdi)
    movq %dr2, %rax
    movq %rax, 16(%rdi)
    movq %dr3, %rax
    movq %rax, 24(%rdi)
    movq %dr6, %rax
    movq %rax, 32(%rdi)
    movq %dr7, %rax
    movq %rax, 40(%rdi)
    iretq

service_cpuid:
    cpuid
    iretq

// Switches AVX on: eax = 1, or 0 if this vCPU refuses it, whatever CPUID says. Changes rcx and rdx.
service_avx:
    movq %cr4, %rax
    orl $CR4_OSXSAVE, %eax
avx_set_cr4:
    movq %rax, %cr4
    xorl %ecx, %ecx
    xorl %edx, %edx
    movl $X87_SSE_AVX, %eax
avx_xsetbv:
    xsetbv
    movl $1, %eax
    iretq
avx_refused:
    xorl %eax, %eax
    iretq

// #GP; the two above are expected where XSAVE is hidden, and XSETBV refuses what it isn't given.
general_protection:
    cmpq $avx_set_cr4, 8(%rsp)
    je 1f
    cmpq $avx_xsetbv, 8(%rsp)
    jne exception_stubs + 13 * 16
1:  addq $8, %rsp
    movq $avx_refused, (%rsp)
    iretq

// Arms the timer and halts. ecx = 0: one-shot, eax = count; else edx:eax = TSC deadline.
service_sleep:
    testl %ecx, %ecx
    jnz 1f
    movl $LAPIC_TIMER_COUNT, %ecx
    movl %eax, (%rcx)
    jmp 2f
1:  movl $MSR_TSC_DEADLINE, %ecx
    wrmsr
service_halt:
2:  sti
sleep_hlt:
    hlt
    cli
    iretq

service_stop:
    cli
    hlt
    jmp service_stop

// Ends the sleep even if it came between `sti` and `hlt`.
timer_interrupt:
    pushq %rax
    movl $LAPIC_EOI, %eax
    movl $0, (%rax)
    movl $sleep_hlt, %eax
    cmpq %rax, 8(%rsp)
    jne 1f
    incq 8(%rsp)
1:  popq %rax
ignore_interrupt:
    iretq

// Exceptions 0 - 31, 16 bytes each: all push (vector, error code).
.balign 16
.globl exception_stubs
exception_stubs:
.set vector, 0
.rept 32
    .balign 16
    .if (0x60227d00 >> vector) & 1  // 8, 10-14, 17, 21, 29, 30 push an error code themselves
    .else
    pushq $0
    .endif
    pushq $vector
    jmp exception_common
    .set vector, vector + 1
.endr

// Leaves for report_fault(cpu, vector, error, rip, cr2) in ring 3; a second fault just stops.
exception_common:
    movq %rsp, %rax
    andq $-4096, %rax
    cmpl $0, 4(%rax)
    jne service_stop
    movl $1, 4(%rax)
    movl (%rax), %edi
    movq (%rsp), %rsi
    movq 8(%rsp), %rdx
    movq 16(%rsp), %rcx
    movq %cr2, %r8
    leaq 4096(%rax), %rsp
    leal 1(%edi), %eax
    shll $USER_STACK_SHIFT, %eax
    addl $(user_stacks - 8), %eax
    pushq $USER_DATA
    pushq %rax
    pushq $USER_FLAGS
    pushq $USER_CODE
    pushq $report_fault
    cld
    iretq

.section .data.boot, "aw"
.balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
// Entry 0 is the first GiB, ready at assembly time; memory.rs links in the others, natively.
.globl pdpt
pdpt:
    .quad first_gib + 7
    .fill 511, 8, 0
first_gib:
.set frame, 0
.rept 512
    .quad frame + 0x87              // present, writable, user, 2 MiB
    .set frame, frame + 0x200000
.endr

.balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        // 0x08 code, 32 bit
    .quad 0x00cf93000000ffff        // 0x10 data
    .quad 0x00af9b000000ffff        // 0x18 code, 64 bit
    .quad 0x00cff3000000ffff        // 0x20 data, ring 3
    .quad 0x00affb000000ffff        // 0x28 code, 64 bit, ring 3
gdt_tss:
    .fill 8, 8, 0                   // 0x30: a TSS of two words for each vCPU
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 4095
    .quad idt
.balign 4
.globl ap_index
ap_index:
    .long 0

.section .bss.boot, "aw", @nobits
.balign 4096
.globl idt
idt:
    .skip 4096
kernel_stacks:
    .skip 4 << KERNEL_STACK_SHIFT
user_stacks:
    .skip 4 << USER_STACK_SHIFT
task_states:
    .skip 4 << TSS_SHIFT
