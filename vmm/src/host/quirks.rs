//! What each kind of KVM needs from guests: words for the kernel, and features that no guest may see.
//!
//! The words themselves live beside the images (`tern_guest_images`), whose kernels were measured with them.

use serde::Serialize;

use super::kind::KvmKind;
use crate::vcpu::Feature;

/// What is particular about a kind of KVM.
#[derive(Clone, Copy, Debug)]
pub struct Quirk {
    kind: KvmKind,
    /// Words for the kernel's command line; the user's win over them.
    words: &'static str,
    /// Names of the features to take out of CPUID.
    hidden: &'static [&'static str],
    /// Why, for people.
    reason: &'static str,
}

/// One row for each kind that has quirks. VMX and SVM have none.
const QUIRKS: &[Quirk] = &[Quirk {
    kind: KvmKind::Pvm,
    words: tern_guest_images::CMDLINE_INTERPRETED_RING0,
    // la57 is never seen: KVM offers it, and its guests do not see it.
    hidden: &["cx16", "la57"],
    reason: "kvm_pvm interprets ring 0 and does not know every instruction; its CPUID can hide only some \
             features, so the kernel must be told not to use the others",
}];

/// All that a kind of KVM needs, as the machine and people use it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Needs {
    /// Words for the kernel's command line, each `key` or `key=value`.
    pub kernel_words: Vec<String>,
    /// Features to take out of CPUID.
    #[serde(serialize_with = "names")]
    pub hidden: Vec<Feature>,
    /// Why, for people; empty where nothing is needed.
    pub reason: &'static str,
}

fn names<S: serde::Serializer>(hidden: &[Feature], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(hidden.iter().map(ToString::to_string))
}

/// What `kind` needs.
pub fn needs(kind: KvmKind) -> Needs {
    match QUIRKS.iter().find(|quirk| quirk.kind == kind) {
        Some(quirk) => Needs {
            kernel_words: quirk.words.split_whitespace().map(str::to_owned).collect(),
            hidden: quirk.hidden.iter().filter_map(|name| Feature::named(name)).collect(),
            reason: quirk.reason,
        },
        None => Needs::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_needs_nothing() {
        for kind in [KvmKind::Vmx, KvmKind::Svm] {
            assert_eq!(needs(kind), Needs::default());
        }
    }

    #[test]
    fn an_interpreting_kvm_needs_words_that_kernels_take() {
        let needs = needs(KvmKind::Pvm);
        let clear = needs.kernel_words.iter().find(|word| word.starts_with("clearcpuid=")).unwrap();
        assert!(clear.split([',', '=']).any(|feature| feature == "cx16"), "{clear}");
        assert_eq!(serde_json::to_value(&needs).unwrap()["hidden"], serde_json::json!(["cx16", "la57"]));
        assert!(crate::boot::cmdline::compose("", &needs.kernel_words, &[]).is_ok());
    }
}
