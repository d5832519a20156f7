//! `tern inspect` and `tern dump` on files of real guests, whole and damaged, where there is no KVM.

#![allow(clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tern_tests::binary::tern_binary;
use tern_tests::host::image_or_skip;
use tern_tests::migrate::migrate_to;
use tern_tests::{Incoming, Proxy, Tern, TernBuilder, kvm_or_skip, root_or_skip, save};

const PAGE: usize = 4096;
/// Where `pulse`'s pages begin (its banner says so).
const WORKING_SET: usize = 16 << 20;
const WORKING_SET_PAGES: usize = 512;
/// Memory begins there in a snapshot.
const DATA: usize = 2 << 20;
const MEMORY: usize = 64 << 20;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

fn tern(words: &[&str], file: &Path) -> Output {
    Command::new(tern_binary()).args(words).arg(file).stdin(Stdio::null()).output().unwrap()
}

/// What `tern inspect --json` says, with the exit code; it has said nothing else.
fn inspect(words: &[&str], file: &Path) -> (Option<i32>, Value) {
    let output = tern(&[&["inspect", "--json"], words].concat(), file);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// A part's parts.
fn parts(node: &Value) -> &[Value] {
    node["children"].as_array().map_or(&[], Vec::as_slice)
}

fn name(node: &Value) -> &str {
    node["name"].as_str().unwrap()
}

/// The part at a path of names, of each the beginning.
fn part<'n>(node: &'n Value, path: &[&str]) -> &'n Value {
    path.iter().fold(node, |node, wanted| {
        let found = parts(node).iter().find(|child| name(child).starts_with(wanted));
        found.unwrap_or_else(|| {
            panic!("no {wanted} in {:?}", parts(node).iter().map(name).collect::<Vec<_>>())
        })
    })
}

fn number(node: &Value, path: &[&str]) -> u64 {
    part(node, path)["value"].as_u64().unwrap()
}

fn problems(node: &Value) -> Vec<String> {
    let here = node["problem"].as_str().map(str::to_owned);
    here.into_iter().chain(parts(node).iter().flat_map(problems)).collect()
}

/// A guest with two vCPUs, saved.
fn pulse() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guest.snap");
    let guest = Tern::pulse("ws=2M rate=1000 content=text interval=50 cpus=2").cpus(2).start();
    guest.wait_beats(2, 1);
    save(&guest, &file);
    assert!(guest.quit().success());
    (folder, file)
}

#[test]
fn every_section_is_there_and_sound_and_a_flipped_page_is_found() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, file) = pulse();
    let (code, tree) = inspect(&["--verify"], &file);
    assert_eq!((code, problems(&tree)), (Some(0), Vec::new()));
    let all: Vec<_> = parts(&tree).iter().map(name).collect();
    assert_eq!(all, ["head", "description", "memory", "index", "state", "pages"]);
    assert_eq!(number(&tree, &["memory", "region[0]", "length_bytes"]), MEMORY as u64);
    assert_eq!(number(&tree, &["pages"]), (MEMORY / PAGE) as u64);
    assert_eq!(part(&tree, &["description", "configuration", "boot", "image"])["value"], "pulse");
    // As many sections as are promised, by the same names.
    let state = parts(part(&tree, &["state"])).iter().map(|section| name(section).to_owned());
    let promised = parts(part(&tree, &["description", "facts"])).iter();
    let promised = promised.filter(|field| name(field).starts_with("sections[")).map(|section| {
        let [kind, instance, version] =
            ["name", "instance", "version"].map(|field| &part(section, &[field])["value"]);
        format!("{}/{instance} version {version}", kind.as_str().unwrap())
    });
    let (mut state, mut promised): (Vec<_>, Vec<_>) = (state.collect(), promised.collect());
    state.sort();
    promised.sort();
    assert_eq!(state, promised);
    let (_, one) = inspect(&["--section", "vcpu"], &file);
    assert_eq!((parts(part(&one, &["state"])).len(), parts(part(&one, &["description"])).len()), (2, 0));
    let (code, none) = inspect(&["--section", "cpu"], &file);
    let problem = part(&none, &["state"])["problem"].as_str().unwrap();
    assert!(code == Some(1) && problem.contains("no section cpu, but vcpu, clock"), "{problem}");
    let text = String::from_utf8(tern(&["inspect"], &file).stdout).unwrap();
    assert!(text.contains("vcpu/1 version 1") && !text.contains("!!"), "{text}");

    let place = (DATA + WORKING_SET + 100 * PAGE + 9) as u64;
    let flipped = OpenOptions::new().read(true).write(true).open(&file).unwrap();
    let mut byte = [0];
    flipped.read_exact_at(&mut byte, place).unwrap();
    flipped.write_all_at(&[byte[0] ^ 1], place).unwrap();
    assert_eq!(inspect(&[], &file).0, Some(0), "memory is read only where that is wanted");
    let (code, tree) = inspect(&["--verify"], &file);
    let found = part(&tree, &["pages", &format!("region[0] page {}", WORKING_SET / PAGE + 100)]);
    assert!(found["problem"].as_str().unwrap().contains("has hash 0x"), "{found}");
    assert_eq!((code, number(&tree, &["pages", "wrong_pages"])), (Some(1), 1));
    // A core of it would show a debugger what never was.
    let core = file.with_extension("core");
    let refused = tern(&["dump", "--elf", core.to_str().unwrap()], &file);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has hash 0x") && !core.exists());

    // Of the tables every bit is looked at, always.
    flipped.write_all_at(&byte, place).unwrap();
    let entry = number(&tree, &["memory", "region[0]", "table_offset"]) + 100;
    flipped.read_exact_at(&mut byte, entry).unwrap();
    flipped.write_all_at(&[byte[0] ^ 1], entry).unwrap();
    let (code, tree) = inspect(&[], &file);
    assert!(code == Some(1) && part(&tree, &["pages"])["problem"].is_string(), "{tree:#}");
}

#[test]
fn a_file_that_was_cut_shows_what_is_left() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, file) = pulse();
    let (_, tree) = inspect(&[], &file);
    let whole = fs::metadata(&file).unwrap().len();
    let (table, state) =
        (number(&tree, &["memory", "region[0]", "table_offset"]), number(&tree, &["memory", "state_offset"]));
    let mut cuts =
        vec![whole - 1, whole - 20, table + 1, table, MEMORY as u64, DATA as u64, 4096, 60, 48, 47, 20, 8, 3];
    cuts.extend((state..whole).step_by(((whole - state) / 40).max(1) as usize));
    cuts.sort();
    let cut = OpenOptions::new().write(true).open(&file).unwrap();
    for length in cuts.into_iter().rev() {
        cut.set_len(length).unwrap();
        let (code, tree) = inspect(&[], &file);
        assert!(code == Some(1) && !problems(&tree).is_empty(), "cut at {length}: {tree:#}");
        assert_eq!(tree["value"].as_u64(), Some(length));
        assert!(!tern(&["inspect"], &file).stdout.is_empty());
        if length >= DATA as u64 {
            assert_eq!(number(&tree, &["description", "facts", "cpus"]), 2, "cut at {length}");
        }
    }
    cut.set_len(0).unwrap();
    for (bytes, reason) in [(&b""[..], "is empty"), (b"a letter", "neither a snapshot")] {
        fs::write(&file, bytes).unwrap();
        let output = tern(&["inspect"], &file);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(reason), "{said}");
    }
}

#[test]
fn a_recorded_stream_shows_its_frames_to_where_it_was_cut() {
    if !kvm_or_skip() {
        return;
    }
    let (source, destination) = Tern::pulse("ws=1M rate=1000 interval=50").start_pair(Incoming::Unix);
    source.wait_beats(1, 1);
    let proxy = Proxy::recording(&destination.uri());
    migrate_to(&source, &destination, &proxy.uri(), json!({}));
    let bytes = proxy.recorded();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stream");
    fs::write(&file, &bytes).unwrap();
    let (code, tree) = inspect(&[], &file);
    assert_eq!((code, problems(&tree)), (Some(0), Vec::new()));
    let frames = parts(&tree);
    for wanted in ["hello", "offer", "state", "commit"] {
        let found = frames.iter().any(|frame| name(frame).to_lowercase().starts_with(wanted));
        assert!(found, "no {wanted} in {:?}", frames.iter().map(name).collect::<Vec<_>>());
    }
    assert!(part(&tree, &["state"]).to_string().contains("\"rip\""));
    for length in (9..bytes.len()).step_by(bytes.len() / 30) {
        fs::write(&file, &bytes[..length]).unwrap();
        let (_, cut) = inspect(&[], &file);
        assert_eq!(cut["value"].as_u64(), Some(length as u64));
        assert!(parts(&cut).len() <= frames.len());
    }
    // Of the state each section has a checksum; pages are proven by the sum of their hashes, where they arrive.
    let at = bytes.windows(6).rposition(|found| found == b"serial").unwrap();
    let mut garbled = bytes;
    garbled[at + 40] ^= 1;
    fs::write(&file, &garbled).unwrap();
    let (code, tree) = inspect(&[], &file);
    assert!(code == Some(1) && !problems(&tree).is_empty());
}

/// A program header's range.
struct Segment {
    kind: u32,
    offset: usize,
    virtual_address: u64,
    physical_address: u64,
    bytes: usize,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn segments(core: &[u8]) -> Vec<Segment> {
    assert_eq!(core[..20], *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0");
    let (first, count) = (word(core, 32) as usize, usize::from(u16::from_le_bytes([core[56], core[57]])));
    let segment = |at| Segment {
        kind: half(core, at),
        offset: word(core, at + 8) as usize,
        virtual_address: word(core, at + 16),
        physical_address: word(core, at + 24),
        bytes: word(core, at + 32) as usize,
    };
    (0..count).map(|index| segment(first + 56 * index)).collect()
}

/// RIP and RSP of each thread.
fn threads(core: &[u8], notes: &Segment) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    let (mut at, end) = (notes.offset, notes.offset + notes.bytes);
    while at < end {
        let [name, content] =
            [half(core, at), half(core, at + 4)].map(|bytes| bytes.next_multiple_of(4) as usize);
        if core[at + 12..].starts_with(b"CORE\0") && half(core, at + 8) == 1 {
            // Registers are at 112 (elf_prstatus), of these RIP the 17th and RSP the 20th.
            let registers = at + 12 + name + 112;
            found.push((word(core, registers + 16 * 8), word(core, registers + 19 * 8)));
        }
        at += 12 + name + content;
    }
    assert_eq!(at, end);
    found
}

fn registers(tree: &Value, cpu: usize) -> (u64, u64) {
    let register = |name| number(tree, &["state", &format!("vcpu/{cpu}"), "regs", name]);
    (register("rip"), register("rsp"))
}

fn gdb(core: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-c"]).arg(core).args(commands.iter().flat_map(|command| ["-ex", command]));
    let output =
        gdb.output().unwrap_or_else(|error| panic!("gdb: {error}; install it with: scripts/setup tests"));
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn dump(file: &Path) -> (PathBuf, Value) {
    let core = file.with_extension("core");
    let output = tern(&["dump", "--json", "--elf", core.to_str().unwrap()], file);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (core, serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_core_has_the_registers_and_the_memory_and_a_debugger_reads_both() {
    if !kvm_or_skip() {
        return;
    }
    let (_folder, file) = pulse();
    let (_, tree) = inspect(&[], &file);
    let (path, report) = dump(&file);
    assert_eq!((&report["cpus"], &report["memory_bytes"]), (&json!(2), &json!(MEMORY)));
    let (core, snapshot) = (fs::read(&path).unwrap(), fs::read(&file).unwrap());
    let all = segments(&core);
    let notes = all.iter().find(|segment| segment.kind == PT_NOTE).unwrap();
    assert_eq!(threads(&core, notes), [registers(&tree, 0), registers(&tree, 1)]);
    let memory = all.iter().find(|segment| segment.kind == PT_LOAD).unwrap();
    assert_eq!((memory.physical_address, memory.virtual_address, memory.bytes), (0, 0, MEMORY));
    let memory = &core[memory.offset..][..MEMORY];
    assert!(memory == &snapshot[DATA..DATA + MEMORY], "memory is not the guest's");
    // Each of pulse's pages holds its own number.
    for page in WORKING_SET / PAGE..WORKING_SET / PAGE + WORKING_SET_PAGES {
        assert_eq!(word(memory, page * PAGE + 8), page as u64);
    }
    let said = gdb(&path, &["thread 2", "print/x $rip", "print/x $rsp", "x/1gx 0x1000008"]);
    let (rip, rsp) = registers(&tree, 1);
    for wanted in [format!("= {rip:#x}"), format!("= {rsp:#x}"), "0x0000000000001000".to_owned()] {
        assert!(said.contains(&wanted), "no {wanted:?} in {said}");
    }
    // An older core is replaced; nothing else is.
    dump(&file);
    let refused = tern(&["dump", "--elf", file.to_str().unwrap()], &file);
    assert!(!refused.status.success() && fs::read(&file).unwrap() == snapshot);
}

#[test]
fn a_linux_kernel_is_in_its_core_at_its_own_addresses() {
    if !kvm_or_skip() || !image_or_skip("linux-up") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let guest = TernBuilder::new().memory("96M").image("linux-up").start_booted();
    let path = folder.path().join("linux.core");
    let control = guest.control();
    let dumped = tern(&["dump", "--json", "--control", control.to_str().unwrap(), "--elf"], &path);
    assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
    assert_eq!(guest.qmp().state(), "running");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["linux.core"]);
    let file = folder.path().join("linux.snap");
    save(&guest, &file);
    let (code, tree) = inspect(&["--verify"], &file);
    assert_eq!((code, problems(&tree)), (Some(0), Vec::new()));
    let (path, report) = dump(&file);
    assert!(report["mappings"].as_u64().unwrap() > 0);
    let core = fs::read(&path).unwrap();
    // The kernel's text, where its ELF file has it.
    let text: u64 = 0xffff_ffff_8100_0000;
    let all = segments(&core);
    let holds = |segment: &&Segment| {
        segment.kind == PT_LOAD
            && segment.virtual_address <= text
            && segment.virtual_address.wrapping_add(segment.bytes as u64 - 1) >= text
    };
    let kernel = all.iter().rev().find(holds).expect("no segment has the kernel's text");
    let at = kernel.offset + (text - kernel.virtual_address) as usize;
    let said = gdb(&path, &["x/1gx 0xffffffff81000000", "print/x $rip"]);
    for wanted in [format!("{:#018x}", word(&core, at)), format!("= {:#x}", registers(&tree, 0).0)] {
        assert!(said.contains(&wanted), "no {wanted:?} in {said}");
    }
}

#[test]
fn neither_needs_kvm() {
    if !kvm_or_skip() || !root_or_skip() {
        return;
    }
    let (_folder, file) = pulse();
    let core = file.with_extension("core");
    let script = "mount --bind /dev/null /dev/kvm && ! \"$1\" run --image pulse --serial null && \
                  \"$1\" inspect --verify \"$2\" && \"$1\" dump --elf \"$3\" \"$2\"";
    let mut apart = Command::new("unshare");
    apart.args(["--mount", "sh", "-c", script, "sh"]).arg(tern_binary()).args([&file, &core]);
    let output = apart.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success() && core.exists(), "{}", String::from_utf8_lossy(&output.stderr));
}
