// torture_hold: loads every register that ring 3 has from the vCPU's `Hold`, keeps them for a while, and
// stores them beside. GS points to the `Hold`, so no register is needed for its address. In between is one
// loop that changes RCX only, and no flag. Offsets: `Hold` in hold.rs.
//
// With AVX, all 256 bits of each YMM register come behind FXRSTOR, which has set the lower halves to the same.

.set AVX, 1320
.set YMM, 1328
.set YMM_AFTER, 1840

.section .text.torture, "ax"
.code64
.globl torture_hold
torture_hold:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %gs:1296
    fxrstor64 %gs:0
    cmpq $0, %gs:AVX
    je 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups %gs:(YMM + 32 * \n), %ymm\n
    .endr
1:
    pushq %gs:1280
    popfq
    movq %gs:1024, %rax
    movq %gs:1032, %rbx
    movq %gs:1040, %rcx
    movq %gs:1048, %rdx
    movq %gs:1056, %rsi
    movq %gs:1064, %rdi
    movq %gs:1072, %rbp
    movq %gs:1080, %rsp
    movq %gs:1088, %r8
    movq %gs:1096, %r9
    movq %gs:1104, %r10
    movq %gs:1112, %r11
    movq %gs:1120, %r12
    movq %gs:1128, %r13
    movq %gs:1136, %r14
    movq %gs:1144, %r15
1:  jrcxz 2f
    leaq -1(%rcx), %rcx
    jmp 1b
2:  movq %rax, %gs:1152
    movq %rbx, %gs:1160
    movq %rcx, %gs:1168
    movq %rdx, %gs:1176
    movq %rsi, %gs:1184
    movq %rdi, %gs:1192
    movq %rbp, %gs:1200
    movq %rsp, %gs:1208
    movq %r8, %gs:1216
    movq %r9, %gs:1224
    movq %r10, %gs:1232
    movq %r11, %gs:1240
    movq %r12, %gs:1248
    movq %r13, %gs:1256
    movq %r14, %gs:1264
    movq %r15, %gs:1272
    movq %gs:1296, %rsp
    pushfq
    popq %gs:1288
    cld
    fxsave64 %gs:512
    fninit
    cmpq $0, %gs:AVX
    je 1f
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups %ymm\n, %gs:(YMM_AFTER + 32 * \n)
    .endr
    vzeroupper
1:
    movq %fs:0, %rax                // what FS points to says whose it is
    movq %rax, %gs:1304
    movl $0x1f80, %eax
    pushq %rax
    ldmxcsr (%rsp)
    popq %rax
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret
