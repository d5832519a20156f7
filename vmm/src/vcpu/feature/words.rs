//! The table: every register that is a set of CPU features, and what each bit is called.
//!
//! Names are those of Linux's `/proc/cpuinfo` (`arch/x86/include/asm/cpufeatures.h`), also for bits that
//! Linux knows and doesn't show there. What has no name in Linux gets one here: `kvm_*` as in
//! `Documentation/virt/kvm/x86/cpuid.rst`, `xcr0_*` and `xss_*` for the parts of the XSAVE area (Intel SDM
//! volume 1, 13.1), `arch_cap_*` as in `arch/x86/include/asm/msr-index.h`, `ext_*` for AMD's copies of leaf
//! 1's bits. Positions: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.

use super::super::cpuid::Register::{Eax, Ebx, Ecx, Edx};
use super::{Place, Word};

/// IA32_ARCH_CAPABILITIES (Intel SDM volume 4).
pub const MSR_ARCH_CAPABILITIES: u32 = 0x10a;

const fn cpuid(
    leaf: u32,
    subleaf: u32,
    register: super::super::cpuid::Register,
    names: &'static str,
) -> Word {
    Word { place: Place::Cpuid { leaf, subleaf, register }, names, machine: 0, harmless: 0 }
}

/// Bits that the machine or the guest itself sets, not the host: HTT follows from the number of vCPUs, OSXSAVE
/// and OSPKE from the guest's CR4.
const fn machine(word: Word, bits: u64) -> Word {
    Word { machine: bits, ..word }
}

/// All registers of features. A bit's place here is how a [`super::FeatureSet`] counts it; nothing of this
/// order is saved or sent.
pub(super) const WORDS: [Word; 27] = [
    machine(
        cpuid(
            1,
            0,
            Edx,
            "0:fpu 1:vme 2:de 3:pse 4:tsc 5:msr 6:pae 7:mce 8:cx8 9:apic 11:sep 12:mtrr 13:pge 14:mca 15:cmov \
             16:pat 17:pse36 18:pn 19:clflush 21:dts 22:acpi 23:mmx 24:fxsr 25:sse 26:sse2 27:ss 28:ht 29:tm \
             30:ia64 31:pbe",
        ),
        1 << 28,
    ),
    machine(
        cpuid(
            1,
            0,
            Ecx,
            "0:pni 1:pclmulqdq 2:dtes64 3:monitor 4:ds_cpl 5:vmx 6:smx 7:est 8:tm2 9:ssse3 10:cid 11:sdbg 12:fma \
             13:cx16 14:xtpr 15:pdcm 17:pcid 18:dca 19:sse4_1 20:sse4_2 21:x2apic 22:movbe 23:popcnt \
             24:tsc_deadline_timer 25:aes 26:xsave 27:osxsave 28:avx 29:f16c 30:rdrand 31:hypervisor",
        ),
        1 << 27,
    ),
    cpuid(
        0x8000_0001,
        0,
        Edx,
        "0:ext_fpu 1:ext_vme 2:ext_de 3:ext_pse 4:ext_tsc 5:ext_msr 6:ext_pae 7:ext_mce 8:ext_cx8 9:ext_apic \
         11:syscall 12:ext_mtrr 13:ext_pge 14:ext_mca 15:ext_cmov 16:ext_pat 17:ext_pse36 19:mp 20:nx 22:mmxext \
         23:ext_mmx 24:ext_fxsr 25:fxsr_opt 26:pdpe1gb 27:rdtscp 29:lm 30:3dnowext 31:3dnow",
    ),
    cpuid(
        0x8000_0001,
        0,
        Ecx,
        "0:lahf_lm 1:cmp_legacy 2:svm 3:extapic 4:cr8_legacy 5:abm 6:sse4a 7:misalignsse 8:3dnowprefetch 9:osvw \
         10:ibs 11:xop 12:skinit 13:wdt 15:lwp 16:fma4 17:tce 19:nodeid_msr 21:tbm 22:topoext 23:perfctr_core \
         24:perfctr_nb 26:bpext 27:ptsc 28:perfctr_llc 29:mwaitx",
    ),
    cpuid(6, 0, Eax, "0:dtherm 1:ida 2:arat 4:pln 6:pts 7:hwp"),
    cpuid(
        7,
        0,
        Ebx,
        "0:fsgsbase 1:tsc_adjust 2:sgx 3:bmi1 4:hle 5:avx2 6:fdp_excptn_only 7:smep 8:bmi2 9:erms 10:invpcid \
         11:rtm 12:cqm 13:zero_fcs_fds 14:mpx 15:rdt_a 16:avx512f 17:avx512dq 18:rdseed 19:adx 20:smap \
         21:avx512ifma 23:clflushopt 24:clwb 25:intel_pt 26:avx512pf 27:avx512er 28:avx512cd 29:sha_ni \
         30:avx512bw 31:avx512vl",
    ),
    machine(
        cpuid(
            7,
            0,
            Ecx,
            "0:prefetchwt1 1:avx512vbmi 2:umip 3:pku 4:ospke 5:waitpkg 6:avx512_vbmi2 7:shstk 8:gfni 9:vaes \
             10:vpclmulqdq 11:avx512_vnni 12:avx512_bitalg 13:tme 14:avx512_vpopcntdq 16:la57 22:rdpid \
             23:keylocker 24:bus_lock_detect 25:cldemote 27:movdiri 28:movdir64b 29:enqcmd 30:sgx_lc 31:pks",
        ),
        1 << 4,
    ),
    cpuid(
        7,
        0,
        Edx,
        "2:avx512_4vnniw 3:avx512_4fmaps 4:fsrm 5:uintr 8:avx512_vp2intersect 9:srbds_ctrl 10:md_clear \
         11:rtm_always_abort 13:tsx_force_abort 14:serialize 15:hybrid_cpu 16:tsxldtrk 18:pconfig 19:arch_lbr \
         20:ibt 22:amx_bf16 23:avx512_fp16 24:amx_tile 25:amx_int8 26:spec_ctrl 27:intel_stibp 28:flush_l1d \
         29:arch_capabilities 30:core_capabilities 31:spec_ctrl_ssbd",
    ),
    cpuid(
        7,
        1,
        Eax,
        "0:sha512 1:sm3 2:sm4 3:rao_int 4:avx_vnni 5:avx512_bf16 6:lass 7:cmpccxadd 8:arch_perfmon_ext 10:fzrm \
         11:fsrs 12:fsrc 17:fred 18:lkgs 19:wrmsrns 21:amx_fp16 22:hreset 23:avx_ifma 26:lam 27:msrlist",
    ),
    cpuid(
        7,
        1,
        Edx,
        "4:avx_vnni_int8 5:avx_ne_convert 8:amx_complex 10:avx_vnni_int16 14:prefetchiti 18:cet_sss 19:avx10",
    ),
    cpuid(7, 2, Edx, "0:psfd 1:ipred_ctrl 2:rrsba_ctrl 3:ddpd_u 4:bhi_ctrl 5:mcdt_no"),
    cpuid(
        0xd,
        0,
        Eax,
        "0:xcr0_x87 1:xcr0_sse 2:xcr0_avx 3:xcr0_bndregs 4:xcr0_bndcsr 5:xcr0_opmask 6:xcr0_zmm_hi256 \
         7:xcr0_hi16_zmm 9:xcr0_pkru 17:xcr0_tilecfg 18:xcr0_tiledata 19:xcr0_apx",
    ),
    cpuid(0xd, 0, Edx, ""),
    cpuid(0xd, 1, Eax, "0:xsaveopt 1:xsavec 2:xgetbv1 3:xsaves 4:xfd"),
    cpuid(
        0xd,
        1,
        Ecx,
        "8:xss_pt 10:xss_pasid 11:xss_cet_user 12:xss_cet_kernel 13:xss_hdc 14:xss_uintr 15:xss_lbr 16:xss_hwp",
    ),
    cpuid(0xd, 1, Edx, ""),
    cpuid(0x19, 0, Ebx, "0:aeskle 2:aes_wide 4:kl_backup"),
    cpuid(
        0x4000_0001,
        0,
        Eax,
        "0:kvm_clocksource 1:kvm_nop_io_delay 2:kvm_mmu_op 3:kvm_clocksource2 4:kvm_async_pf 5:kvm_steal_time \
         6:kvm_pv_eoi 7:kvm_pv_unhalt 9:kvm_pv_tlb_flush 10:kvm_async_pf_vmexit 11:kvm_pv_send_ipi \
         12:kvm_poll_control 13:kvm_pv_sched_yield 14:kvm_async_pf_int 15:kvm_msi_ext_dest_id \
         16:kvm_hc_map_gpa_range 17:kvm_migration_control 24:kvm_clocksource_stable",
    ),
    cpuid(0x8000_0007, 0, Ebx, "0:overflow_recov 1:succor 3:smca"),
    cpuid(0x8000_0007, 0, Edx, "7:hw_pstate 8:nonstop_tsc 9:cpb 11:proc_feedback"),
    cpuid(
        0x8000_0008,
        0,
        Ebx,
        "0:clzero 1:irperf 2:xsaveerptr 4:rdpru 9:wbnoinvd 12:amd_ibpb 14:amd_ibrs 15:amd_stibp \
         17:amd_stibp_always_on 19:amd_ibrs_same_mode 23:amd_ppin 24:amd_ssbd 25:virt_ssbd 26:amd_ssb_no 27:cppc \
         28:amd_psfd 29:btc_no 30:amd_ibpb_ret 31:brs",
    ),
    cpuid(0x8000_001f, 0, Eax, "0:sme 1:sev 2:vm_page_flush 3:sev_es 4:sev_snp 9:v_tsc_aux 10:sme_coherent"),
    cpuid(
        0x8000_0021,
        0,
        Eax,
        "0:no_nested_data_bp 1:wrmsr_xx_base_ns 2:lfence_rdtsc 5:verw_clear 6:null_sel_clr_base 8:autoibrs \
         9:no_smm_ctl_msr 10:amd_fsrs 11:amd_fsrc 20:prefetchi 27:sbpb 28:ibpb_brtype 29:srso_no \
         30:srso_user_kernel_no",
    ),
    cpuid(0x8000_0021, 0, Ecx, "1:tsa_sq_no 2:tsa_l1_no"),
    cpuid(7, 1, Ebx, "0:intel_ppin"),
    cpuid(7, 1, Ecx, ""),
    // A processor that lacks a weakness may be replaced by none that has it. RSBA and RRSBA say the reverse:
    // a guest that expects the weakness does no harm elsewhere.
    Word {
        place: Place::Msr { index: MSR_ARCH_CAPABILITIES },
        names: "0:arch_cap_rdcl_no 1:arch_cap_ibrs_all 2:arch_cap_rsba 3:arch_cap_skip_vmentry_l1dflush \
                4:arch_cap_ssb_no 5:arch_cap_mds_no 6:arch_cap_pschange_mc_no 7:arch_cap_tsx_ctrl \
                8:arch_cap_taa_no 10:arch_cap_misc_package_ctls 11:arch_cap_energy_filtering_ctl 12:arch_cap_doitm \
                13:arch_cap_sbdr_ssdp_no 14:arch_cap_fbsdp_no 15:arch_cap_psdp_no 16:arch_cap_mcu_enumeration \
                17:arch_cap_fb_clear 18:arch_cap_fb_clear_ctrl 19:arch_cap_rrsba 20:arch_cap_bhi_no \
                21:arch_cap_xapic_disable 23:arch_cap_overclocking_status 24:arch_cap_pbrsb_no \
                25:arch_cap_gds_ctrl 26:arch_cap_gds_no 27:arch_cap_rfds_no 28:arch_cap_rfds_clear \
                62:arch_cap_its_no",
        machine: 0,
        harmless: 1 << 2 | 1 << 19,
    },
];
