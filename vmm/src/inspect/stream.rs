//! A recorded stream of a migration as a tree.

use std::io::Read;

use tern_migration::stream::{Content, Entry, PageCount, Stream, survey};

use super::{Node, Wanted, state};

/// All frames of one direction of a connection.
pub(super) fn tree(source: impl Read, wanted: &Wanted) -> Node {
    let Stream { entries, damage, bytes } = survey(source);
    let mut node = Node::with("stream", bytes).counting("bytes");
    node.about = Some("one direction of a migration's connection".to_owned());
    node.problem = damage.map(|(at, error)| format!("at byte {at}: {error}"));
    node.children = entries.into_iter().map(|entry| frame(entry, wanted)).collect();
    node
}

fn frame(entry: Entry, wanted: &Wanted) -> Node {
    let Entry { offset, name, round, content, problem } = entry;
    let title = format!("{name} round {round}");
    let mut node = match content {
        Content::Message { record, fields, bytes } => state::record(title, record, fields, &bytes),
        Content::State { running, bytes } => {
            let mut node = state::sections(&bytes, wanted);
            node.about = Some(if running { "the guest was running" } else { "the guest was paused" }.into());
            node
        }
        Content::Pages(PageCount { frames, zero, with_data, data_bytes }) => {
            let mut node = Node::new(title);
            node.children = vec![
                Node::with("frames", frames),
                Node::with("zero_pages", zero).counting("pages"),
                Node::with("pages_with_data", with_data).counting("pages"),
                Node::with("data_bytes", data_bytes).counting("bytes"),
            ];
            node
        }
        Content::Passed { bytes } => Node::with(title, bytes).counting("bytes"),
    };
    node.problem = problem.map(|text| format!("at byte {offset}: {text}")).or(node.problem);
    node
}
