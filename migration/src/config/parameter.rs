//! One row of the table of parameters: what a value may be, and how it is read and shown.

use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::Value;

use super::table::PARAMETERS;
use super::{ConfigError, Parameters};

/// One row of the table of parameters.
#[derive(Debug)]
pub struct Parameter {
    /// Name in QMP and on the command line.
    pub name: &'static str,
    /// What a value is.
    pub kind: Kind,
    /// Whose it is.
    pub scope: Scope,
    /// Fixed once the migration has begun.
    pub fixed: bool,
    /// What it does, in one sentence.
    pub meaning: &'static str,
    pub(super) place: Place,
}

/// What a parameter's value is.
#[derive(Debug)]
pub enum Kind {
    /// A whole number.
    Number {
        /// Its unit.
        unit: &'static str,
        /// Legal values.
        range: RangeInclusive<u64>,
        /// What 0 means where it is legal beside `range`.
        zero: Option<&'static str>,
        /// Unless told otherwise.
        default: u64,
    },
    /// True or false in QMP, on or off on the command line.
    Switch {
        /// Unless told otherwise.
        default: bool,
    },
    /// One of a few words; the first is the default.
    Choice {
        /// The words.
        names: &'static [&'static str],
    },
    /// Anything, such as a path; not set unless told otherwise. The empty text takes it away.
    Text {
        /// What stands for it in `--help`, such as `DIR`.
        form: &'static str,
        /// What its absence means.
        absent: &'static str,
    },
}

/// Who has a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The source, whose word counts for both.
    Source,
    /// The source, when it saves into a file.
    Files,
    /// Each side has its own.
    Each,
    /// The destination.
    Destination,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// Of a number.
    Number(u64),
    /// Of a switch.
    Switch(bool),
    /// Of a choice.
    Choice(&'static str),
    /// Of a text.
    Text(Option<Arc<str>>),
}

/// Where a value is kept.
#[derive(Debug)]
pub(super) enum Place {
    Number(fn(&mut Parameters) -> &mut u64),
    Switch(fn(&mut Parameters) -> &mut bool),
    Choice(fn(&mut Parameters) -> &mut &'static str),
    Text(fn(&mut Parameters) -> &mut Option<Arc<str>>),
}

/// Longest text, in bytes: a path.
const TEXT_MAX_BYTES: usize = 4096;

impl Scope {
    /// May a destination be told it?
    pub fn is_destinations(self) -> bool {
        matches!(self, Self::Each | Self::Destination)
    }

    /// May a source be told it?
    pub fn is_sources(self) -> bool {
        self != Self::Destination
    }
}

impl Parameter {
    /// Is it about who may read and change the connection?
    pub fn secures(&self) -> bool {
        self.name == "insecure" || self.name.starts_with("tls")
    }

    /// The row of this name.
    pub fn named(name: &str) -> Result<&'static Self, ConfigError> {
        PARAMETERS.iter().find(|row| row.name == name).ok_or_else(|| ConfigError::UnknownParameter {
            name: name.to_owned(),
            known: PARAMETERS.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
        })
    }

    /// The value that it has unless told otherwise.
    pub fn default(&self) -> Setting {
        match &self.kind {
            Kind::Number { default, .. } => Setting::Number(*default),
            Kind::Switch { default } => Setting::Switch(*default),
            Kind::Choice { names } => Setting::Choice(names.first().copied().unwrap_or_default()),
            Kind::Text { .. } => Setting::Text(None),
        }
    }

    /// Its unit, or what its value is.
    pub fn unit(&self) -> &'static str {
        match &self.kind {
            Kind::Number { unit, .. } => unit,
            Kind::Switch { .. } => "switch",
            Kind::Choice { .. } => "choice",
            Kind::Text { .. } => "text",
        }
    }

    /// The legal values, for people: `0 (unlimited) or 262144 to 1125899906842624`.
    pub fn legal(&self) -> String {
        match &self.kind {
            Kind::Number { range, zero, .. } => {
                let range = format!("{} to {}", range.start(), range.end());
                zero.map_or(range.clone(), |zero| format!("0 ({zero}) or {range}"))
            }
            Kind::Switch { .. } => "on or off".to_owned(),
            Kind::Choice { names } => names.join(", "),
            Kind::Text { form, .. } => (*form).to_owned(),
        }
    }

    /// A value, for people.
    pub fn shown(&self, value: &Setting) -> String {
        match (value, &self.kind) {
            (Setting::Number(number), _) => number.to_string(),
            (Setting::Switch(on), _) => if *on { "on" } else { "off" }.to_owned(),
            (Setting::Choice(name), _) => (*name).to_owned(),
            (Setting::Text(Some(text)), _) => text.to_string(),
            (Setting::Text(None), Kind::Text { absent, .. }) => (*absent).to_owned(),
            (Setting::Text(None), _) => String::new(),
        }
    }

    /// A value, for programs.
    pub fn json(&self, value: &Setting) -> Value {
        match value {
            Setting::Number(number) => (*number).into(),
            Setting::Switch(on) => (*on).into(),
            Setting::Choice(name) => (*name).into(),
            Setting::Text(text) => text.as_deref().unwrap_or_default().into(),
        }
    }

    /// The value that a value of QMP means.
    pub fn read(&self, value: &Value) -> Result<Setting, ConfigError> {
        let (name, found) = (self.name, || value.to_string());
        let not_a_text = || ConfigError::NotAText { name, found: found() };
        let setting = match &self.kind {
            Kind::Number { unit, .. } => {
                let error = || ConfigError::NotANumber { name, found: found(), unit, legal: self.legal() };
                Setting::Number(value.as_u64().ok_or_else(error)?)
            }
            Kind::Switch { .. } => Setting::Switch(
                value.as_bool().ok_or_else(|| ConfigError::NotASwitch { name, found: found() })?,
            ),
            Kind::Choice { .. } => return self.chosen(value.as_str().ok_or_else(not_a_text)?),
            Kind::Text { .. } => {
                let text = value.as_str().ok_or_else(not_a_text)?;
                Setting::Text((!text.is_empty()).then(|| text.into()))
            }
        };
        self.checked(setting)
    }

    /// The choice of this name.
    pub fn chosen(&self, found: &str) -> Result<Setting, ConfigError> {
        let names = if let Kind::Choice { names } = &self.kind { names } else { &[][..] };
        let name = names.iter().find(|name| **name == found).copied();
        name.map(Setting::Choice).ok_or_else(|| ConfigError::NotAChoice {
            name: self.name,
            found: found.to_owned(),
            legal: self.legal(),
        })
    }

    /// The same value if it is legal.
    pub(super) fn checked(&self, value: Setting) -> Result<Setting, ConfigError> {
        match (&value, &self.kind) {
            (Setting::Number(found), Kind::Number { unit, range, zero, .. })
                if !range.contains(found) && (*found != 0 || zero.is_none()) =>
            {
                Err(ConfigError::OutOfRange { name: self.name, found: *found, unit, legal: self.legal() })
            }
            (Setting::Text(Some(text)), _) if text.len() > TEXT_MAX_BYTES || text.contains('\0') => {
                Err(ConfigError::NotAText {
                    name: self.name,
                    found: format!("a text of {} bytes", text.len()),
                })
            }
            _ => Ok(value),
        }
    }

    /// Its value in `all`.
    pub fn get(&self, all: &Parameters) -> Setting {
        // The places are written for setting; a copy costs no allocation.
        let mut all = all.clone();
        match self.place {
            Place::Number(place) => Setting::Number(*place(&mut all)),
            Place::Switch(place) => Setting::Switch(*place(&mut all)),
            Place::Choice(place) => Setting::Choice(place(&mut all)),
            Place::Text(place) => Setting::Text(place(&mut all).clone()),
        }
    }

    /// Puts a legal value of this row's kind into its place.
    pub(super) fn put(&self, all: &mut Parameters, value: Setting) {
        match (&self.place, value) {
            (Place::Number(place), Setting::Number(value)) => *place(all) = value,
            (Place::Switch(place), Setting::Switch(value)) => *place(all) = value,
            (Place::Choice(place), Setting::Choice(value)) => *place(all) = value,
            (Place::Text(place), Setting::Text(value)) => *place(all) = value,
            // Rows are made with their kind's place, and values by their row: a test tries all.
            _ => {}
        }
    }
}
