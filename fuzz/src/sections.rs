//! The sections of a state as a list that can be changed and written again, its checksums made anew. Written
//! from the layout in `migration/schema/src/section.rs`, without that code: it refuses what is wrong here.

use crate::fields;
use crate::random::Random;

/// One section as it stands in the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name's bytes.
    pub name: Vec<u8>,
    /// Which of several equal parts.
    pub instance: u32,
    /// Version of its record.
    pub version: u16,
    /// Bit 0: optional.
    pub flags: u16,
    /// Its record.
    pub body: Vec<u8>,
    /// Length that is claimed in place of the body's own.
    claimed: Option<u32>,
}

impl Section {
    /// A mandatory section.
    pub fn new(name: &str, instance: u32, version: u16, body: Vec<u8>) -> Self {
        Self { name: name.as_bytes().to_vec(), instance, version, flags: 0, body, claimed: None }
    }
}

/// The sections of a state. What is no section is made into one: a name and a body end with the bytes.
pub fn parse(mut bytes: &[u8]) -> Vec<Section> {
    let mut sections = Vec::new();
    while let Some((section, rest)) = parse_one(bytes) {
        sections.push(section);
        bytes = rest;
    }
    sections
}

fn parse_one(bytes: &[u8]) -> Option<(Section, &[u8])> {
    let (name_length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at(rest.len().min(usize::from(*name_length)));
    let (instance, rest) = rest.split_first_chunk()?;
    let (version, rest) = rest.split_first_chunk()?;
    let (flags, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (_checksum, rest) = rest.split_first_chunk::<4>()?;
    let (body, rest) = rest.split_at(rest.len().min(u32::from_le_bytes(*length) as usize));
    let section = Section {
        name: name.to_vec(),
        instance: u32::from_le_bytes(*instance),
        version: u16::from_le_bytes(*version),
        flags: u16::from_le_bytes(*flags),
        body: body.to_vec(),
        claimed: None,
    };
    Some((section, rest))
}

/// The state's bytes, each section with a right checksum.
pub fn write(sections: &[Section]) -> Vec<u8> {
    let mut out = Vec::new();
    for Section { name, instance, version, flags, body, claimed } in sections {
        let start = out.len();
        out.push(name.len() as u8);
        out.extend_from_slice(name);
        out.extend_from_slice(&instance.to_le_bytes());
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&claimed.unwrap_or(body.len() as u32).to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(out.get(start..).unwrap_or_default());
        crc.update(body);
        out.extend_from_slice(&crc.finalize().to_le_bytes());
        out.extend_from_slice(body);
    }
    out
}

/// Changes one thing somewhere in a state; says what.
pub fn mutate(sections: &mut Vec<Section>, random: &mut Random) -> String {
    if random.one_in(8) {
        return format!("a section {}", random.rearrange(sections));
    }
    let at = random.below(sections.len());
    let Some(section) = sections.get_mut(at) else { return "nothing".to_owned() };
    let name = format!("section {}/{}", String::from_utf8_lossy(&section.name), section.instance);
    let what = match random.below(16) {
        0 => {
            section.instance = random.other_than(section.instance.into()) as u32;
            format!("became instance {}", section.instance)
        }
        1 => {
            section.version = random.other_than(section.version.into()) as u16;
            format!("became version {}", section.version)
        }
        2 => {
            section.flags = random.other_than(section.flags.into()) as u16;
            format!("has flags {:#x}", section.flags)
        }
        3 => {
            section.claimed = Some(random.other_than(section.body.len() as u64) as u32);
            format!("claims {:?} bytes", section.claimed)
        }
        4 => {
            random.flip(&mut section.name);
            "has another name".to_owned()
        }
        5 => {
            random.flip(&mut section.body);
            "has a flipped bit".to_owned()
        }
        6 => {
            section.body.truncate(random.below(section.body.len()));
            format!("is cut to {} bytes", section.body.len())
        }
        _ => mutate_record(&mut section.body, random),
    };
    format!("{name} {what}")
}

/// Changes one field of a record; says what.
pub fn mutate_record(body: &mut Vec<u8>, random: &mut Random) -> String {
    let Some(mut record) = fields::parse(body) else { return "is no record".to_owned() };
    let what = fields::mutate(&mut record, random);
    *body = fields::write(&record);
    what
}
