//! The words of `virsh migrate`, for those who know it: each stands for parameters and capabilities of tern's own.

use clap::Args;
use serde_json::json;
use tern_migration::config::ON_TIMEOUT_STOP;

use super::migrate::ParameterArgs;
use super::{Exit, Failure};

const HEADING: &str = "As virsh migrate has them";

/// Flags named as virsh names them.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = HEADING)]
pub struct VirshArgs {
    /// The guest runs while its memory moves: the default
    #[arg(long, conflicts_with = "offline")]
    live: bool,
    /// The guest is stopped before its memory moves, and goes on at the destination (capability stop-first)
    #[arg(long)]
    offline: bool,
    /// The guest arrives paused (capability arrive-paused)
    #[arg(long)]
    suspend: bool,
    /// All pages are sent once, then the guest goes on at the destination (--postcopy=after-first-pass)
    #[arg(long, conflicts_with = "postcopy")]
    postcopy_after_precopy: bool,
    /// Most MiB a second of pages that nobody waits for (--max-postcopy-bandwidth)
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 30), conflicts_with = "max-postcopy-bandwidth")]
    postcopy_bandwidth: Option<u64>,
    /// After so many seconds stop the guest and send the rest (--max-total-time and --on-timeout stop)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=4_000_000), conflicts_with_all = ["max-total-time", "on-timeout"])]
    timeout: Option<u64>,
    /// Cancel at the first warning that the report has (`warnings`)
    #[arg(long)]
    pub(super) abort_on_error: bool,
    /// Show progress even where nobody looks: a line a second
    #[arg(long, conflicts_with = "json")]
    pub(super) verbose: bool,
    /// End this side's process once the guest runs at the destination
    #[arg(long, conflicts_with = "detach")]
    pub(super) undefinesource: bool,
    /// tern keeps no definitions of guests: at the destination the process is the guest, and lasts as long
    #[arg(long)]
    persistent: bool,
}

impl VirshArgs {
    /// Puts what the flags stand for in its place.
    pub(super) fn translate(&self, own: &mut ParameterArgs) -> Result<(), Failure> {
        let Self {
            live: _,
            offline,
            suspend,
            postcopy_after_precopy,
            postcopy_bandwidth,
            timeout,
            persistent,
            ..
        } = self;
        if *persistent {
            let text = "--persistent: tern keeps no definitions of guests. The process at the destination is the guest, and \
                        lasts as long as it; leave the flag out, and let what starts `tern run` there start it again";
            return Err(Failure::text(Exit::Usage, text));
        }
        for (wanted, capability) in [(offline, "stop-first"), (suspend, "arrive-paused")] {
            if *wanted {
                own.capabilities.push(json!({ "capability": capability, "state": true }));
            }
        }
        if *postcopy_after_precopy {
            own.parameters.insert("postcopy".to_owned(), "after-first-pass".into());
        }
        if let Some(mib) = postcopy_bandwidth {
            own.parameters.insert("max-postcopy-bandwidth".to_owned(), (mib << 20).into());
        }
        if let Some(seconds) = timeout {
            own.parameters.insert("max-total-time".to_owned(), (seconds * 1000).into());
            own.parameters.insert("on-timeout".to_owned(), ON_TIMEOUT_STOP.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        own: ParameterArgs,
        #[arg(long)]
        json: bool,
        #[arg(long)]
        detach: bool,
        #[command(flatten)]
        virsh: VirshArgs,
    }

    fn translated(line: &str) -> Result<ParameterArgs, String> {
        let words = ["migrate"].into_iter().chain(line.split_whitespace());
        let Only { mut own, virsh, .. } = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        virsh.translate(&mut own).map(|()| own).map_err(|_| "refused".to_owned())
    }

    #[test]
    fn each_word_stands_for_one_of_terns() {
        let own = translated("--live").unwrap();
        assert!(own.parameters.is_empty() && own.capabilities.is_empty());
        let own = translated("--offline --suspend --timeout 7").unwrap();
        assert_eq!(
            own.capabilities,
            [
                json!({"capability": "stop-first", "state": true}),
                json!({"capability": "arrive-paused", "state": true})
            ]
        );
        assert_eq!(json!(own.parameters), json!({"max-total-time": 7000, "on-timeout": "stop"}));
        let own = translated("--postcopy-after-precopy --postcopy-bandwidth 8").unwrap();
        let expected = json!({"postcopy": "after-first-pass", "max-postcopy-bandwidth": 8 << 20});
        assert_eq!(json!(own.parameters), expected);
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "--live --offline",
            "--timeout 7 --max-total-time 8",
            "--timeout 0",
            "--verbose --json",
            "--postcopy=manual --postcopy-after-precopy",
        ] {
            let error = translated(line).unwrap_err();
            assert!(error.contains("--") && error != "refused", "{line}: {error}");
        }
        assert_eq!(translated("--persistent").unwrap_err(), "refused");
    }
}
