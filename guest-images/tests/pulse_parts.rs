//! The parts of pulse that touch no hardware, compiled for the host: command line, pages and
//! their check, the table's sums, walks, memory ranges, output lines.

#[path = "../pulse/ledger.rs"]
#[allow(dead_code, reason = "pulse uses all of it; the tests need not")]
mod ledger;
#[path = "../pulse/line.rs"]
#[allow(dead_code, reason = "pulse uses all of it; the tests need not")]
mod line;
#[path = "../pulse/options.rs"]
#[allow(dead_code, reason = "pulse uses all of it; the tests need not")]
mod options;
#[path = "../pulse/page.rs"]
#[allow(dead_code, reason = "pulse uses all of it; the tests need not")]
mod page;
#[path = "../pulse/pattern.rs"]
#[allow(dead_code, reason = "pulse uses all of it; the tests need not")]
mod pattern;
#[path = "../pulse/span.rs"]
#[allow(dead_code, reason = "pulse uses all of it; the tests need not")]
mod span;

use ledger::{Entry, Sums};
use line::Line;
use options::{Content, Options, Pattern, Poke};
use page::{Page, Writing};
use pattern::Walk;
use span::Span;

const CONTENTS: [Content; 4] = [Content::Constant, Content::Text, Content::Random, Content::Zero];
const NUMBER: u64 = 0x1234;

/// Every way to write pages.
fn all_writings() -> impl Iterator<Item = Writing> {
    CONTENTS
        .into_iter()
        .flat_map(|content| [1, 64, 4096].map(|changed_bytes| Writing { content, changed_bytes }))
}

#[test]
fn command_line_sets_every_option() {
    let text = "console=ttyS0 quiet ws=84M rate=20000 pattern=hot bytes=4096 content=zero start=1G cpus=4 interval=50 \
                nap=10 quit=7 poke=3 poke-at=table torture=on";
    let expected = Options {
        ws_bytes: 84 << 20,
        rate_pages_per_s: Some(20_000),
        pattern: Pattern::Hot,
        changed_bytes: 4096,
        content: Content::Zero,
        start: 1 << 30,
        cpus: 4,
        interval_ms: 50,
        nap_ms: Some(10),
        quit_beats: Some(7),
        poke_beat: Some(3),
        poke: Poke::Table,
        torture: true,
    };
    assert_eq!(Options::parse(text), Ok(expected));
}

#[test]
fn command_line_without_our_words_is_the_default() {
    assert_eq!(Options::parse(""), Ok(Options::default()));
    assert_eq!(Options::parse("root=/dev/vda wsx=9 = ro"), Ok(Options::default()));
}

#[test]
fn bad_values_are_named() {
    for word in [
        "ws=",
        "ws=M",
        "ws=99999999999G",
        "rate=0",
        "rate=fast",
        "pattern=odd",
        "bytes=2",
        "content=",
        "start=17",
        "cpus=0",
        "cpus=5",
        "interval=0",
        "quit=0",
        "nap=1",
        "poke=x",
        "poke-at=",
        "start=12\u{e9}",
    ] {
        assert_eq!(Options::parse(&format!("ws=1M {word} cpus=1")), Err(word));
    }
}

#[test]
fn pages_pass_their_check_through_many_generations() {
    for writing in all_writings() {
        let mut page: Page = [0xdead; 512];
        let mut entry = writing.fill(&mut page, NUMBER);
        for _ in 0..600 {
            assert_eq!(writing.check(&page, NUMBER, entry), Ok(()), "{writing:?}");
            entry = writing.advance(&mut page, NUMBER, entry);
        }
        assert_eq!(entry.generation, 601);
    }
}

#[test]
fn a_visit_changes_as_many_bytes_as_it_should() {
    for writing in all_writings().filter(|writing| writing.content != Content::Zero) {
        let mut page: Page = [0; 512];
        let entry = writing.fill(&mut page, NUMBER);
        let before = page;
        writing.advance(&mut page, NUMBER, entry);
        let last = (0..512).rev().find(|word| page[*word] != before[*word]);
        let expected =
            [(1, 0), (64, 7), (4096, 511)].into_iter().find(|(bytes, _)| *bytes == writing.changed_bytes);
        assert_eq!(last, expected.map(|(_, word)| word), "{writing:?}");
    }
}

#[test]
fn zero_content_is_all_zero_at_every_other_visit() {
    for writing in all_writings().filter(|writing| writing.content == Content::Zero) {
        let mut page: Page = [7; 512];
        let mut entry = writing.fill(&mut page, NUMBER);
        for _ in 0..8 {
            assert_eq!(page == [0; 512], entry.generation.is_multiple_of(2), "{writing:?} {entry:?}");
            entry = writing.advance(&mut page, NUMBER, entry);
        }
    }
}

#[test]
fn any_older_page_is_noticed() {
    for writing in all_writings() {
        let mut page: Page = [0; 512];
        let mut entry = writing.fill(&mut page, NUMBER);
        let mut history = vec![page];
        for _ in 0..300 {
            entry = writing.advance(&mut page, NUMBER, entry);
            history.push(page);
        }
        history.pop();
        // All-zero pages of different generations are the same page: those can't be stale.
        for old in history.iter().filter(|old| **old != page) {
            assert!(writing.check(old, NUMBER, entry).is_err(), "{writing:?}");
        }
    }
}

#[test]
fn torn_moved_and_flipped_pages_are_noticed() {
    for writing in all_writings() {
        let mut page: Page = [0; 512];
        let entry = writing.fill(&mut page, NUMBER);
        for word in 0..512 {
            let mut flipped = page;
            flipped[word] ^= 1 << (word % 64);
            assert!(writing.check(&flipped, NUMBER, entry).is_err(), "{writing:?}, word {word}");
        }
        assert_eq!(writing.check(&page, NUMBER + 1, entry).map_err(|wrong| wrong.field), Err("number"));
    }
    let writing = Writing { content: Content::Random, changed_bytes: 4096 };
    let mut page: Page = [0; 512];
    let old_entry = writing.fill(&mut page, NUMBER);
    let old = page;
    let entry = writing.advance(&mut page, NUMBER, old_entry);
    for cut in 3..512 {
        let mut torn = page;
        torn[cut..].copy_from_slice(&old[cut..]);
        assert_eq!(
            writing.check(&torn, NUMBER, entry).map_err(|wrong| wrong.field),
            Err("checksum"),
            "cut {cut}"
        );
    }
}

#[test]
fn swapped_words_change_the_checksum() {
    let mut page: Page = std::array::from_fn(|word| word as u64);
    let before = page::checksum(&page);
    for (a, b) in [(0, 1), (0, 4), (4, 8), (510, 511), (507, 511)] {
        page.swap(a, b);
        assert_ne!(page::checksum(&page), before, "words {a} and {b}");
        page.swap(a, b);
    }
}

#[test]
fn text_repeats_its_words_and_random_does_not() {
    let distinct = |content| {
        let mut page: Page = [0; 512];
        Writing { content, changed_bytes: 64 }.fill(&mut page, NUMBER);
        page[2..].iter().collect::<std::collections::HashSet<_>>().len()
    };
    assert_eq!(distinct(Content::Constant), 1);
    assert_eq!(distinct(Content::Text), 32);
    assert_eq!(distinct(Content::Random), 510);
}

#[test]
fn sums_follow_entries_and_notice_a_stale_part() {
    let entry =
        |generation: usize| Entry { generation: generation as u32, checksum: (generation * 77) as u32 };
    let mut table: Vec<Entry> = (0..1000).map(entry).collect();
    let mut sums = Sums::of(&table, 0);
    let stale = table.clone();
    for index in (0..1000).step_by(3) {
        let new = entry(index + 5000);
        sums.replace(index, table[index], new);
        table[index] = new;
    }
    let mut parts = Sums::of(&table[..400], 0);
    parts.merge(Sums::of(&table[400..], 400));
    assert_eq!(parts, sums);

    table[512..].copy_from_slice(&stale[512..]);
    assert_ne!(Sums::of(&table, 0), sums);
    let mut swapped = stale.clone();
    swapped.swap(1, 2);
    assert_ne!(Sums::of(&swapped, 0), Sums::of(&stale, 0));
}

#[test]
fn walks_stay_inside_and_reach_every_page() {
    for pattern in [Pattern::Seq, Pattern::Random, Pattern::Hot] {
        for pages in [1, 2, 10, 257] {
            let mut walk = Walk::new(pattern, pages, 1);
            let visits: Vec<u64> = (0..pages * 300).map(|_| walk.next()).collect();
            assert!(visits.iter().all(|page| *page < pages), "{pattern:?} of {pages}");
            let reached: std::collections::HashSet<_> = visits.iter().collect();
            assert_eq!(reached.len() as u64, pages, "{pattern:?} of {pages}");
        }
    }
}

#[test]
fn hot_walk_stays_mostly_in_the_first_tenth() {
    let mut walk = Walk::new(Pattern::Hot, 1000, 1);
    let hot = (0..10_000).filter(|_| walk.next() < 100).count();
    assert!((8800..9200).contains(&hot), "{hot} of 10000 visits were hot");
}

#[test]
fn span_skips_holes_and_what_is_below_start() {
    let mut span = Span::default();
    span.add(0, 0x9_f000, 0x100_0000, 1 << 36);
    span.add(0x10_0000, 0xbff0_0800, 0x100_0000, 1 << 36);
    span.add(1 << 32, 1 << 30, 0x100_0000, 1 << 36);
    span.add(u64::MAX - 100, 200, 0x100_0000, 1 << 36);
    let low_pages = (0xc000_0000 - 0x100_0000) / 4096;
    assert_eq!(span.pages(), low_pages + (1 << 18));
    assert_eq!(span.address(0), Some(0x100_0000));
    assert_eq!(span.address(low_pages - 1), Some(0xbfff_f000));
    assert_eq!(span.address(low_pages), Some(1 << 32));
    assert_eq!(span.address(span.pages()), None);
}

#[test]
fn lines_hold_fields_and_never_overflow() {
    let mut line =
        Line::new("B").number("seq", 0).hex("page", 0x12ab).text("field", "tsc").number("most", u64::MAX);
    assert_eq!(line.finish(), b"B seq=0 page=0x12ab field=tsc most=18446744073709551615\n");
    let mut long = Line::new("A").text("name", &"x".repeat(1000));
    let bytes = long.finish();
    assert_eq!((bytes.len(), bytes.last()), (320, Some(&b'\n')));
}

#[test]
fn a_line_with_a_sum_tells_of_a_lost_or_doubled_byte() {
    let mut line = Line::new("T").number("seq", 12).sum();
    let text = str::from_utf8(line.finish()).unwrap();
    let (said, sum) = text.trim_end().rsplit_once(" sum=0x").unwrap();
    let fnv = |text: &str| {
        text.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    };
    assert_eq!((said, u32::from_str_radix(sum, 16)), ("T seq=12", Ok(fnv("T seq=12"))));
    assert!([" seq=12", "T seq=1", "T seq=122"].iter().all(|other| fnv(other) != fnv("T seq=12")));
}
