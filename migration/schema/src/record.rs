//! Records: plain structs whose fields have numbers.

use crate::DecodeError;
use crate::value::{Kind, Presence};
use crate::wire::{Skipped, Writer};

/// One field of a record, for a dump of the schema.
#[derive(Debug, Clone, Copy)]
pub struct FieldInfo {
    /// Number on the wire; never used again for another field.
    pub number: u32,
    /// Name, with its unit as last word where it has one.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// How often it may occur.
    pub presence: Presence,
    /// May a reader that doesn't know it pass over it?
    pub skippable: bool,
    /// What it means: its comment in the source, a line each.
    pub doc: &'static str,
}

/// Last words of a field's name, and the unit that they stand for. The longer ones first.
const UNITS: [(&str, &str); 11] = [
    ("_bytes_per_s", "bytes/s"),
    ("_pages_per_s", "pages/s"),
    ("_bytes", "bytes"),
    ("_pages", "pages"),
    ("_sectors", "sectors"),
    ("_khz", "kHz"),
    ("_hz", "Hz"),
    ("_ns", "ns"),
    ("_us", "us"),
    ("_ms", "ms"),
    ("_s", "s"),
];

impl FieldInfo {
    /// The unit that its name ends in, if it does.
    pub fn unit(&self) -> Option<&'static str> {
        UNITS.iter().find(|(ending, _)| self.name.ends_with(ending)).map(|(_, unit)| *unit)
    }

    /// Is it a part of the state that travels only where it differs from its default?
    pub fn is_subsection(&self) -> bool {
        self.presence == Presence::Optional && matches!(self.kind, Kind::Record(..))
    }
}

/// A struct made by [`record!`](crate::record).
pub trait Record: Sized {
    /// The struct's name.
    const RECORD: &'static str;
    /// Its fields in order of declaration.
    fn fields() -> &'static [FieldInfo];
    /// Writes all fields.
    fn write(&self, out: &mut Writer<'_>);
    /// Reads the record that is exactly `bytes`.
    fn read(bytes: &[u8], skipped: &mut Skipped) -> Result<Self, DecodeError>;
}

/// The bytes of a record, without a section around it.
pub fn encode_record<R: Record>(record: &R) -> Vec<u8> {
    let mut out = Vec::new();
    record.write(&mut Writer::new(&mut out));
    out
}

/// Reads a record from exactly `bytes`; unknown optional fields are passed over.
pub fn decode_record<R: Record>(bytes: &[u8]) -> Result<R, DecodeError> {
    R::read(bytes, &mut Skipped::default())
}

/// A part of the state that travels only where it differs from its default; `unwrap_or_default` is the way back.
pub fn subsection<R: Record + Default + PartialEq>(state: R) -> Option<R> {
    (state != R::default()).then_some(state)
}

/// Declares a saved type: `[NUMBER] name: Type` per field, `[NUMBER optional]` where a reader that doesn't
/// know the field may pass over it. `= "NAME" VERSION` behind the struct's name makes it a
/// [`Section`](crate::Section), `= "NAME" optional VERSION` one that a machine without that part passes over,
/// and `= "NAME" VERSION after OLDER` the next version of `OLDER` (see [`Follows`](crate::Follows)).
///
/// A macro, because one list must give the struct, its writer, its reader and its description: lists kept
/// in step by hand are how fields get forgotten.
///
/// ```
/// tern_schema::record! {
///     /// A timer.
///     pub struct TimerV1 = "timer" 1 {
///         /// Reload value.
///         [1] reload_ns: u64,
///         /// Armed?
///         [2] armed: bool,
///         /// What the guest calls it.
///         [3 optional] label: Option<String>,
///     }
/// }
/// let saved = TimerV1 { reload_ns: 7, armed: true, label: None };
/// let bytes = tern_schema::encode_record(&saved);
/// assert_eq!(tern_schema::decode_record::<TimerV1>(&bytes), Ok(saved));
/// ```
#[macro_export]
macro_rules! record {
    ($(#[$meta:meta])* pub struct $record:ident = $section:literal $($skip:ident)? $version:literal {
        $($body:tt)*
    }) => {
        $crate::record! { $(#[$meta])* pub struct $record { $($body)* } }
        impl $crate::Section for $record {
            const NAME: &'static str = $section;
            const VERSION: u16 = $version;
            const OPTIONAL: bool = $crate::is_optional!($($skip)?);
        }
    };
    ($(#[$meta:meta])* pub struct $record:ident = $section:literal $($skip:ident)? $version:literal
        after $before:ident { $($body:tt)* }
    ) => {
        $crate::record! { $(#[$meta])* pub struct $record { $($body)* } }
        impl $crate::Section for $record {
            const NAME: &'static str = $section;
            const VERSION: u16 = $version;
            const OLDEST: u16 = <$before as $crate::Section>::OLDEST;
            const OPTIONAL: bool = $crate::is_optional!($($skip)?);

            fn write_as(
                &self,
                version: u16,
                out: &mut $crate::Writer<'_>,
            ) -> ::core::result::Result<(), $crate::EncodeError> {
                if version != Self::VERSION {
                    let before: $before = $crate::Follows::downgrade(self)?;
                    return $crate::Section::write_as(&before, version, out);
                }
                $crate::Record::write(self, out);
                Ok(())
            }

            fn read_as(
                version: u16,
                bytes: &[u8],
                skipped: &mut $crate::Skipped,
            ) -> ::core::result::Result<Self, $crate::DecodeError> {
                if version != Self::VERSION {
                    let before = <$before as $crate::Section>::read_as(version, bytes, skipped)?;
                    return Ok(<Self as $crate::Follows>::upgrade(before));
                }
                $crate::Record::read(bytes, skipped)
            }

            fn versions(out: &mut ::std::vec::Vec<$crate::SectionVersion>) {
                <$before as $crate::Section>::versions(out);
                out.push($crate::SectionVersion::of::<Self>());
            }
        }
        const _: () = assert!(
            <$before as $crate::Section>::VERSION + 1 == $version,
            "a version follows the one just before it"
        );
    };
    ($(#[$meta:meta])* pub struct $record:ident {
        $($(#[doc = $doc:literal])* [$number:literal $($skip:ident)?] $name:ident : $ty:ty),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $record { $($(#[doc = $doc])* pub $name: $ty),* }

        impl $crate::Record for $record {
            const RECORD: &'static str = stringify!($record);

            fn fields() -> &'static [$crate::FieldInfo] {
                const FIELDS: &[$crate::FieldInfo] = &[$($crate::FieldInfo {
                    number: $number,
                    name: stringify!($name),
                    kind: <$ty as $crate::Value>::KIND,
                    presence: <$ty as $crate::Value>::PRESENCE,
                    skippable: $crate::is_optional!($($skip)?),
                    doc: concat!($($doc, "\n"),*),
                }),*];
                FIELDS
            }

            fn write(&self, out: &mut $crate::Writer<'_>) {
                let Self { $($name),* } = self;
                $($crate::Value::put($name, $number, $crate::is_optional!($($skip)?), out);)*
                let _ = out;
            }

            fn read(
                bytes: &[u8],
                skipped: &mut $crate::Skipped,
            ) -> ::core::result::Result<Self, $crate::DecodeError> {
                $(let mut $name: Option<$ty> = None;)*
                let mut reader = $crate::Reader::new(bytes);
                while let Some(field) = reader.field()? {
                    match field.number {
                        $($number => $crate::Value::merge(
                            &mut $name,
                            &field,
                            $crate::Place { record: Self::RECORD, field: stringify!($name) },
                            skipped,
                        )?,)*
                        _ if field.optional => skipped.fields += 1,
                        number => return Err($crate::DecodeError::UnknownMandatory {
                            record: Self::RECORD,
                            number,
                        }),
                    }
                }
                Ok(Self {
                    $($name: match $name {
                        Some(value) => value,
                        None => $crate::Value::absent(
                            $crate::Place { record: Self::RECORD, field: stringify!($name) },
                        )?,
                    }),*
                })
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! is_optional {
    () => {
        false
    };
    (optional) => {
        true
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    record! {
        /// Inner.
        pub struct InnerV1 {
            /// A word.
            [1] word: u64,
        }
    }
    record! {
        /// Outer.
        pub struct OuterV1 = "outer" 1 {
            /// A.
            [1] small: u8,
            /// B.
            [2] signed: i64,
            /// C.
            [3] bytes: Vec<u8>,
            /// D.
            [4] list: Vec<InnerV1>,
            /// E.
            [5] subsection: Option<InnerV1>,
            /// F.
            [6] fixed: [u8; 4],
            /// G.
            [7] words: Vec<u64>,
            /// H.
            [8] text: String,
        }
    }
    record! {
        /// What a newer tern would write.
        pub struct InnerV1Newer {
            /// A word.
            [1] word: u64,
            /// May be passed over.
            [2 optional] hint: Option<u64>,
            /// May not.
            [3] needed: Option<u64>,
        }
    }

    record! {
        /// A part with a default that is not zero.
        pub struct DefaultingV1 {
            /// A word.
            [1] part: u64,
        }
    }
    record! {
        /// What has it.
        pub struct HolderV1 {
            /// A subsection.
            [1] sub: Option<DefaultingV1>,
        }
    }
    impl Default for DefaultingV1 {
        fn default() -> Self {
            Self { part: 7 }
        }
    }

    fn outer() -> impl Strategy<Value = OuterV1> {
        let words = prop::collection::vec(any::<u64>(), 0..5);
        let inner = any::<u64>().prop_map(|word| InnerV1 { word });
        let list = prop::collection::vec(inner.clone(), 0..4);
        let sub = prop::option::of(inner);
        (any::<u8>(), any::<i64>(), any::<Vec<u8>>(), list, sub, any::<[u8; 4]>(), words, any::<String>())
            .prop_map(|(small, signed, bytes, list, subsection, fixed, words, text)| OuterV1 {
                small,
                signed,
                bytes,
                list,
                subsection,
                fixed,
                words,
                text,
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(saved in outer()) {
            prop_assert_eq!(decode_record::<OuterV1>(&encode_record(&saved)), Ok(saved));
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes: Vec<u8>) {
            let _ = decode_record::<OuterV1>(&bytes);
        }

        #[test]
        fn a_cut_record_is_an_error(saved in outer(), cut in 1usize..8) {
            let bytes = encode_record(&saved);
            let cut = &bytes[..bytes.len().saturating_sub(cut)];
            prop_assert!(decode_record::<OuterV1>(cut).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_subsection_is_absent_at_its_default_and_comes_back(word: u64) {
            #[derive(Debug, PartialEq)]
            struct Device { part: u64 }
            let default = DefaultingV1::default();
            for device in [Device { part: word }, Device { part: default.part }] {
                let saved = HolderV1 { sub: subsection(DefaultingV1 { part: device.part }) };
                prop_assert_eq!(saved.sub.is_some(), device.part != default.part);
                let bytes = encode_record(&saved);
                prop_assert_eq!(bytes.is_empty(), saved.sub.is_none());
                let HolderV1 { sub } = decode_record(&bytes).unwrap();
                prop_assert_eq!(Device { part: sub.unwrap_or_default().part }, device);
            }
        }
    }

    #[test]
    fn a_field_describes_itself() {
        let fields = InnerV1Newer::fields();
        let hint = &fields[1];
        assert_eq!((hint.name, hint.doc.trim(), hint.skippable), ("hint", "May be passed over.", true));
        assert_eq!(FieldInfo { name: "stop_ms", ..*hint }.unit(), Some("ms"));
        assert_eq!(FieldInfo { name: "link_bytes_per_s", ..*hint }.unit(), Some("bytes/s"));
        assert_eq!(FieldInfo { name: "regs", ..*hint }.unit(), None);
        let subsections: Vec<_> = OuterV1::fields().iter().filter(|field| field.is_subsection()).collect();
        assert_eq!(subsections.iter().map(|field| field.name).collect::<Vec<_>>(), ["subsection"]);
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = decode_record::<InnerV1>(&[]).unwrap_err();
        assert_eq!(error.to_string(), "InnerV1.word is missing");
    }

    #[test]
    fn a_field_that_occurs_twice_is_refused() {
        let bytes = encode_record(&InnerV1 { word: 1 }).repeat(2);
        assert!(matches!(
            decode_record::<InnerV1>(&bytes),
            Err(DecodeError::Duplicate { field: "word", .. })
        ));
    }

    #[test]
    fn unknown_optional_fields_are_counted_and_mandatory_ones_refused() {
        let newer = InnerV1Newer { word: 5, hint: Some(9), needed: None };
        let mut skipped = Skipped::default();
        assert_eq!(InnerV1::read(&encode_record(&newer), &mut skipped), Ok(InnerV1 { word: 5 }));
        assert_eq!(skipped.fields, 1);
        let newer = InnerV1Newer { needed: Some(1), ..newer };
        let error = decode_record::<InnerV1>(&encode_record(&newer)).unwrap_err();
        assert_eq!(error, DecodeError::UnknownMandatory { record: "InnerV1", number: 3 });
    }
}
