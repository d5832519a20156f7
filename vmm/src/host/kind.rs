//! What serves `/dev/kvm`: hardware virtualisation, or software.

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// Kinds of KVM that behave differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KvmKind {
    /// Intel's VMX.
    Vmx,
    /// AMD's SVM.
    Svm,
    /// `kvm_pvm`: no hardware virtualisation, shadow paging.
    Pvm,
    /// None of the known modules.
    Other,
}

impl KvmKind {
    /// Looks at the loaded modules and the CPU's flags. Opens no device and takes some microseconds.
    pub fn detect() -> Self {
        let loaded = |module: &str| Path::new("/sys/module").join(module).exists();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::of(loaded, cpu_flags(&cpuinfo))
    }

    /// Only one module can serve `/dev/kvm`. Where none is seen (sysfs hidden), the CPU's flag decides.
    fn of(loaded: impl Fn(&str) -> bool, flags: &str) -> Self {
        let flag = |name: &str| flags.split_whitespace().any(|flag| flag == name);
        if loaded("kvm_pvm") {
            Self::Pvm
        } else if loaded("kvm_intel") || (flag("vmx") && !loaded("kvm_amd")) {
            Self::Vmx
        } else if loaded("kvm_amd") || flag("svm") {
            Self::Svm
        } else {
            Self::Other
        }
    }

    /// Does the guest's kernel run natively?
    pub fn is_hardware(self) -> bool {
        matches!(self, Self::Vmx | Self::Svm)
    }
}

impl fmt::Display for KvmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmx => "hardware, Intel VMX (kvm_intel)",
            Self::Svm => "hardware, AMD SVM (kvm_amd)",
            Self::Pvm => "software (kvm_pvm)",
            Self::Other => "unknown: neither kvm_intel nor kvm_amd nor kvm_pvm",
        })
    }
}

/// The first CPU's flags of `/proc/cpuinfo`.
pub(super) fn cpu_flags(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find(|line| line.starts_with("flags"));
    line.and_then(|line| line.split_once(':')).map_or("", |(_, flags)| flags.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_module_and_flag() {
        let kind = |modules: &'static [&str], flags| KvmKind::of(|name| modules.contains(&name), flags);
        assert_eq!(kind(&["kvm", "kvm_intel"], "fpu vmx"), KvmKind::Vmx);
        assert_eq!(kind(&["kvm", "kvm_amd"], "fpu svm"), KvmKind::Svm);
        assert_eq!(kind(&["kvm", "kvm_pvm"], "fpu"), KvmKind::Pvm);
        assert_eq!(kind(&["kvm", "kvm_pvm"], "fpu vmx"), KvmKind::Pvm);
        assert_eq!(kind(&[], "fpu svm"), KvmKind::Svm);
        assert_eq!(kind(&["kvm"], "fpu svml"), KvmKind::Other);
    }

    #[test]
    fn flags_are_found() {
        assert_eq!(cpu_flags("processor : 0\nflags\t\t: fpu vmx\nprocessor : 1\nflags : x"), "fpu vmx");
        assert_eq!(cpu_flags(""), "");
    }
}
