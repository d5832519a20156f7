//! What a command may fail with, and how it looks on the wire.

use std::error::Error;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Why a command failed, for programs. QMP knows classes only, and nearly all errors are `GenericError`; this
/// travels beside the class, in a member `code` that other clients ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The input is not a JSON object of the shape that QMP asks for.
    MalformedInput,
    /// The input is larger or deeper than the server reads.
    TooLarge,
    /// There is no such command.
    UnknownCommand,
    /// The command came before `qmp_capabilities`.
    NotNegotiated,
    /// An argument is missing, unknown, of a wrong type or out of range.
    InvalidArgument,
    /// The machine's state doesn't allow the command now.
    IllegalState,
    /// The command was tried and failed; `cause` says why.
    Failed,
}

/// A failed command: text for people, code for programs, and the cause if there is one below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandError {
    /// For programs.
    pub code: ErrorCode,
    /// What went wrong, with both values and the remedy.
    pub desc: String,
    /// The chain of causes, joined once.
    pub cause: Option<String>,
}

impl CommandError {
    /// An error that is its own cause.
    pub fn new(code: ErrorCode, desc: impl Into<String>) -> Self {
        Self { code, desc: desc.into(), cause: None }
    }

    /// [`ErrorCode::InvalidArgument`].
    pub fn invalid(desc: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, desc)
    }

    /// [`ErrorCode::IllegalState`].
    pub fn illegal(desc: impl Into<String>) -> Self {
        Self::new(ErrorCode::IllegalState, desc)
    }

    /// [`ErrorCode::Failed`], with `error` as the description and what lies below it as the cause.
    pub fn failed(error: &(dyn Error + 'static)) -> Self {
        Self { code: ErrorCode::Failed, desc: error.to_string(), cause: error.source().map(chain) }
    }

    /// As QMP has it: `{"class": .., "desc": ..}`, with our members beside them.
    pub fn to_json(&self) -> Value {
        let class = match self.code {
            ErrorCode::UnknownCommand | ErrorCode::NotNegotiated => "CommandNotFound",
            _ => "GenericError",
        };
        let mut object = json!({ "class": class, "desc": self.desc, "code": self.code });
        if let (Some(cause), Some(members)) = (&self.cause, object.as_object_mut()) {
            members.insert("cause".to_owned(), cause.as_str().into());
        }
        object
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.desc)?;
        match &self.cause {
            Some(cause) if !self.desc.contains(cause.as_str()) => write!(f, ": {cause}"),
            _ => Ok(()),
        }
    }
}

impl Error for CommandError {}

/// An error and all below it as one line; a text that an outer one has said already is not said again.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        below = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("can't listen on port 1: {source}")]
    struct Saying {
        source: std::io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("migration failed")]
    struct Outer {
        source: Saying,
    }

    #[test]
    fn causes_are_joined_once() {
        let error = Outer { source: Saying { source: std::io::Error::other("in use") } };
        assert_eq!(chain(&error), "migration failed: can't listen on port 1: in use");
        let failed = CommandError::failed(&error);
        assert_eq!(failed.to_string(), chain(&error));
        assert_eq!(failed.to_json()["cause"], "can't listen on port 1: in use");
    }

    #[test]
    fn the_wire_has_class_and_code() {
        let unknown = CommandError::new(ErrorCode::UnknownCommand, "no").to_json();
        assert_eq!(unknown, json!({"class": "CommandNotFound", "desc": "no", "code": "unknown-command"}));
        assert_eq!(CommandError::illegal("no").to_json()["class"], "GenericError");
    }
}
