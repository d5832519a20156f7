//! The arguments of one command: their types, checked against the table, and what the handlers read.

use serde_json::{Map, Value, json};

use super::CommandError;

/// Type of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A whole number, not negative.
    Number,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// An object of parameters by name.
    Parameters,
    /// A list of capabilities: names, or QMP's `{"capability": name, "state": bool}`.
    Capabilities,
    /// A list, for QMP's own negotiation: only an empty one is accepted.
    Empty,
}

impl Kind {
    /// For people and for `query-commands`.
    pub fn name(self) -> String {
        match self {
            Self::Text => "string".to_owned(),
            Self::Number => "number".to_owned(),
            Self::Choice(choices) => choices.join("|"),
            Self::Parameters => "object".to_owned(),
            Self::Capabilities => "list of names".to_owned(),
            Self::Empty => "empty list".to_owned(),
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::Number => value.is_u64(),
            Self::Choice(choices) => value.as_str().is_some_and(|text| choices.contains(&text)),
            Self::Parameters => value.is_object(),
            Self::Capabilities => value.as_array().is_some_and(|list| list.iter().all(is_capability)),
            Self::Empty => value.as_array().is_some_and(Vec::is_empty),
        }
    }
}

fn is_capability(value: &Value) -> bool {
    value.is_string() || (value["capability"].is_string() && value["state"].is_boolean())
}

/// One argument of a command.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// May it be left out?
    pub required: bool,
    /// What it means.
    pub help: &'static str,
}

/// The arguments of a call: all known, of the right types, and the required ones are there.
#[derive(Debug, Default)]
pub struct Arguments {
    values: Map<String, Value>,
}

impl Arguments {
    /// Checks `values` against what the command takes.
    ///
    /// # Errors
    /// The first argument that is unknown, missing or of a wrong type.
    pub fn check(
        command: &str,
        legal: &[Argument],
        values: Map<String, Value>,
    ) -> Result<Self, CommandError> {
        for (name, value) in &values {
            let Some(argument) = legal.iter().find(|argument| argument.name == name) else {
                let known: Vec<&str> = legal.iter().map(|argument| argument.name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(CommandError::invalid(format!(
                    "`{command}` has no argument `{}`; it takes: {known}",
                    shortened(name)
                )));
            };
            if !argument.kind.fits(value) {
                let (found, kind) = (shortened(&value.to_string()), argument.kind.name());
                return Err(CommandError::invalid(format!(
                    "`{command}`: `{name}` is {found}, and must be: {kind}"
                )));
            }
        }
        let missing = legal.iter().find(|argument| argument.required && !values.contains_key(argument.name));
        match missing {
            Some(argument) => {
                let (name, kind) = (argument.name, argument.kind.name());
                Err(CommandError::invalid(format!(
                    "`{command}` needs the argument `{name}` ({kind}): {}",
                    argument.help
                )))
            }
            None => Ok(Self { values }),
        }
    }

    /// A string; empty where it was left out.
    pub fn text(&self, name: &str) -> &str {
        self.values.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number; 0 where it was left out.
    pub fn number(&self, name: &str) -> u64 {
        self.values.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// An object; empty where it was left out.
    pub fn object(&mut self, name: &str) -> Map<String, Value> {
        match self.values.remove(name) {
            Some(Value::Object(members)) => members,
            _ => Map::new(),
        }
    }

    /// A list of capabilities in QMP's long form, if there is one: a bare name means "on".
    pub fn capabilities(&self, name: &str) -> Option<Value> {
        let long = |value: &Value| match value {
            Value::String(name) => json!({ "capability": name, "state": true }),
            other => other.clone(),
        };
        Some(self.values.get(name)?.as_array()?.iter().map(long).collect())
    }
}

/// At most 60 characters of what a client sent: an error must not be longer than what caused it is worth.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGAL: [Argument; 3] = [
        Argument { name: "uri", kind: Kind::Text, required: true, help: "where to" },
        Argument { name: "capabilities", kind: Kind::Capabilities, required: false, help: "" },
        Argument { name: "parameters", kind: Kind::Parameters, required: false, help: "" },
    ];

    fn check(values: Value) -> Result<Arguments, String> {
        let Value::Object(values) = values else { panic!("an object") };
        Arguments::check("migrate", &LEGAL, values).map_err(|error| error.to_string())
    }

    #[test]
    fn good_arguments_are_read() {
        let list = json!(["a", {"capability": "b", "state": false}]);
        let mut arguments =
            check(json!({"uri": "unix:x", "capabilities": list, "parameters": {"p": 1}})).unwrap();
        assert_eq!(arguments.text("uri"), "unix:x");
        let long = json!([{"capability": "a", "state": true}, {"capability": "b", "state": false}]);
        assert_eq!(arguments.capabilities("capabilities"), Some(long));
        assert_eq!(arguments.object("parameters"), *json!({"p": 1}).as_object().unwrap());
        assert_eq!(check(json!({"uri": ""})).unwrap().capabilities("capabilities"), None);
    }

    #[test]
    fn bad_arguments_are_named() {
        let cases = [
            (json!({}), "needs the argument `uri` (string): where to"),
            (json!({"uri": 1}), "`uri` is 1, and must be: string"),
            (json!({"uri": "", "url": 1}), "no argument `url`; it takes: uri, capabilities, parameters"),
            (json!({"uri": "", "capabilities": [1]}), "must be: list of names"),
            (json!({"uri": "", "parameters": []}), "must be: object"),
        ];
        for (values, expected) in cases {
            let text = check(values).unwrap_err();
            assert!(text.contains(expected), "{text}");
        }
        assert!(check(json!({"uri": "x".repeat(9), "é".repeat(9999): 1})).unwrap_err().len() < 400);
    }
}
