//! Traps of KVM's state into which others have fallen: one test each, on real vCPUs. (More of them: `pause.rs`
//! for accesses half done, `state.rs` and `torture.rs` for timers, order, and devices in the middle of a line.)

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod bench;
mod host;

use bench::{Bench, number, saved};
use tern_migration::{DestinationVm, DirtyBitmap, SourceVm};
use tern_schema::StateSet;
use tern_vmm::kvm::ClockV1;
use tern_vmm::run_control::Hold;
use tern_vmm::vcpu::{MSR_TSC, MsrV1, NestedV1, VcpuError, VcpuV1};
use tern_vmm::vm::Vm;

const TORTURE: &str = "torture=on cpus=2";
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_STAR: u32 = 0xc000_0081;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
const MSR_KVM_CLOCK: u32 = 0x4b56_4d01;
const SECOND_NS: u64 = 1_000_000_000;

/// A machine whose two vCPUs have done a turn of the torture, and stand still.
fn stopped() -> Option<(Bench, Vm)> {
    let mut bench = Bench::new(2)?;
    let mut vm = bench.boot(TORTURE);
    bench.wait_until("a turn of each vCPU", |heard| turns(heard) > 0);
    assert!(vm.stop(&|| false).unwrap());
    Some((bench, vm))
}

/// Turns of the vCPU that has made fewest.
fn turns(heard: &str) -> usize {
    assert!(!heard.contains("CORRUPT"), "{heard}");
    let of = |cpu: &str| heard.lines().filter(|line| line.contains(cpu) && line.contains(" sum=")).count();
    of(" cpu=0 ").min(of(" cpu=1 "))
}

/// The state with one vCPU's part changed.
fn changed(mut state: StateSet, vcpu: u32, change: impl FnOnce(&mut VcpuV1)) -> StateSet {
    let mut part: VcpuV1 = state.take(vcpu).unwrap();
    change(&mut part);
    state.put(vcpu, &part).unwrap();
    state
}

fn msr(vcpu: &mut VcpuV1, index: u32) -> &mut u64 {
    &mut vcpu.msrs.iter_mut().find(|msr| msr.index == index).unwrap().value
}

fn vcpus(state: &mut StateSet) -> [VcpuV1; 2] {
    [0, 1].map(|vcpu| state.take(vcpu).unwrap())
}

#[test]
fn tsc_offsets_stay_equal_on_all_vcpus_whether_or_not_a_host_tells_its_tsc() {
    let Some((bench, mut vm)) = stopped() else { return };
    for told in [true, false] {
        let mut next = bench.moved_as(&mut vm, |mut state| {
            let clock: ClockV1 = state.take(0).unwrap();
            let host_tsc = clock.host_tsc.filter(|_| told);
            state.put(0, &ClockV1 { host_tsc, ..clock }).unwrap();
            state
        });
        let [one, other] = vcpus(&mut saved(&mut next));
        assert_eq!(one.tsc_offset, other.tsc_offset, "the host's TSC was told: {told}");
        vm = next;
    }
}

#[test]
fn a_tsc_that_a_host_can_not_give_is_refused_and_never_goes_back() {
    let Some((bench, mut vm)) = stopped() else { return };
    let mut state = saved(&mut vm);
    let clock: ClockV1 = state.take(0).unwrap();
    state.put(0, &ClockV1 { host_tsc: None, ..clock }).unwrap();
    let century = 1 << 60;
    for vcpu in 0..2 {
        state = changed(state, vcpu, |vcpu| {
            vcpu.tsc_offset = None;
            *msr(vcpu, MSR_TSC) += century;
        });
    }
    let mut next = bench.machine(Hold::Incoming);
    match next.load(state) {
        // Where KVM sets a guest's TSC, it goes on from there.
        Ok(()) => assert!(*msr(&mut vcpus(&mut saved(&mut next))[0], MSR_TSC) > century),
        Err(error) => assert!(bench::chain(&error).contains("would be at"), "{}", bench::chain(&error)),
    }
}

#[test]
fn registers_behind_a_refused_one_are_written() {
    let Some((_bench, vm)) = stopped() else { return };
    let mut vcpu = vm.core().vcpus().iter().next().unwrap();
    let mut state = vcpu.save().unwrap();
    // A register that doesn't exist, and was zero, in front of all.
    state.msrs.insert(0, MsrV1 { index: 0xdead_beef, value: 0 });
    let (lstar, star) = (0x1234_5678, 0x0023_0010_0000_0000);
    (*msr(&mut state, MSR_LSTAR), *msr(&mut state, MSR_STAR)) = (lstar, star);
    vcpu.restore(&state, None).unwrap();
    let mut again = vcpu.save().unwrap();
    assert_eq!((*msr(&mut again, MSR_LSTAR), *msr(&mut again, MSR_STAR)), (lstar, star));
    // Had it been anything else, the guest would miss it.
    state.msrs[0].value = 1;
    let refused = vcpu.restore(&state, None).unwrap_err();
    assert!(
        matches!(refused, VcpuError::MsrRefused { index: 0xdead_beef, value: 1, here: None }),
        "{refused}"
    );
}

#[test]
fn kvms_own_registers_and_mtrrs_are_saved_even_where_kvms_list_lacks_them() {
    let Some((_bench, vm)) = stopped() else { return };
    let mut vcpu = vm.core().vcpus().iter().next().unwrap();
    let mut state = vcpu.save().unwrap();
    assert_eq!(*msr(&mut state, MSR_KVM_CLOCK) & 1, 1, "pulse has switched its clock on");
    let indices: Vec<u32> = state.msrs.iter().map(|msr| msr.index).collect();
    assert!(indices.contains(&MSR_KERNEL_GS_BASE));
    let mut distinct = indices.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), indices.len(), "a register is saved twice: {indices:x?}");
}

#[test]
fn the_guest_is_told_that_it_was_stopped() {
    let Some((mut bench, mut vm)) = stopped() else { return };
    let mut next = bench.moved(&mut vm);
    drop(vm);
    next.start(true).unwrap();
    let told = |heard: &str, cpu: &str| {
        heard
            .lines()
            .filter(|line| line.contains(cpu) && line.contains(" sum="))
            .any(|l| number(l, "stops") == 1)
    };
    bench.wait_until("a vCPU that knows of its stop", |heard| {
        told(heard, " cpu=0 ") && told(heard, " cpu=1 ")
    });
}

#[test]
fn what_kvm_writes_for_the_guest_is_in_the_dirty_log() {
    let Some((mut bench, mut vm)) = stopped() else { return };
    let page = *msr(&mut vcpus(&mut saved(&mut vm))[0], MSR_KVM_CLOCK) / 4096;
    let pages = 64 * 256;
    vm.dirty_log_start(None).unwrap();
    let mut dirty = DirtyBitmap::new([pages]);
    vm.dirty_log_fetch(&mut dirty).unwrap();
    vm.dirty_log_clear(0, 0..pages).unwrap();
    let mut dirty = DirtyBitmap::new([pages]);
    vm.dirty_log_fetch(&mut dirty).unwrap();
    let before = turns(bench.heard());
    vm.resume().unwrap();
    bench.wait_until("a turn", |heard| turns(heard) > before);
    vm.stop(&|| false).unwrap();
    let mut dirty = DirtyBitmap::new([pages]);
    vm.dirty_log_fetch(&mut dirty).unwrap();
    assert!(dirty.get(0, page), "KVM wrote the guest's clock at page {page:#x}");
    vm.dirty_log_stop().unwrap();
}

#[test]
fn an_old_clock_stands_and_a_young_one_is_moved_on() {
    let Some((bench, _vm)) = stopped() else { return };
    let machine = bench.machine(Hold::Incoming);
    let now_ns = bench::realtime_ns();
    let saved =
        ClockV1 { guest_ns: 7 * SECOND_NS, host_realtime_ns: Some(now_ns - 2 * SECOND_NS), host_tsc: None };
    let young = saved.restore(machine.core().vm(), now_ns).unwrap();
    assert!((9 * SECOND_NS..100 * SECOND_NS).contains(&young.guest_ns), "{young:?}");
    let saved = ClockV1 { host_realtime_ns: Some(now_ns - 3600 * SECOND_NS), ..saved };
    let old = saved.restore(machine.core().vm(), now_ns).unwrap();
    assert!((7 * SECOND_NS..600 * SECOND_NS).contains(&old.guest_ns), "{old:?}");
}

#[test]
fn inner_guests_and_shadow_stacks_are_refused_where_the_host_has_none() {
    let Some((bench, mut vm)) = stopped() else { return };
    let cap = u64::from(kvm_bindings::KVM_CAP_NESTED_STATE);
    if vm.core().vm().check_extension_raw(cap) <= 0 {
        let state = changed(saved(&mut vm), 1, |vcpu| {
            vcpu.nested = Some(NestedV1 { flags: 1, format: 0, header: [0; 120], data: vec![0; 8192] });
        });
        let error = bench.machine(Hold::Incoming).load(state).unwrap_err();
        assert!(bench::chain(&error).contains("nested"), "{}", bench::chain(&error));
    }
    let has_shadow_stack =
        |vcpu: &VcpuV1| vcpu.cpuid.iter().any(|e| e.leaf == 7 && e.subleaf == 0 && e.ecx & 1 << 7 != 0);
    if !has_shadow_stack(&vcpus(&mut saved(&mut vm))[1]) {
        let state = changed(saved(&mut vm), 1, |vcpu| vcpu.guest_ssp = Some(0x7000));
        let error = bench.machine(Hold::Incoming).load(state).unwrap_err();
        assert!(bench::chain(&error).contains("shadow stack"), "{}", bench::chain(&error));
    }
}

/// XSAVE's component 2: the upper halves of YMM0 to YMM15 (Intel SDM volume 1, 13.4).
const YMM_AT: usize = 576;
const X87_SSE: u64 = 3;
const X87_SSE_AVX: u64 = 7;
const CR4_OSXSAVE: u64 = 1 << 18;
const XSTATE_BV: usize = 512;
const YMM_BYTES: usize = 256;

/// pulse keeps off AVX but for the torture, so nobody but KVM could change these: not on their way, and not while
/// the guest runs.
#[test]
fn the_upper_halves_of_avx_registers_come_as_they_were_and_stay() {
    let Some(mut bench) = Bench::new(2) else { return };
    let mut vm = bench.boot("cpus=2 ws=1M rate=1000");
    bench.wait_for_beats(0);
    assert!(vm.stop(&|| false).unwrap());
    let mut state = saved(&mut vm);
    let halves: Vec<u8> = (0..YMM_BYTES).map(|at| (at * 37 + 11) as u8).collect();
    for vcpu in 0..2 {
        state = changed(state, vcpu, |vcpu| {
            vcpu.sregs.cr4 |= CR4_OSXSAVE;
            vcpu.xcrs[0].value = X87_SSE_AVX;
            vcpu.xsave[XSTATE_BV] |= X87_SSE_AVX as u8;
            vcpu.xsave[YMM_AT..YMM_AT + YMM_BYTES].copy_from_slice(&halves);
        });
    }
    let mut next = bench.machine(Hold::Incoming);
    bench::copy_memory(&vm, &next);
    drop(vm);
    // A host that can't have them says so, and drops nothing.
    if let Err(error) = next.load(state) {
        return assert!(bench::chain(&error).contains("SET_X"), "{}", bench::chain(&error));
    }
    let there = |vm: &mut Vm| {
        for vcpu in vcpus(&mut saved(vm)) {
            assert_eq!((vcpu.xcrs[0].value, vcpu.xsave[XSTATE_BV] & 4), (X87_SSE_AVX, 4));
            assert_eq!(vcpu.xsave[YMM_AT..YMM_AT + YMM_BYTES], halves);
        }
    };
    there(&mut next);
    let mut last = bench.moved(&mut next);
    there(&mut last);
    let before = bench.wait_for_beats(0);
    last.start(true).unwrap();
    bench.wait_for_beats(before + 4);
    last.stop(&|| false).unwrap();
    there(&mut last);
}

/// What only a guest with AVX has.
const AVX: [&str; 2] = ["ymm_192", "xcr0"];

/// A register's name, and what spoils it.
type Loss = (&'static str, fn(&mut VcpuV1));

/// What is changed on the way must be noticed by the guest, or the torture proves nothing.
#[test]
fn the_guest_notices_each_register_that_is_lost_on_the_way() {
    let losses: [Loss; 8] = [
        ("dr2", |vcpu| vcpu.debug_regs.db[2] ^= 0x100),
        ("dr7", |vcpu| vcpu.debug_regs.dr7 ^= 1 << 20),
        ("lstar", |vcpu| *msr(vcpu, MSR_LSTAR) ^= 1),
        ("kernel_gs_base", |vcpu| *msr(vcpu, MSR_KERNEL_GS_BASE) ^= 1),
        ("xmm_low", |vcpu| vcpu.xsave[160 + 16 * 5] ^= 1),
        ("x87_mantissa", |vcpu| vcpu.xsave[32 + 16 * 3] ^= 1),
        ("ymm_192", |vcpu| vcpu.xsave[YMM_AT + 16 * 7 + 8] ^= 1),
        ("xcr0", |vcpu| vcpu.xcrs[0].value = X87_SSE),
    ];
    for (name, lose) in losses {
        let Some((mut bench, mut vm)) = stopped() else { return };
        if AVX.contains(&name) && !bench.heard().contains(" avx=on") {
            host::skip(&format!("no AVX, so {name} can't be lost"));
            continue;
        }
        let found = format!("register={name} ");
        let heard_turns = |heard: &str| heard.lines().filter(|line| line.starts_with("T ")).count();
        let mut noticed_it = false;
        // A register is only looked at in a part of a turn: again until a stop falls into it.
        for attempt in 0..400u64 {
            let next = bench.moved_as(&mut vm, |state| changed(state, 0, lose));
            drop(std::mem::replace(&mut vm, next));
            let before = heard_turns(bench.heard());
            vm.start(true).unwrap();
            // Without XCR0 an AVX instruction is an invalid opcode, where ring 3 doesn't run with the host's.
            let noticed =
                |heard: &str| heard.contains(&found) || name == "xcr0" && heard.contains(" exception=6 ");
            bench.wait_until("turns or a report", |heard| noticed(heard) || heard_turns(heard) > before + 1);
            std::thread::sleep(std::time::Duration::from_micros(attempt * 7919 % 18_000));
            vm.stop(&|| false).unwrap();
            if noticed(bench.heard()) {
                noticed_it = true;
                break;
            }
        }
        assert!(noticed_it, "nobody noticed that {name} was changed:\n{}", bench.heard());
    }
}
