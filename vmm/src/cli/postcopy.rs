//! `tern postcopy`: what a person can say to a post-copy.

use clap::{Args, Subcommand};
use serde_json::json;

use super::vm::ControlArgs;
use super::{Exit, Failure};
use crate::config::check_uri;

pub(super) const EXAMPLES: &str = "\
Examples:
  tern migrate --control /tmp/a.sock tcp:host-b:4444 --postcopy=manual --detach
  tern postcopy --control /tmp/a.sock start
  tern postcopy --control /tmp/a.sock pause
  tern postcopy --control /tmp/a.sock recover tcp:host-b:5555

A connection that breaks is made anew by the source, for as long as it takes: status postcopy-paused, then \
postcopy-recover, then postcopy-active. The guest runs on until it needs a page that is missing, and then waits. If one of the \
two processes has died, or they can't reach each other any more:

  tern status --control /tmp/a.sock                     what is missing, and why
  tern migrate --control /tmp/a.sock --resolve run      at the source: run the guest again from where it was at the switch. \
What it has done since is lost; make sure that it doesn't run at the destination
  tern migrate --control /tmp/a.sock --resolve discard  at the source: give up the pages that only it has";

#[derive(Debug, Args)]
pub struct PostcopyArgs {
    #[command(flatten)]
    control: ControlArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// At the source: hand the guest over now, and send afterwards what is missing (virsh: migrate-postcopy). The migration was
    /// started with --postcopy
    #[command(after_help = "Example:\n  tern postcopy --control /tmp/a.sock start")]
    Start,
    /// Break the connections on purpose; the source makes new ones
    #[command(after_help = "Example:\n  tern postcopy --control /tmp/a.sock pause")]
    Pause,
    /// At the source: reach the destination at another address from now on, as by another network of its host
    #[command(after_help = "Example:\n  tern postcopy --control /tmp/a.sock recover tcp:host-b:5555")]
    Recover {
        /// tcp:HOST:PORT, unix:PATH or vsock:CID:PORT
        #[arg(value_name = "URI", value_parser = uri)]
        uri: String,
    },
}

fn uri(text: &str) -> Result<String, crate::config::FormError> {
    check_uri(text).map(|_| text.to_owned())
}

pub(super) fn run(args: &PostcopyArgs) -> Result<Exit, Failure> {
    let (command, arguments) = match &args.what {
        What::Start => ("migrate-start-postcopy", json!({})),
        What::Pause => ("migrate-pause", json!({})),
        What::Recover { uri } => ("migrate-recover", json!({ "uri": uri })),
    };
    args.control.connect()?.execute(command, arguments)?;
    Ok(Exit::Success)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: PostcopyArgs,
    }

    #[test]
    fn each_order_is_read_and_an_address_is_looked_at() {
        let parse = |line: &str| {
            let words = ["postcopy"].into_iter().chain(line.split_whitespace());
            Only::try_parse_from(words).map(|only| only.args.what).map_err(|error| error.to_string())
        };
        assert!(matches!(parse("--control /c start"), Ok(What::Start)));
        assert!(matches!(parse("--control /c pause"), Ok(What::Pause)));
        assert!(
            matches!(parse("--control /c recover unix:/m"), Ok(What::Recover { uri }) if uri == "unix:/m")
        );
        assert!(parse("--control /c recover udp:x").unwrap_err().contains("tcp:HOST:PORT"));
        assert!(parse("--control /c").unwrap_err().contains("recover"));
    }
}
