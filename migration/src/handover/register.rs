//! What became of the attempts of this process, for sources that ask.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::Answer;

/// Only attempts that had all of a guest are kept, 100 bytes each; of more, the oldest are forgotten.
const KEPT_MAX: usize = 4096;

/// Remembers every session in which a source may have given its guest up, as long as the process lives.
#[derive(Debug, Default)]
pub struct Register {
    sessions: Mutex<VecDeque<(String, Answer)>>,
}

impl Register {
    /// Notes what a source that asks for this session is told from now on. [`Answer::Never`] and
    /// [`Answer::Running`] stay: false if another answer was due.
    pub fn note(&self, session: &str, answer: Answer) -> bool {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = sessions.iter_mut().find(|(known, _)| known == session) {
            let is_final = matches!(known, Answer::Never | Answer::Running);
            if !is_final {
                *known = answer;
            }
            return *known == answer;
        }
        if sessions.len() >= KEPT_MAX {
            sessions.pop_front();
        }
        sessions.push_back((session.to_owned(), answer));
        true
    }

    /// Was this session ever noted?
    pub(crate) fn knows(&self, session: &str) -> bool {
        self.answer(session) != Answer::Unknown
    }

    /// What became of this session.
    pub fn answer(&self, session: &str) -> Answer {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.iter().find(|(known, _)| known == session).map_or(Answer::Unknown, |(_, answer)| *answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_answer_stays_and_what_was_never_here_is_not_known() {
        let register = Register::default();
        assert_eq!(register.answer("a"), Answer::Unknown);
        assert!(register.note("a", Answer::Undecided) && register.note("a", Answer::Never));
        assert!(!register.note("a", Answer::Running));
        assert_eq!(register.answer("a"), Answer::Never);
        for number in 0..KEPT_MAX {
            register.note(&format!("{number}"), Answer::Held);
        }
        assert_eq!(register.answer("a"), Answer::Unknown);
        assert_eq!(register.answer("0"), Answer::Held);
        assert!(register.note("0", Answer::Running), "`cont` has started it");
    }
}
