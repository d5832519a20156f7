//! A source in post-copy whose connections have broken, or that has heard nothing to its COMMIT: it looks for the
//! destination until that is found again, or a person gives it up.
//!
//! ```text
//! pause (0.1 s, doubling to 5 s) -> connect, role 6 -> what has become of the guest?
//!        ^  nobody, or undecided        running, held: all connections anew, and on with what is missing
//!        '-------------------------'    never: the guest is this side's again
//! ```
//!
//! Whatever happens here, both sides keep all they have.

use std::time::Duration;

use super::Attempt;
use crate::control::{Control, PostcopyOrder, Unobserved};
use crate::error::MigrationError;
use crate::handover::source::{Event, State};
use crate::handover::{Answer, Resolution};
use crate::stats::{Side, Status};
use crate::vm::SourceVm;

/// The first pause between two tries; each is twice as long as the one before.
const FIRST_PAUSE_MS: u64 = 100;
/// The longest pause.
const PAUSE_MAX_MS: u64 = 5_000;
/// A person is heard within this.
const LISTEN_EVERY: Duration = Duration::from_millis(50);

/// What a person's word has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// Nothing was said that changes something.
    None,
    /// The destination is to be looked for at once.
    Now,
    /// It is decided.
    Over,
}

impl<V: SourceVm> Attempt<'_, V> {
    /// What a person has said while pages go: an error if the connections are to be broken for it.
    pub(super) fn obey_while_serving(&mut self) -> Result<(), MigrationError> {
        match self.control.next_order() {
            None => Ok(()),
            Some(PostcopyOrder::Pause) => Err(MigrationError::Paused),
            Some(PostcopyOrder::Recover(uri)) => {
                self.carrier.look_at(&uri);
                Err(MigrationError::Paused)
            }
            Some(PostcopyOrder::Resolve(_)) => {
                let text = "nothing was resolved: the destination is there and has the guest; migrate-pause breaks \
                            the connections first";
                self.report.warnings.push(text.to_owned());
                Ok(())
            }
        }
    }

    /// Finds the destination again, and goes on. An error: it is decided that the guest isn't there, or is given up there.
    pub(super) fn heal(&mut self, mut error: MigrationError) -> Result<(), MigrationError> {
        let broken_us = self.control.now_us();
        self.carrier.part();
        self.note_paused(&error);
        let mut tries = 0;
        loop {
            match self.listen(pause(tries))? {
                Word::Over => return Err(error),
                Word::Now => tries = 0,
                Word::None => {}
            }
            tries += 1;
            match self.try_again() {
                Ok(true) => break,
                Ok(false) => {}
                Err(again) => error = again,
            }
            if self.handover.state.is_over() {
                return Err(error);
            }
        }
        let healing_us = self.control.since_us(broken_us);
        if let Some(report) = &mut self.report.postcopy {
            report.healing_us.push(healing_us);
            report.paused_by = None;
        }
        self.set_status(Status::PostcopyActive);
        Ok(())
    }

    fn note_paused(&mut self, error: &MigrationError) {
        if let Some(report) = &mut self.report.postcopy {
            report.pauses = report.pauses.saturating_add(1);
            report.paused_by = Some(error.text());
        }
        self.set_status(Status::PostcopyPaused);
    }

    /// True: pages go again.
    fn try_again(&mut self) -> Result<bool, MigrationError> {
        let answer = self.carrier.find()?;
        match answer {
            Answer::Running | Answer::Held => {
                if self.handover.state != State::Serving {
                    self.step(Event::RunsInPart)?;
                }
                self.set_status(Status::PostcopyRecover);
                let gone_on = self.carrier.go_on();
                if let Err(error) = &gone_on {
                    self.carrier.part();
                    if let Some(report) = &mut self.report.postcopy {
                        report.paused_by = Some(error.text());
                    }
                    self.set_status(Status::PostcopyPaused);
                }
                gone_on.map(|()| true)
            }
            Answer::Never | Answer::Undecided | Answer::Unknown => {
                if answer == Answer::Never {
                    self.step(Event::Answered(answer))?;
                }
                self.show(advice(answer));
                Ok(false)
            }
        }
    }

    /// What is known now, for whoever looks.
    fn show(&mut self, text: &str) {
        if let Some(report) = &mut self.report.postcopy {
            report.paused_by = Some(text.to_owned());
        }
        self.publish();
    }

    /// Waits, and hears what a person says meanwhile.
    fn listen(&mut self, most: Duration) -> Result<Word, MigrationError> {
        let clock = fresh()?;
        let began_us = clock.now_us();
        loop {
            while let Some(order) = self.control.next_order() {
                match order {
                    PostcopyOrder::Pause => {}
                    PostcopyOrder::Recover(uri) => {
                        self.carrier.look_at(&uri);
                        return Ok(Word::Now);
                    }
                    PostcopyOrder::Resolve(resolution) => {
                        if self.resolve(resolution)? {
                            return Ok(Word::Over);
                        }
                    }
                }
            }
            let passed = Duration::from_micros(clock.since_us(began_us));
            if passed >= most {
                return Ok(Word::None);
            }
            clock.pause(LISTEN_EVERY.min(most.saturating_sub(passed)))?;
        }
    }

    /// A person decides. False: the guest can't be had here.
    fn resolve(&mut self, resolution: Resolution) -> Result<bool, MigrationError> {
        self.step(Event::Resolve(resolution))?;
        match self.handover.state {
            State::Kept | State::Stranded => {
                let text = "a person has given the destination up: the guest goes on here from where it was at the \
                            switch, and what it has done since is lost";
                self.report.warnings.push(text.to_owned());
                Ok(true)
            }
            State::Discarded => Ok(true),
            _ => {
                let why = self.handover.not_resumed.take().map(|error| error.to_string());
                let why = why.unwrap_or_else(|| "it is the destination's".to_owned());
                self.report.warnings.push(format!("the guest can not run here: {why}"));
                self.publish();
                Ok(false)
            }
        }
    }

    /// Keeps this side's memory for the time that the parameter says.
    pub(super) fn hold(&mut self) {
        let most_us = self.live.get().postcopy_hold_ms.saturating_mul(1000);
        let (Ok(clock), began_us) = (fresh(), self.control.now_us()) else { return };
        while self.control.since_us(began_us) < most_us && clock.pause(LISTEN_EVERY).is_ok() {
            self.publish_if_old();
        }
    }
}

fn pause(tries: u32) -> Duration {
    Duration::from_millis((FIRST_PAUSE_MS << tries.min(16)).min(PAUSE_MAX_MS))
}

/// What the destination's answer means for a person.
fn advice(answer: Answer) -> &'static str {
    match answer {
        Answer::Unknown => {
            "another process answers at the destination, and the one that had the guest is gone, with what it did since \
             the switch: migrate-resolve with run lets the guest go on here from the switch on, discard ends this copy"
        }
        Answer::Undecided => "the destination has not finished yet, and is asked again",
        Answer::Never => "the destination has never taken the guest",
        Answer::Running | Answer::Held => "the destination has the guest",
    }
}

/// A control of no attempt: the attempt's own was halted when its first connections broke.
fn fresh() -> Result<std::sync::Arc<Control>, MigrationError> {
    let failed = |source| MigrationError::Thread { action: "wait", source };
    Control::new(Side::Source, Box::new(Unobserved)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_have_a_limit() {
        let pauses: Vec<u128> = (0..8).chain([1000]).map(|tries| pause(tries).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
    }
}
