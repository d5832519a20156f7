//! Cuts a client's bytes into JSON objects, with limits, so that nothing a client sends costs more than its
//! length or ends the connection of one that goes on properly.
//!
//! QMP is a stream of JSON objects with or without newlines between them. The framer only follows brackets and
//! strings; whether an object makes sense, the parser says. After broken input it goes on at the next
//! line, or after the byte 0xFF, by which QMP clients begin anew.

use super::{CommandError, ErrorCode};

/// Most bytes of one object.
pub const OBJECT_LIMIT_BYTES: usize = 64 << 10;
/// Most brackets inside each other.
pub const NESTING_LIMIT: u32 = 32;
/// The byte by which a client starts afresh; never part of UTF-8.
const RESET: u8 = 0xff;

/// What came out of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes from a bracket to its partner: JSON, perhaps.
    Object(Vec<u8>),
    /// Something that isn't; the stream goes on after it.
    Fault(CommandError),
}

#[derive(Debug, Default)]
enum State {
    /// Between objects.
    #[default]
    Idle,
    /// Inside an object.
    Inside(Nesting),
    /// After a fault: up to the end of the line.
    SkipLine,
}

/// Where in an object the next byte is.
#[derive(Debug, Default)]
struct Nesting {
    depth: u32,
    /// One bit for each open bracket, the innermost lowest: set for `[`.
    lists: u64,
    in_string: bool,
    escaped: bool,
}

enum Step {
    More,
    Complete,
    Broken(&'static str),
    TooDeep,
}

impl Nesting {
    fn step(&mut self, byte: u8) -> Step {
        if self.in_string {
            return self.string_step(byte);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                if self.depth == NESTING_LIMIT {
                    return Step::TooDeep;
                }
                self.depth += 1;
                self.lists = self.lists << 1 | u64::from(byte == b'[');
            }
            b'}' | b']' => {
                if (self.lists & 1 == 1) != (byte == b']') {
                    return Step::Broken("a bracket is closed by one of the other kind");
                }
                self.lists >>= 1;
                self.depth -= 1;
                if self.depth == 0 {
                    return Step::Complete;
                }
            }
            _ => {}
        }
        Step::More
    }

    fn string_step(&mut self, byte: u8) -> Step {
        match byte {
            b'\n' | b'\r' => return Step::Broken("a line ends inside a string"),
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => self.in_string = false,
            _ => {}
        }
        Step::More
    }
}

/// The cutter. One for each connection.
#[derive(Debug, Default)]
pub struct Framer {
    state: State,
    object: Vec<u8>,
}

impl Framer {
    /// Takes what was read and appends what it completes to `frames`.
    pub fn push(&mut self, bytes: &[u8], frames: &mut Vec<Frame>) {
        for &byte in bytes {
            if let Some(frame) = self.push_byte(byte) {
                frames.push(frame);
            }
        }
    }

    fn push_byte(&mut self, byte: u8) -> Option<Frame> {
        if byte == RESET {
            self.object = Vec::new();
            self.state = State::Idle;
            return None;
        }
        match &mut self.state {
            State::Idle if byte.is_ascii_whitespace() => None,
            State::Idle if matches!(byte, b'{' | b'[') => {
                self.state = State::Inside(Nesting::default());
                self.push_inside(byte)
            }
            State::Idle => self.fault(
                ErrorCode::MalformedInput,
                "not JSON: a command is an object such as {\"execute\": \"query-status\"}".into(),
                byte,
            ),
            State::SkipLine => {
                if byte == b'\n' {
                    self.state = State::Idle;
                }
                None
            }
            State::Inside(_) => self.push_inside(byte),
        }
    }

    fn push_inside(&mut self, byte: u8) -> Option<Frame> {
        let State::Inside(nesting) = &mut self.state else { return None };
        if self.object.len() == OBJECT_LIMIT_BYTES {
            let text = format!(
                "an object is longer than {OBJECT_LIMIT_BYTES} bytes; the rest of its line is ignored"
            );
            return self.fault(ErrorCode::TooLarge, text, byte);
        }
        self.object.push(byte);
        match nesting.step(byte) {
            Step::More => None,
            Step::Complete => {
                self.state = State::Idle;
                Some(Frame::Object(std::mem::take(&mut self.object)))
            }
            Step::Broken(why) => self.fault(ErrorCode::MalformedInput, format!("not JSON: {why}"), byte),
            Step::TooDeep => {
                let text = format!(
                    "more than {NESTING_LIMIT} brackets inside each other; the rest of the line is ignored"
                );
                self.fault(ErrorCode::TooLarge, text, byte)
            }
        }
    }

    /// Gives up the object at hand; `byte` is the last one seen and may end the line itself.
    fn fault(&mut self, code: ErrorCode, desc: String, byte: u8) -> Option<Frame> {
        self.object = Vec::new();
        self.state = if byte == b'\n' { State::Idle } else { State::SkipLine };
        Some(Frame::Fault(CommandError::new(code, desc)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(bytes: &[u8]) -> Vec<Result<String, ErrorCode>> {
        let mut frames = Vec::new();
        Framer::default().push(bytes, &mut frames);
        let plain = |frame| match frame {
            Frame::Object(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Frame::Fault(error) => Err(error.code),
        };
        frames.into_iter().map(plain).collect()
    }

    const GOOD: &str = r#"{"execute": "stop"}"#;

    #[test]
    fn objects_need_no_newlines() {
        assert_eq!(
            cut(b"{}{\"a\":[1,{}]}\n {\"}\\\"]\": 1}"),
            [Ok("{}".to_owned()), Ok("{\"a\":[1,{}]}".to_owned()), Ok("{\"}\\\"]\": 1}".to_owned())]
        );
        assert_eq!(cut(b"{\n \"a\":\n 1}"), [Ok("{\n \"a\":\n 1}".to_owned())]);
    }

    #[test]
    fn the_stream_goes_on_after_garbage() {
        for garbage in ["hello", "}", "{]", "{\"a", "{\"a\": \"", "\u{1F600}", "[}"] {
            let frames = cut(format!("{garbage}\n{GOOD}\n").as_bytes());
            assert_eq!(frames, [Err(ErrorCode::MalformedInput), Ok(GOOD.to_owned())], "{garbage}");
        }
    }

    #[test]
    fn an_unfinished_object_is_ended_by_the_reset_byte() {
        let mut bytes = b"{\"execute\": {\xff".to_vec();
        bytes.extend(GOOD.bytes());
        assert_eq!(cut(&bytes), [Ok(GOOD.to_owned())]);
    }

    #[test]
    fn size_is_bounded_exactly() {
        let fits = format!("{{\"{}\"}}", "a".repeat(OBJECT_LIMIT_BYTES - 4));
        assert_eq!(cut(fits.as_bytes()), [Ok(fits.clone())]);
        let over = format!("{{\"{}\"}}\n{GOOD}", "a".repeat(OBJECT_LIMIT_BYTES - 3));
        assert_eq!(cut(over.as_bytes()), [Err(ErrorCode::TooLarge), Ok(GOOD.to_owned())]);
    }

    #[test]
    fn nesting_is_bounded_exactly() {
        let nested = |depth: usize| format!("{}{}\n{GOOD}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(cut(nested(32).as_bytes()).len(), 2);
        assert_eq!(cut(nested(33).as_bytes()), [Err(ErrorCode::TooLarge), Ok(GOOD.to_owned())]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_the_next_line_is_read(
            garbage in proptest::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\"\\\n:,".to_vec())], 0..400),
        ) {
            let mut bytes = garbage;
            bytes.push(RESET);
            bytes.extend(GOOD.bytes());
            let last = cut(&bytes).pop();
            prop_assert_eq!(last, Some(Ok(GOOD.to_owned())));
        }

        #[test]
        fn pieces_make_no_difference(text in "[{}\\[\\]\"\\\\a \n]{0,200}", at in 0_usize..200) {
            let bytes = text.as_bytes();
            let (left, right) = bytes.split_at(at.min(bytes.len()));
            let (mut whole, mut pieces) = (Vec::new(), Vec::new());
            Framer::default().push(bytes, &mut whole);
            let mut framer = Framer::default();
            framer.push(left, &mut pieces);
            framer.push(right, &mut pieces);
            prop_assert_eq!(whole, pieces);
        }
    }
}
