//! How tern's state is written and read: sections, records with tagged fields, and their codec.
//!
//! ```text
//! StateSet = Section*
//! Section  = name, instance, version, flags, length, crc32 | Record
//! Record   = Field*
//! Field    = tag (number, optional bit, wire type) | integer, or length and bytes, or length and Record
//! ```
//!
//! A reader skips what it doesn't know where the writer marked it optional (and counts it), and refuses it
//! by name otherwise. Everything here is a pure function of bytes: no I/O, no `unsafe`, and nothing that a
//! stream contains can panic or allocate more than a small multiple of its own length.
//!
//! What may change between two releases, and how, is in `COMPATIBILITY.md` beside this crate.

#![forbid(unsafe_code)]
#![warn(clippy::cast_possible_truncation)]

mod envelope;
mod error;
mod record;
mod section;
mod set;
mod survey;
mod value;
mod walk;
mod wire;

pub use envelope::{RawSection, SECTION_BODY_MAX_BYTES};
pub use error::{DecodeError, EncodeError, StateError};
pub use record::{FieldInfo, Record, decode_record, encode_record, subsection};
pub use section::{ChosenVersion, Follows, Rewrite, Section, SectionRange, SectionVersion, rewrite};
pub use set::{SECTIONS_MAX, StateSet};
pub use survey::{Sum, Survey, SurveyedSection, survey};
pub use value::{Kind, Place, Presence, Value};
pub use walk::{Item, Seen, Walked, walk};
pub use wire::{RawField, Skipped, WireType, Writer};

#[doc(hidden)]
pub use wire::Reader;

/// Runs the examples of the law.
#[cfg(doctest)]
#[doc = include_str!("../COMPATIBILITY.md")]
struct Compatibility;
