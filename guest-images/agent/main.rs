//! The agent: init of tern's Linux guest, a static program without a libc.
//!
//! It mounts what a person expects, runs the checks that prove a migration (memory, clock,
//! disk, network echo), prints heartbeats, and offers a small shell on the console.
//!
//! ```text
//! main     sets up, then Agent::run: one poll loop for console, echo, signals and heartbeat
//! shell    a line of text -> an action of the agent     (the kernel command line too)
//! button   the power button of a guest with ACPI
//! pages, disk    checks, each in a process of its own (worker)
//! clock, vdso    time without system calls
//! ```
//!
//! Everything is baseline x86-64: the kernel of an interpreting host saves no more.

#![no_std]
#![no_main]

mod agent;
mod button;
mod clock;
mod disk;
mod entry;
mod memory;
mod net;
mod pages;
mod power;
mod shell;
mod sys;
mod text;
mod vdso;
mod worker;

/// All that the agent does. `gettime` is the vDSO's clock, if there is one.
fn run(gettime: Option<vdso::ClockGettime>) -> ! {
    prepare();
    match agent::Agent::new(gettime) {
        Ok(mut agent) => agent.run(),
        Err(errno) => {
            print!("AGENT error: cannot set up (errno {})\n", errno.0);
            sys::exit(1)
        }
    }
}

/// File systems and the console. What fails here shows in the command that needs it.
fn prepare() {
    const MOUNTS: [(&[u8], &[u8]); 4] = [
        (b"devtmpfs\0", b"/dev\0"),
        (b"proc\0", b"/proc\0"),
        (b"sysfs\0", b"/sys\0"),
        (b"tmpfs\0", b"/tmp\0"),
    ];
    for (kind, path) in MOUNTS {
        let _ = sys::mkdir(path);
        let _ = sys::mount(kind, path);
    }
    // Without a console in the initramfs the kernel starts init with no files open.
    if sys::write(1, b"").is_err()
        && let Ok(fd) = sys::open(b"/dev/console\0", sys::O_RDWR)
    {
        for standard in 0..3 {
            let _ = sys::dup2(fd, standard);
        }
    }
    sys::catch_ctrl_alt_del();
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    print!("\nAGENT panic: {info}\n");
    sys::exit(1)
}
