//! The kernel command line: the user's words, and ours where the user has said nothing.
//!
//! Ours come first, so that for keys that kernels read repeatedly the user's still count last, and so that
//! nothing of ours lands behind a `--`, which would hand it to init.

use super::BootError;
use crate::layout::{CMDLINE_MAX_BYTES, VirtioSlot};

/// Words for every guest: kernel messages where the VMM has a console, and a panic that ends in a reset
/// instead of a guest that hangs.
pub const GENERAL_WORDS: [&str; 2] = ["console=ttyS0", "panic=-1"];

/// The one key whose values are merged: the kernel reads only its last occurrence, and a host that needs CPU
/// features hidden still needs it when the user hides another. The user's values come first: the kernel reads only
/// the first 127 bytes of the list (`parse_set_clear_cpuid` of Linux 6.12).
const MERGED_KEY: &str = "clearcpuid";

/// The word that announces a virtio-mmio device to kernels without ACPI
/// (`CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`); others ignore it.
pub fn virtio_word(slot: &VirtioSlot) -> String {
    format!("virtio_mmio.device={}K@{:#x}:{}", slot.len / 1024, slot.gpa, slot.gsi)
}

/// The whole command line: general words, host words, virtio words, then the user's. A key in `user`
/// suppresses ours, a key in `host_words` suppresses a general one.
///
/// # Errors
/// Control characters in `user`, or more than [`CMDLINE_MAX_BYTES`] in all.
pub fn compose(user: &str, host_words: &[String], virtio: &[VirtioSlot]) -> Result<String, BootError> {
    if let Some((position, found)) = user.bytes().enumerate().find(|(_, byte)| byte.is_ascii_control()) {
        return Err(BootError::CmdlineControl { found, position });
    }
    let user_words = split_words(user);
    // What follows `--` is init's: neither a key for the kernel nor ours to touch.
    let kernel_words = user_words.iter().position(|word| *word == "--").unwrap_or(user_words.len());
    let (kernel_words, init_words) = user_words.split_at(kernel_words);

    let given = |key: &str| kernel_words.iter().any(|word| same_key(key_of(word), key));
    let host_given = |key: &str| host_words.iter().any(|word| same_key(key_of(word), key));
    let merge = given(MERGED_KEY) && host_given(MERGED_KEY);
    let is_merged = |word: &str| merge && same_key(key_of(word), MERGED_KEY);

    let general =
        GENERAL_WORDS.iter().filter(|word| !host_given(key_of(word))).map(|word| (*word).to_owned());
    let host = host_words.iter().filter(|word| !is_merged(word)).cloned();
    let ours = general.chain(host).chain(virtio.iter().map(virtio_word));
    let mut words: Vec<String> = ours.filter(|word| !given(key_of(word))).collect();
    if merge {
        let both = kernel_words.iter().copied().chain(host_words.iter().map(String::as_str));
        words.push(merged(both.filter(|word| is_merged(word))));
    }
    let ours_bytes = words.join(" ").len();
    let users = kernel_words.iter().filter(|word| !is_merged(word)).chain(init_words);
    words.extend(users.map(|word| (*word).to_owned()));
    let cmdline = words.join(" ");
    if cmdline.len() > CMDLINE_MAX_BYTES {
        let (bytes, limit_bytes) = (cmdline.len(), CMDLINE_MAX_BYTES);
        return Err(BootError::CmdlineTooLong { bytes, limit_bytes, ours_bytes, cmdline });
    }
    Ok(cmdline)
}

/// An image's words, without those whose key is in `user`, and then the user's.
pub fn with_image_words(image: &str, user: &str) -> String {
    let user_words = split_words(user);
    let given = |word: &&str| {
        let mut kernel_words = user_words.iter().take_while(|word| **word != "--");
        kernel_words.any(|users| same_key(key_of(users), key_of(word)))
    };
    let ours = split_words(image).into_iter().filter(|word| !given(word));
    ours.chain([user]).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// One word with the values of all `words`, each once, in order.
fn merged<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut values: Vec<&str> = Vec::new();
    for word in words {
        let list = word.split_once('=').map_or("", |(_, list)| list);
        for value in list.split(',').filter(|value| !value.is_empty()) {
            if !values.contains(&value) {
                values.push(value);
            }
        }
    }
    format!("{MERGED_KEY}={}", values.join(","))
}

/// Splits at spaces outside double quotes, as the kernel's `next_arg` does.
fn split_words(line: &str) -> Vec<&str> {
    let mut quoted = false;
    let words = line.split(|character: char| {
        quoted ^= character == '"';
        character == ' ' && !quoted
    });
    words.filter(|word| !word.is_empty()).collect()
}

fn key_of(word: &str) -> &str {
    let word = word.trim_start_matches('"');
    word.split_once('=').map_or(word, |(key, _)| key)
}

/// The kernel takes `-` and `_` in a key as the same.
fn same_key(left: &str, right: &str) -> bool {
    let plain = |byte: u8| if byte == b'-' { b'_' } else { byte };
    left.bytes().map(plain).eq(right.bytes().map(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::virtio_slot;

    fn line(user: &str, host: &[&str]) -> String {
        let host: Vec<String> = host.iter().map(|word| (*word).to_owned()).collect();
        compose(user, &host, &[]).unwrap()
    }

    #[test]
    fn ours_come_first() {
        assert_eq!(
            line("quiet root=/dev/vda", &["nosmap"]),
            "console=ttyS0 panic=-1 nosmap quiet root=/dev/vda"
        );
    }

    #[test]
    fn the_users_key_wins() {
        assert_eq!(line("console=hvc0 panic=0", &["tsc=reliable"]), "tsc=reliable console=hvc0 panic=0");
        assert_eq!(line("panic=5 console=hvc0 no_smap", &["no-smap"]), "panic=5 console=hvc0 no_smap");
    }

    #[test]
    fn the_users_key_wins_over_an_images() {
        let image = "console=ttyS0 quiet acpi=off";
        assert_eq!(with_image_words(image, ""), image);
        assert_eq!(with_image_words(image, "acpi=force a=1"), "console=ttyS0 quiet acpi=force a=1");
        assert_eq!(with_image_words(image, "a -- quiet"), "console=ttyS0 quiet acpi=off a -- quiet");
        assert_eq!(with_image_words("", "  a  b"), "  a  b");
    }

    #[test]
    fn host_words_win_over_general_ones() {
        assert_eq!(line("", &["panic=3"]), "console=ttyS0 panic=3");
    }

    #[test]
    fn clearcpuid_lists_are_merged() {
        let merged = line("clearcpuid=avx,sha quiet", &["clearcpuid=cx16,avx"]);
        assert_eq!(merged, "console=ttyS0 panic=-1 clearcpuid=avx,sha,cx16 quiet");
        assert_eq!(line("clearcpuid=avx", &[]), "console=ttyS0 panic=-1 clearcpuid=avx");
        assert_eq!(line("", &["clearcpuid=cx16"]), "console=ttyS0 panic=-1 clearcpuid=cx16");
    }

    #[test]
    fn words_for_init_are_left_alone() {
        assert_eq!(line("quiet -- panic=9", &[]), "console=ttyS0 panic=-1 quiet -- panic=9");
    }

    #[test]
    fn quotes_keep_spaces() {
        assert_eq!(
            line(r#"dyndbg="file a +p; panic=7" ro"#, &[]),
            r#"console=ttyS0 panic=-1 dyndbg="file a +p; panic=7" ro"#
        );
    }

    #[test]
    fn devices_are_announced() {
        let slots = [virtio_slot(0).unwrap(), virtio_slot(1).unwrap()];
        let line = compose("", &[], &slots).unwrap();
        let expected = "virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6";
        assert_eq!(line, format!("console=ttyS0 panic=-1 {expected}"));
        assert_eq!(
            compose("virtio_mmio.device=4K@0x1000:9", &[], &slots).unwrap().matches("virtio").count(),
            1
        );
    }

    #[test]
    fn the_limit_is_exact_and_the_error_has_both_figures() {
        let ours = "console=ttyS0 panic=-1 ".len();
        assert!(compose(&"x".repeat(CMDLINE_MAX_BYTES - ours), &[], &[]).is_ok());
        let text = compose(&"x".repeat(CMDLINE_MAX_BYTES - ours + 1), &[], &[]).unwrap_err().to_string();
        assert!(text.contains("2048 bytes, the limit is 2047, of which 22 are"), "{text}");
    }

    #[test]
    fn control_characters_are_refused() {
        let text = compose("quiet\nro", &[], &[]).unwrap_err().to_string();
        assert!(text.contains("0x0a at byte 5"), "{text}");
    }

    proptest! {
        #[test]
        fn every_user_word_survives(words in proptest::collection::vec("[a-z]{1,6}(=[a-z0-9]{1,6})?", 0..20)) {
            let user = words.join(" ");
            let composed = compose(&user, &["clearcpuid=cx16".to_owned()], &[]).unwrap();
            prop_assert!(composed.ends_with(&user));
        }

        #[test]
        fn any_text_is_answered(user in ".{0,300}") {
            let _ = compose(&user, &["clearcpuid=cx16".to_owned()], &[]).map_err(|error| error.to_string());
        }
    }
}
