//! How the process ends: the one home of the exit codes.

use std::process::ExitCode;

/// What the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// The command failed.
    Failure = 1,
    /// The command line is wrong; nothing was done.
    Usage = 2,
    /// The guest ended badly: triple fault, KVM internal error, a page of its file that can't be had.
    GuestFailed = 3,
    /// The migration failed, and the guest goes on where it was.
    MigrationFailed = 4,
    /// The migration was cancelled, and the guest goes on where it was.
    MigrationCancelled = 5,
    /// The migration is in doubt: a person must look at the destination, and resolve it.
    MigrationInDoubt = 6,
    /// The two schemas that were compared are not compatible.
    SchemasDiffer = 7,
    /// The host or the destination that was checked does not fit.
    DoesNotFit = 8,
}

/// The table, for `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the command failed; the error says why
  2  the command line is wrong; nothing was done
  3  the guest ended badly (triple fault, KVM internal error, a page of its file that can't be had)
  4  the migration or save failed, and the guest goes on where it was
  5  the migration or save was cancelled, and the guest goes on where it was
  6  the migration is in doubt: look at the destination, then tern migrate --resolve
  7  the two schemas are not compatible (tern schema diff)
  8  it does not fit: a host that was checked lacks something (tern cpu check, tern migrate --check)";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented() {
        let all = [
            Exit::Success,
            Exit::Failure,
            Exit::Usage,
            Exit::GuestFailed,
            Exit::MigrationFailed,
            Exit::MigrationCancelled,
            Exit::MigrationInDoubt,
            Exit::SchemasDiffer,
            Exit::DoesNotFit,
        ];
        for (number, exit) in all.into_iter().enumerate() {
            assert_eq!(exit as usize, number);
            assert!(EXIT_CODES.contains(&format!("\n  {number}  ")));
        }
        assert_eq!(EXIT_CODES.lines().count(), all.len() + 1);
    }
}
