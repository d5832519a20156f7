//! What a process costs: CPU time and memory, as the kernel counts them.

#![allow(
    unsafe_code,
    reason = "clock_gettime with the CPU clock of another process; mmap of the pool that is warmed"
)]

use std::io;

/// Memory of a process outside its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhead {
    /// Resident, in KiB.
    pub rss_kib: u64,
    /// The same, pages shared with other processes counted by their share.
    pub pss_kib: u64,
}

/// CPU seconds of a process, its ended threads included; nanoseconds are counted, not clock ticks.
pub fn cpu_seconds(pid: u32) -> io::Result<f64> {
    // clock_getcpuclockid(3): CPUCLOCK_SCHED of the whole process, as the C library makes it.
    let clock = (!(pid as libc::clockid_t) << 3) | 2;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which is ours.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// Reads `/proc/PID/smaps`; `guest_kib` is the size of the guest's memory.
pub fn overhead(pid: u32, guest_kib: u64) -> io::Result<Overhead> {
    Ok(outside_guest(&std::fs::read_to_string(format!("/proc/{pid}/smaps"))?, guest_kib))
}

/// A mapping at least as large as the guest's memory is the guest's memory; the kernel may have merged a
/// neighbour with it, which is why it is not an equal size.
fn outside_guest(smaps: &str, guest_kib: u64) -> Overhead {
    let mut sum = Overhead { rss_kib: 0, pss_kib: 0 };
    let mut in_guest = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let Ok(kib) = value.parse::<u64>() else { continue };
        match name {
            "Size:" => in_guest = kib >= guest_kib,
            "Rss:" if !in_guest => sum.rss_kib += kib,
            "Pss:" if !in_guest => sum.pss_kib += kib,
            _ => {}
        }
    }
    sum
}

/// Touches `bytes` of memory once and gives them back. On virtual hosts, memory that was never used is backed
/// only when it is touched, and slowly: the first of two VMMs would pay for both.
pub fn warm(bytes: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping wherever the kernel likes overlaps nothing.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping was just made, and nothing points into it.
    unsafe { libc::munmap(start, bytes) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_left_out() {
        let smaps = "55d0-55d1 r-xp 00000000 fe:00 1 /usr/bin/x\nSize: 4 kB\nRss: 4 kB\nPss: 2 kB\n\
                     7f00-7f40 rw-p 00000000 00:00 0\nSize: 1048580 kB\nRss: 900 kB\nPss: 900 kB\n\
                     7f50-7f51 rw-p 00000000 00:00 0\nSize: 64 kB\nRss: 10 kB\nPss: 10 kB\n";
        assert_eq!(outside_guest(smaps, 1 << 20), Overhead { rss_kib: 14, pss_kib: 12 });
    }

    #[test]
    fn cpu_time_of_this_process_grows() {
        let before = cpu_seconds(std::process::id()).unwrap();
        let sum = (0..30_000_000u64).fold(0u64, |sum, next| std::hint::black_box(sum ^ next));
        assert!(cpu_seconds(std::process::id()).unwrap() > before, "{sum}");
    }
}
