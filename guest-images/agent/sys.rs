//! System calls of x86-64 Linux, and nothing above them.
//!
//! On a host that interprets ring 0 each call costs milliseconds, so what can be
//! done without one (reading the clock, checking pages) is done without.

#![allow(unsafe_code, reason = "system calls without a libc")]

use core::arch::asm;

/// A kernel error number, positive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

pub type Result<T> = core::result::Result<T, Errno>;

pub const EINTR: Errno = Errno(4);
pub const EAGAIN: Errno = Errno(11);
pub const EINVAL: Errno = Errno(22);
pub const O_RDONLY: usize = 0;
pub const O_RDWR: usize = 2;
pub const O_NONBLOCK: usize = 0o4000;
pub const O_DIRECT: usize = 0o40000;
pub const O_DIRECTORY: usize = 0o200000;
pub const O_CLOEXEC: usize = 0o2000000;
pub const CLOCK_MONOTONIC: usize = 1;
pub const CLOCK_BOOTTIME: usize = 7;
pub const POLLIN: i16 = 1;
pub const SIGINT: u32 = 2;
pub const SIGKILL: u32 = 9;
pub const SIGTERM: u32 = 15;
pub const SIGCHLD: u32 = 17;
pub const SIGPWR: u32 = 30;
pub const REBOOT_RESTART: usize = 0x0123_4567;
pub const REBOOT_POWER_OFF: usize = 0x4321_fedc;
const REBOOT_CAD_OFF: usize = 0;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_ANONYMOUS: usize = 0x20;
const PROT_READ_WRITE: usize = 3;
const WNOHANG: usize = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Timespec {
    pub seconds: i64,
    pub nanoseconds: i64,
}

impl Timespec {
    pub fn as_ns(self) -> u64 {
        (self.seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(self.nanoseconds as u64)
    }

    pub fn from_ms(ms: u64) -> Self {
        Timespec { seconds: (ms / 1000) as i64, nanoseconds: (ms % 1000) as i64 * 1_000_000 }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: i32,
    pub events: i16,
    pub revents: i16,
}

/// One raw system call.
///
/// # Safety
/// Pointers among the arguments must be what the kernel expects for `number`.
pub unsafe fn raw(number: usize, args: [usize; 6]) -> Result<usize> {
    let result: isize;
    // SAFETY: the kernel clobbers only RAX, RCX and R11; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// A system call whose pointers, if any, come from live Rust references.
fn call(number: usize, args: [usize; 6]) -> Result<usize> {
    // SAFETY: every caller in this file derives its pointers from references that outlive the call.
    unsafe { raw(number, args) }
}

pub fn read(fd: i32, buffer: &mut [u8]) -> Result<usize> {
    call(0, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
}

pub fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    call(1, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0])
}

/// Opens a path; `path` must end in NUL.
pub fn open(path: &[u8], flags: usize) -> Result<i32> {
    if path.last() != Some(&0) {
        return Err(EINVAL);
    }
    call(2, [path.as_ptr() as usize, flags | O_CLOEXEC, 0, 0, 0, 0]).map(|fd| fd as i32)
}

pub fn close(fd: i32) {
    // An error of close leaves nothing to do: the descriptor is gone either way.
    let _ = call(3, [fd as usize, 0, 0, 0, 0, 0]);
}

pub fn seek_end(fd: i32) -> Result<u64> {
    call(8, [fd as usize, 0, 2, 0, 0, 0]).map(|end| end as u64)
}

pub fn pread(fd: i32, buffer: &mut [u8], offset: u64) -> Result<usize> {
    call(17, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), offset as usize, 0, 0])
}

pub fn pwrite(fd: i32, bytes: &[u8], offset: u64) -> Result<usize> {
    call(18, [fd as usize, bytes.as_ptr() as usize, bytes.len(), offset as usize, 0, 0])
}

pub fn sync_data(fd: i32) -> Result<usize> {
    call(75, [fd as usize, 0, 0, 0, 0, 0])
}

pub fn sync() {
    let _ = call(162, [0; 6]);
}

pub fn dup2(from: i32, to: i32) -> Result<usize> {
    call(33, [from as usize, to as usize, 0, 0, 0, 0])
}

/// `ioctl` with a structure that the kernel reads and may write.
pub fn ioctl<T>(fd: i32, request: usize, argument: &mut T) -> Result<usize> {
    call(16, [fd as usize, request, core::ptr::from_mut(argument) as usize, 0, 0, 0])
}

/// Waits until what was written to a terminal has left the machine.
pub fn drain(fd: i32) {
    const TCSBRK: usize = 0x5409;
    let _ = call(16, [fd as usize, TCSBRK, 1, 0, 0, 0]);
}

/// Zeroed memory of `bytes` bytes; shared memory is seen by processes forked later.
pub fn map(bytes: usize, shared: bool) -> Result<*mut u8> {
    let flags = MAP_ANONYMOUS | if shared { MAP_SHARED } else { MAP_PRIVATE };
    call(9, [0, bytes, PROT_READ_WRITE, flags, usize::MAX, 0]).map(|address| address as *mut u8)
}

/// Creates a directory or mounts a file system; strings must end in NUL.
pub fn mkdir(path: &[u8]) -> Result<usize> {
    call(83, [path.as_ptr() as usize, 0o755, 0, 0, 0, 0])
}

pub fn mount(kind: &[u8], path: &[u8]) -> Result<usize> {
    call(165, [kind.as_ptr() as usize, path.as_ptr() as usize, kind.as_ptr() as usize, 0, 0, 0])
}

/// Waits for a descriptor; `None` waits for ever. Returns how many are ready.
pub fn poll(fds: &mut [PollFd], timeout: Option<Timespec>) -> Result<usize> {
    let timeout = timeout.as_ref().map_or(0, |time| core::ptr::from_ref(time) as usize);
    call(271, [fds.as_mut_ptr() as usize, fds.len(), timeout, 0, 8, 0])
}

pub fn sleep_ms(ms: u64) {
    let time = Timespec::from_ms(ms);
    // Waking early is harmless: callers look at the clock.
    let _ = call(35, [core::ptr::from_ref(&time) as usize, 0, 0, 0, 0, 0]);
}

pub fn clock_gettime(clock: usize) -> Timespec {
    let mut time = Timespec::default();
    let _ = call(228, [clock, core::ptr::from_mut(&mut time) as usize, 0, 0, 0, 0]);
    time
}

/// Blocks `signals` and returns a descriptor that reports them.
pub fn signal_fd(signals: &[u32]) -> Result<i32> {
    let mask = signals.iter().fold(0u64, |mask, signal| mask | 1 << (signal - 1));
    let mask_at = core::ptr::from_ref(&mask) as usize;
    call(14, [0, mask_at, 0, 8, 0, 0])?;
    call(289, [usize::MAX, mask_at, 8, O_CLOEXEC, 0, 0]).map(|fd| fd as i32)
}

/// Splits off a copy of this process: 0 in the child, its process id in the parent.
pub fn fork() -> Result<i32> {
    call(57, [0; 6]).map(|pid| pid as i32)
}

pub fn kill(pid: i32, signal: u32) {
    let _ = call(62, [pid as usize, signal as usize, 0, 0, 0, 0]);
}

/// Collects an ended child; `None` if `pid` (or any child, for -1) has not ended and `block` is off.
pub fn wait(pid: i32, block: bool) -> Result<Option<(i32, i32)>> {
    let mut status = 0i32;
    let at = core::ptr::from_mut(&mut status) as usize;
    let ended = call(61, [pid as usize, at, if block { 0 } else { WNOHANG }, 0, 0, 0])?;
    Ok((ended != 0).then_some((ended as i32, status)))
}

pub fn set_name(name: &[u8]) {
    let _ = call(157, [15, name.as_ptr() as usize, 0, 0, 0, 0]);
}

pub fn exit(code: usize) -> ! {
    loop {
        let _ = call(231, [code, 0, 0, 0, 0, 0]);
    }
}

pub fn reboot(command: usize) -> Result<usize> {
    call(169, [0xfee1_dead, 0x2812_1969, command, 0, 0, 0])
}

/// Ctrl-Alt-Del becomes SIGINT to us in place of an immediate reset.
pub fn catch_ctrl_alt_del() {
    let _ = reboot(REBOOT_CAD_OFF);
}

/// Opens ports `first .. first + count` to this process.
pub fn ioperm(first: u16, count: usize) -> Result<usize> {
    call(173, [usize::from(first), count, 1, 0, 0, 0])
}

pub fn getdents(fd: i32, buffer: &mut [u8]) -> Result<usize> {
    call(217, [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
}

/// The kernel's release, as `uname -r` prints it, in the first bytes of the buffer.
pub fn kernel_release(buffer: &mut [u8; 390]) -> &str {
    if call(63, [buffer.as_mut_ptr() as usize, 0, 0, 0, 0, 0]).is_err() {
        return "unknown";
    }
    // struct utsname: six fields of 65 bytes; the third is the release.
    let field = &buffer[130..195];
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(0);
    core::str::from_utf8(&field[..end]).unwrap_or("unknown")
}

/// How many CPUs this process may run on.
pub fn cpu_count() -> u32 {
    let mut mask = [0u64; 16];
    let _ = call(204, [0, size_of_val(&mask), mask.as_mut_ptr() as usize, 0, 0, 0]);
    mask.iter().map(|word| word.count_ones()).sum()
}

/// Total and free memory in KiB.
pub fn memory_kib() -> Result<(u64, u64)> {
    // struct sysinfo: uptime, 3 loads, total, free, ...; all words here; 112 bytes.
    let mut info = [0u64; 14];
    call(99, [info.as_mut_ptr() as usize, 0, 0, 0, 0, 0])?;
    Ok((info[4] / 1024, info[5] / 1024))
}

pub fn socket_udp() -> Result<i32> {
    const AF_INET: usize = 2;
    const SOCK_DGRAM: usize = 2;
    call(41, [AF_INET, SOCK_DGRAM | O_CLOEXEC, 0, 0, 0, 0]).map(|fd| fd as i32)
}

pub fn bind(fd: i32, address: &[u8; 16]) -> Result<usize> {
    call(49, [fd as usize, address.as_ptr() as usize, address.len(), 0, 0, 0])
}

/// One datagram and who sent it, or `EAGAIN`.
pub fn receive_from(fd: i32, buffer: &mut [u8], from: &mut [u8; 16]) -> Result<usize> {
    const MSG_DONTWAIT: usize = 0x40;
    let mut length = from.len() as u32;
    let length_at = core::ptr::from_mut(&mut length) as usize;
    let buffer_at = buffer.as_mut_ptr() as usize;
    call(45, [fd as usize, buffer_at, buffer.len(), MSG_DONTWAIT, from.as_mut_ptr() as usize, length_at])
}

pub fn send_to(fd: i32, bytes: &[u8], to: &[u8; 16]) -> Result<usize> {
    let to_at = to.as_ptr() as usize;
    call(44, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, to_at, to.len()])
}
