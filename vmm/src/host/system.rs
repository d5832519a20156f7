//! The host apart from KVM: CPUs, clock, memory, huge pages, TAP. Read from proc and sysfs; what can't be read
//! counts as absent.

use std::fs;
use std::path::Path;

use serde::Serialize;

use super::kind::cpu_flags;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SystemFacts {
    /// Kernel release.
    pub kernel: String,
    /// The CPU's name.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Memory of the host.
    pub memory_bytes: u64,
    /// Memory that could be had without swapping.
    pub memory_available_bytes: u64,
    /// Pools of huge pages.
    pub huge_pages: Vec<HugePages>,
    /// Transparent huge pages for anonymous memory: `always`, `madvise` or `never`.
    pub transparent_huge_pages: String,
    /// The same for shared memory.
    pub transparent_huge_pages_shmem: String,
    /// The clock that the host itself goes by.
    pub clocksource: String,
    /// The TSC runs evenly and through idle states.
    pub tsc_stable: bool,
    /// `/dev/net/tun` can be opened.
    pub tun: bool,
    /// This process may make TAP interfaces (`CAP_NET_ADMIN`).
    pub net_admin: bool,
}

/// A pool of huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Bytes of one.
    pub page_bytes: u64,
    /// How many there are.
    pub total: u64,
    /// How many are free.
    pub free: u64,
}

/// Bit of `CAP_NET_ADMIN`.
const CAP_NET_ADMIN: u32 = 12;

impl SystemFacts {
    /// Looks.
    pub fn probe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let clocksource = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        Self {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: field(&cpuinfo, "model name").unwrap_or_default().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: meminfo_bytes(&meminfo, "MemTotal"),
            memory_available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            transparent_huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
            transparent_huge_pages_shmem: chosen(&read("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
            clocksource,
            tsc_stable: is_tsc_stable(cpu_flags(&cpuinfo)),
            tun: fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok(),
            net_admin: has_net_admin(&fs::read_to_string("/proc/self/status").unwrap_or_default()),
        }
    }
}

/// Memory of this host in bytes; 0 where it can't be read.
pub fn memory_bytes() -> u64 {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal")
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

fn meminfo_bytes(meminfo: &str, name: &str) -> u64 {
    let kib = field(meminfo, name)
        .and_then(|value| value.strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

fn huge_pages(folder: &Path) -> Vec<HugePages> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let number = |path: &Path| fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let pool = |entry: fs::DirEntry| {
        let name = entry.file_name();
        let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let total = number(&entry.path().join("nr_hugepages"))?;
        let free = number(&entry.path().join("free_hugepages"))?;
        Some(HugePages { page_bytes: kib * 1024, total, free })
    };
    let mut pools: Vec<HugePages> = entries.flatten().filter_map(pool).collect();
    pools.sort_unstable_by_key(|pool| pool.page_bytes);
    pools
}

/// The word in brackets.
fn chosen(text: &str) -> String {
    let word = text.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    word.unwrap_or("absent").to_owned()
}

fn is_tsc_stable(flags: &str) -> bool {
    ["constant_tsc", "nonstop_tsc"].iter().all(|flag| flags.split_whitespace().any(|found| found == *flag))
}

fn has_net_admin(status: &str) -> bool {
    let bits = field(status, "CapEff").and_then(|bits| u64::from_str_radix(bits, 16).ok());
    bits.is_some_and(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read() {
        assert_eq!(meminfo_bytes("MemTotal:       1024 kB\nMemFree: 1 kB", "MemTotal"), 1 << 20);
        assert_eq!(meminfo_bytes("", "MemTotal"), 0);
        assert_eq!(chosen("always [madvise] never"), "madvise");
        assert_eq!(chosen(""), "absent");
        assert!(is_tsc_stable("a constant_tsc nonstop_tsc") && !is_tsc_stable("constant_tsc"));
        assert!(has_net_admin("CapEff:\t0000000000001000") && !has_net_admin("CapEff:\t0000000000000fff"));
    }

    #[test]
    fn pools_are_sorted_and_strangers_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["hugepages-1048576kB", "hugepages-2048kB", "other"] {
            let pool = folder.path().join(name);
            fs::create_dir(&pool).unwrap();
            fs::write(pool.join("nr_hugepages"), "4\n").unwrap();
            fs::write(pool.join("free_hugepages"), "3\n").unwrap();
        }
        let pools = huge_pages(folder.path());
        assert_eq!(pools.len(), 2);
        assert_eq!(pools[0], HugePages { page_bytes: 2 << 20, total: 4, free: 3 });
    }

    #[test]
    fn this_host_has_cpus_and_memory() {
        let facts = SystemFacts::probe();
        assert!(facts.cpus > 0 && facts.memory_bytes > 1 << 20 && !facts.kernel.is_empty());
    }
}
