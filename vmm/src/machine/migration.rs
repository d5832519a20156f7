//! temporary
use tern_migration::Parameters;
use crate::control::{CommandError, MigrateRequest};
use super::Machine;
pub(super) struct Receiver;
pub(super) enum Ended {}
impl Machine {
    pub(super) fn migrate(&mut self, _: &MigrateRequest) -> Result<(), CommandError> { Err(CommandError::illegal("this build cannot migrate yet")) }
    pub(super) fn listen(&mut self, _: &str, _: Parameters) -> Result<(), CommandError> { Err(CommandError::illegal("this build cannot migrate yet")) }
    pub(super) fn await_guest(&mut self) {}
    pub(super) fn cancel(&mut self) -> Result<(), CommandError> { Err(CommandError::illegal("this build cannot migrate yet")) }
    pub(super) fn migration_ended(&mut self, ended: Ended) { match ended {} }
}
