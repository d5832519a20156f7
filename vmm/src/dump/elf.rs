//! ELF headers of a core (System V gABI, chapters 4 and 5): 64 bits, little endian, x86-64.

const HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const SECTION_HEADER_BYTES: u64 = 64;
/// "There are more program headers than fit: see section header 0".
const PN_XNUM: u16 = 0xffff;
/// How a core begins: magic, 64 bits, little endian, version 1, System V; ET_CORE.
pub(super) const CORE: [u8; 18] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0];
const EM_X86_64: u16 = 62;
const READ_WRITE_EXECUTE: u32 = 7;

/// What a program header is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SegmentKind {
    /// Memory.
    Load = 1,
    /// Notes.
    Note = 4,
}

/// A program header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) kind: SegmentKind,
    /// In the file.
    pub(super) offset: u64,
    pub(super) virtual_address: u64,
    pub(super) physical_address: u64,
    pub(super) bytes: u64,
}

/// Bytes of all headers of a core with at most so many program headers.
pub(super) fn headers_bytes(segments: usize) -> u64 {
    HEADER_BYTES + SECTION_HEADER_BYTES + segments as u64 * PROGRAM_HEADER_BYTES
}

/// ELF header, section header 0, program headers.
pub(super) fn headers(segments: &[Segment]) -> Vec<u8> {
    let count = u16::try_from(segments.len()).ok().filter(|count| *count < PN_XNUM);
    let mut out = Vec::with_capacity(headers_bytes(segments.len()) as usize);
    out.extend_from_slice(&CORE);
    put16(&mut out, &[EM_X86_64]);
    put32(&mut out, &[1]);
    // Entry, program headers, section headers.
    put64(&mut out, &[0, HEADER_BYTES + SECTION_HEADER_BYTES, HEADER_BYTES]);
    put32(&mut out, &[0]);
    let (programs, sections) = (PROGRAM_HEADER_BYTES as u16, SECTION_HEADER_BYTES as u16);
    put16(&mut out, &[HEADER_BYTES as u16, programs, count.unwrap_or(PN_XNUM), sections, 1, 0]);
    // Section 0 has the number of program headers if the ELF header can't, in sh_info.
    let info = if count.is_some() { 0 } else { u32::try_from(segments.len()).unwrap_or(u32::MAX) };
    put32(&mut out, &[0, 0]);
    put64(&mut out, &[0, 0, 0, 0]);
    put32(&mut out, &[0, info]);
    put64(&mut out, &[0, 0]);
    for segment in segments {
        let Segment { kind, offset, virtual_address, physical_address, bytes } = *segment;
        put32(&mut out, &[kind as u32, if kind == SegmentKind::Load { READ_WRITE_EXECUTE } else { 0 }]);
        put64(&mut out, &[offset, virtual_address, physical_address, bytes, bytes, 0]);
    }
    out
}

/// A note: name and content padded to four bytes.
pub(super) fn note(name: &str, kind: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(12 + name.len() + 8 + content.len());
    put32(&mut out, &[name.len() as u32 + 1, content.len() as u32, kind]);
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

pub(super) fn put16(out: &mut Vec<u8>, words: &[u16]) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

pub(super) fn put32(out: &mut Vec<u8>, words: &[u32]) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

pub(super) fn put64(out: &mut Vec<u8>, words: &[u64]) {
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(kind: SegmentKind) -> Segment {
        Segment { kind, offset: 4096, virtual_address: 1, physical_address: 2, bytes: 8192 }
    }

    #[test]
    fn headers_have_the_length_that_was_foretold() {
        for count in [1, 3, 70_000] {
            let bytes = headers(&vec![segment(SegmentKind::Load); count]);
            assert_eq!(bytes.len() as u64, headers_bytes(count));
        }
    }

    #[test]
    fn more_segments_than_fit_are_counted_in_section_0() {
        let bytes = headers(&vec![segment(SegmentKind::Load); 70_000]);
        assert_eq!(bytes[56..58], PN_XNUM.to_le_bytes());
        assert_eq!(bytes[64 + 44..64 + 48], 70_000u32.to_le_bytes());
    }

    #[test]
    fn a_note_is_padded() {
        let bytes = note("CORE", 1, &[9]);
        assert_eq!(bytes.len(), 12 + 8 + 4);
        assert_eq!(bytes[..12], [5, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    }
}
