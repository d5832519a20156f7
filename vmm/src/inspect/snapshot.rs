//! A snapshot as a tree: head, description, where memory is, index, state, the tables of pages; and, if wanted, every page
//! compared with its hash.

use std::error::Error;
use std::path::Path;

use tern_migration::PAGE_BYTES;
use tern_migration::snapshot::{Description, Head, Index, Layout, Outline, SnapshotError, SnapshotFile};
use tern_schema::{Record, encode_record};

use super::{InspectError, Node, Wanted, state};
use crate::control::chain;

/// Pages that are read at once: two blocks of a page table.
const VERIFY_PAGES: u64 = 680;
/// Pages that are named when they are wrong; of the others the number is told.
const NAMED_MAX: usize = 16;

pub(super) fn tree(
    path: &Path,
    wanted: &Wanted,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Node, InspectError> {
    let outline = Outline::of_file(path)?;
    let mut node = Node::with("snapshot", outline.found_bytes).counting("bytes");
    node.about = outline.head.as_ref().ok().map(|head| format!("format {}", head.version));
    let Outline { found_bytes: _, head, length, description, layout, index, state } = outline;
    node.problem = length.and_then(Result::err).map(|error| text(&error));
    node.children.push(part("head", head, head_node));
    let described = |found: Description| {
        let mut node = record_node("description", &found);
        // Pages of it would hide the one section that is wanted.
        if wanted.section.is_some() && node.is_sound() {
            node.children.clear();
        }
        node
    };
    node.children.extend(description.map(|found| part("description", found, described)));
    node.children.extend(layout.map(|found| part("memory", found, layout_node)));
    node.children
        .extend(index.map(|found| part("index", found, |found: Index| record_node("index", &found))));
    node.children
        .extend(state.map(|found| part("state", found, |bytes: Vec<u8>| state::sections(&bytes, wanted))));
    match SnapshotFile::open(path) {
        Ok(file) if !wanted.verify => node.children.push(tables(&file)),
        // What is wrong has been said above, part by part.
        Err(_) if !wanted.verify => {}
        found => node.children.push(part("pages", found, |file| verify(&file, progress))),
    }
    Ok(node)
}

fn text(error: &(dyn Error + 'static)) -> String {
    chain(error)
}

fn part<T>(name: &str, found: Result<T, SnapshotError>, show: impl FnOnce(T) -> Node) -> Node {
    match found {
        Ok(found) => show(found),
        Err(error) => Node::broken(name, text(&error)),
    }
}

fn record_node<R: Record>(name: &str, found: &R) -> Node {
    state::record(name, R::RECORD, R::fields(), &encode_record(found))
}

fn head_node(head: Head) -> Node {
    let Head { version, description, index, file_bytes } = head;
    let mut node = Node::new("head");
    node.children = vec![
        Node::with("format_version", version),
        Node::with("description_bytes", description.bytes).counting("bytes"),
        Node::with("file_bytes", file_bytes).counting("bytes"),
        Node::with("finished", index.is_some()),
    ];
    node
}

fn layout_node(layout: Layout) -> Node {
    let mut node = Node::new("memory");
    for (index, place) in layout.regions.iter().enumerate() {
        let mut region = Node::new(format!("region[{index}]"));
        region.children = vec![
            Node::with("gpa", place.gpa),
            Node::with("length_bytes", place.pages.saturating_mul(PAGE_BYTES)).counting("bytes"),
            Node::with("data_offset", place.data_offset),
            Node::with("table_offset", place.table_offset),
        ];
        node.children.push(region);
    }
    node.children.push(Node::with("state_offset", layout.state_offset));
    node
}

/// The tables' checksums, and the sum of all hashes in them. Reads no page.
fn tables(file: &SnapshotFile) -> Node {
    let mut node = Node::with("pages", pages(file)).counting("pages");
    node.children.push(Node::with("compared", "tables only, pages with --verify"));
    node.problem = file.verify_tables().err().map(|error| text(&error));
    node
}

fn pages(file: &SnapshotFile) -> u64 {
    file.layout().regions.iter().map(|place| place.pages).fold(0, u64::saturating_add)
}

/// Every page with its hash, and the sum of all hashes.
fn verify(file: &SnapshotFile, progress: &mut dyn FnMut(u64, u64)) -> Node {
    let all = pages(file);
    let mut node = Node::with("pages", all).counting("pages");
    node.problem = file.verify_tables().err().map(|error| text(&error));
    let mut wrong = 0u64;
    let mut done = 0;
    for (region, place) in file.layout().regions.iter().enumerate() {
        let mut buffer = vec![0; (VERIFY_PAGES * PAGE_BYTES) as usize];
        let mut start = 0;
        while start < place.pages {
            let end = place.pages.min(start + VERIFY_PAGES);
            let length = ((end - start) * PAGE_BYTES) as usize;
            let out = buffer.get_mut(..length).unwrap_or_default();
            if file.read_pages(region, start..end, out).is_err() {
                wrong += one_by_one(file, region, start..end, &mut node);
            }
            done += end - start;
            progress(done, all);
            start = end;
        }
    }
    node.children.push(Node::with("wrong_pages", wrong).counting("pages"));
    if wrong > 0 && node.problem.is_none() {
        node.problem = Some(format!("not as they were saved: {wrong} of {all}"));
    }
    node
}

/// Names the pages that are wrong.
fn one_by_one(file: &SnapshotFile, region: usize, pages: std::ops::Range<u64>, node: &mut Node) -> u64 {
    let mut page_bytes = [0; PAGE_BYTES as usize];
    let mut wrong = 0;
    for page in pages {
        if let Err(error) = file.read_page(region, page, &mut page_bytes) {
            wrong += 1;
            if node.children.len() < NAMED_MAX {
                node.children.push(Node::broken(format!("region[{region}] page {page}"), text(&error)));
            }
        }
    }
    wrong
}
