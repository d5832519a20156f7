//! What is wrong with a parameter or capability.

use thiserror::Error;

/// A parameter or capability that can't be set so.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No such parameter.
    #[error("there is no migration parameter \"{name}\"; these exist: {known}")]
    UnknownParameter {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// No such capability.
    #[error("there is no migration capability \"{name}\"; these exist: {known}")]
    UnknownCapability {
        /// The name given.
        name: String,
        /// All names.
        known: String,
    },
    /// A value that isn't a whole number.
    #[error("migration parameter {name}: {found} is not a whole number of {unit}; legal: {legal}")]
    NotANumber {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: String,
        /// Its unit.
        unit: &'static str,
        /// Legal values.
        legal: String,
    },
    /// A number outside the range.
    #[error("migration parameter {name}: {found} {unit} is out of range; legal: {legal}")]
    OutOfRange {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: u64,
        /// Its unit.
        unit: &'static str,
        /// Legal values.
        legal: String,
    },
    /// A parameter of the source, given to a destination.
    #[error("migration parameter {name} is the source's: give it to `migrate` there")]
    SourceOnly {
        /// Parameter.
        name: &'static str,
    },
    /// A feature that can't be used there, or not together with what else was asked for.
    #[error("{feature}: {reason}, and this guest goes to {uri}: {remedy}")]
    NotLegal {
        /// Parameter with its choice, or capability.
        feature: String,
        /// Where the guest is to go.
        uri: String,
        /// What stands against it.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// A parameter that can't change any more.
    #[error("migration parameter {name} is fixed once the migration has begun: give it to `migrate`")]
    Fixed {
        /// Parameter.
        name: &'static str,
    },
    /// A value that is neither true nor false.
    #[error("migration parameter {name}: {found} is neither true nor false")]
    NotASwitch {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: String,
    },
    /// A word that isn't one of the choices.
    #[error("migration parameter {name}: there is no \"{found}\"; legal: {legal}")]
    NotAChoice {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: String,
        /// The choices.
        legal: String,
    },
    /// Something else than a text, or one that is too long.
    #[error("migration parameter {name}: {found} is not a text of at most 4096 bytes")]
    NotAText {
        /// Parameter.
        name: &'static str,
        /// The value given.
        found: String,
    },
    /// A capability list of another shape.
    #[error("capabilities: {found} is not a list of {{\"capability\": NAME, \"state\": true or false}}")]
    CapabilityShape {
        /// What was given.
        found: String,
    },
}
