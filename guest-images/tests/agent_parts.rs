//! The agent's pure parts, compiled for this host: its checks find what is wrong, and nothing else.
//! That the agent boots, and finds a guest's broken memory, is tested with guests.

#![allow(unsafe_code, reason = "the agent is a program of raw system calls; each block says why it is sound")]
#![allow(dead_code, reason = "only parts of the agent's modules are called here")]
#![allow(missing_docs, unreachable_pub, reason = "these modules are a program's, not a library's")]

#[path = "../agent/clock.rs"]
mod clock;
#[path = "../agent/disk.rs"]
mod disk;
#[path = "../agent/net.rs"]
mod net;
#[path = "../agent/pages.rs"]
mod pages;
#[path = "../agent/sys.rs"]
mod sys;
#[path = "../agent/text.rs"]
mod text;
#[path = "../agent/vdso.rs"]
mod vdso;
#[path = "../agent/worker.rs"]
mod worker;

use pages::{Load, check_page, write_page};

#[test]
fn a_page_is_right_only_as_it_was_written() {
    let mut words = [0u64; 512];
    write_page(&mut words, 7, 3);
    assert_eq!(check_page(&words, 7, 3), None);
    // A page from elsewhere, and one whose last write got lost.
    assert_eq!(check_page(&words, 8, 3).map(|wrong| wrong.0), Some(0));
    assert_eq!(check_page(&words, 7, 4).map(|wrong| wrong.0), Some(1));
    for index in 0..words.len() {
        let good = words[index];
        words[index] ^= 1 << (index % 64);
        assert_eq!(check_page(&words, 7, 3), Some((index, good, words[index])));
        words[index] = good;
    }
}

#[test]
fn two_generations_of_a_page_share_no_word_by_accident() {
    let (mut old, mut new) = ([0u64; 512], [0u64; 512]);
    write_page(&mut old, 5, 1);
    write_page(&mut new, 5, 2);
    assert_eq!(old.iter().zip(&new).filter(|(old, new)| old == new).count(), 1, "the page number");
}

#[test]
fn a_disk_block_is_right_only_as_it_was_written() {
    let mut block = [0; disk::BLOCK_BYTES];
    assert!(disk::check(&block, 0, 0).is_some(), "an empty block is not a block");
    disk::fill(&mut block, 9, 2);
    let wrong =
        |block: &[u8], number, generation| disk::check(block, number, generation).map(|wrong| wrong.0);
    assert_eq!(wrong(&block, 9, 2), None);
    assert_eq!(wrong(&block, 8, 2), Some("number"));
    assert_eq!(wrong(&block, 9, 1), Some("generation"));
    block[2048] ^= 1;
    assert_eq!(wrong(&block, 9, 2), Some("checksum"));
    // Torn: the end of the block before, behind the start of a new one.
    disk::fill(&mut block, 9, 3);
    let end = block[disk::BLOCK_BYTES / 2..].to_vec();
    disk::fill(&mut block, 9, 4);
    block[disk::BLOCK_BYTES / 2..].copy_from_slice(&end);
    assert_eq!(wrong(&block, 9, 4), Some("checksum"));
}

#[test]
fn a_datagram_that_comes_twice_is_noticed() {
    assert_eq!(net::number_of(b"n=17 text"), Some(17));
    assert!(
        [&b"17 text"[..], b"n=x ", b"n=", b"", b"n=99999999999999999999 "]
            .map(net::number_of)
            .iter()
            .all(Option::is_none)
    );
    let mut seen = net::Seen::default();
    let again = [0, 0, 3, 1, 1, 3, 2, 200, 3, 137, 136, 137, 200].map(|number| seen.again(number));
    let expected = [false, true, false, false, true, true, false, false, false, false, false, true, true];
    assert_eq!(again, expected);
}

#[test]
fn words_that_people_type() {
    assert_eq!(text::parse_size("4096"), Some(4096));
    assert_eq!(text::parse_size("16M"), Some(16 << 20));
    assert_eq!(text::parse_size("64k"), Some(64 << 10));
    for wrong in ["", "M", "-1", "1T", "99999999999G"] {
        assert_eq!(text::parse_size(wrong), None, "{wrong}");
    }
    assert!(Load::parse("1M", "max").is_some_and(|load| load.rate.is_none()));
    assert!(Load::parse("1M", "50").is_some_and(|load| load.rate == Some(50)));
    assert!(Load::parse("1M", "0").is_none());
    assert_eq!(net::parse_address("10.0.0.2/24"), Some(([10, 0, 0, 2], [255, 255, 255, 0])));
    for wrong in ["10.0.0.2", "10.0.0.2/0", "10.0.0.2/33", "10.0.0/24"] {
        assert_eq!(net::parse_address(wrong), None, "{wrong}");
    }
}

/// Where this process has its vDSO, from the auxiliary vector: pairs of a key and a value.
fn vdso_image() -> Option<usize> {
    let auxiliary = std::fs::read("/proc/self/auxv").ok()?;
    let words: Vec<usize> = auxiliary
        .chunks_exact(size_of::<usize>())
        .filter_map(|bytes| Some(usize::from_ne_bytes(bytes.try_into().ok()?)))
        .collect();
    words.chunks_exact(2).find(|pair| pair[0] == 33).map(|pair| pair[1])
}

#[test]
fn time_from_the_vdso_is_the_kernels() {
    // SAFETY: the kernel's auxiliary vector says that its vDSO is there.
    let gettime = vdso_image().and_then(|image| unsafe { vdso::symbol(image) });
    assert!(gettime.is_some());
    let mut clock = clock::Clock::new(gettime);
    for _ in 0..1000 {
        let before_ns = sys::clock_gettime(sys::CLOCK_MONOTONIC).as_ns();
        let now_ns = clock.look();
        let after_ns = sys::clock_gettime(sys::CLOCK_MONOTONIC).as_ns();
        assert!((before_ns..=after_ns).contains(&now_ns), "{before_ns} <= {now_ns} <= {after_ns}");
    }
    std::thread::sleep(std::time::Duration::from_millis(30));
    clock.look();
    assert!(clock.take_gap_ns() >= 30_000_000);
    assert_eq!(clock.take_gap_ns(), 0);
}
