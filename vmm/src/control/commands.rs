//! The table of commands: the server runs it, `query-commands` shows it, and the documents are checked
//! against it.

mod handlers;

use serde_json::{Map, Value, json};
use tern_migration::channel::{FORMS, descriptor};

use super::arguments::{Argument, Arguments, Kind, shortened};
use super::operations::{Operations, Resolution, RunState};
use super::{CommandError, ErrorCode, metrics};
pub use handlers::version;
use handlers::{
    describe, destination, done, migrate, query_capabilities, query_chardev, query_cpus, query_status,
    query_vm_generation_id, request,
};

/// Every state.
const ANY: &[RunState] = &RunState::ALL;
/// A machine whose vCPUs can be started and stopped.
const ALIVE: &[RunState] = &[RunState::Running, RunState::Paused];

/// What a command's handler is.
type Handler = fn(&mut dyn Operations, Arguments) -> Result<Value, CommandError>;

/// A command of the control socket.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub help: &'static str,
    /// What it takes.
    pub arguments: &'static [Argument],
    /// The states in which it is legal.
    pub legal: &'static [RunState],
    run: Handler,
}

const URI: Argument = Argument { name: "uri", kind: Kind::Text, required: true, help: FORMS };
const FD_NAME: Argument =
    Argument { name: "fdname", kind: Kind::Text, required: true, help: "the descriptor's name" };
const PARAMETERS: Argument = Argument {
    name: "parameters",
    kind: Kind::Parameters,
    required: false,
    help: "parameters of this migration only, by name; query-migrate-parameters lists them",
};
const CAPABILITIES: Argument = Argument {
    name: "capabilities",
    kind: Kind::Capabilities,
    required: false,
    help: "capabilities of this migration only; query-migrate-capabilities lists them",
};
const RESOLUTION: Argument = Argument {
    name: "resolution",
    kind: Kind::Choice(&["run", "discard"]),
    required: true,
    help: "run: the guest goes on here, and you have made sure that it doesn't at the destination; discard: it is there",
};
const STATE: Argument = Argument {
    name: "state",
    kind: Kind::Choice(&["pre-switchover"]),
    required: false,
    help: "the status in which it waits; there is no other",
};
const VALUE: Argument = Argument {
    name: "value",
    kind: Kind::Number,
    required: true,
    help: "bytes of memory that the guest shall have; all of it, if that is less",
};
const DESTINATION: Argument = Argument {
    name: "uri",
    kind: Kind::Text,
    required: false,
    help: "a destination: what the latest migrate-check has heard from it counts",
};
const ENABLE: Argument =
    Argument { name: "enable", kind: Kind::Empty, required: false, help: "QMP capabilities; there are none" };

/// All commands, by name.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "balloon",
        help: "Asks the guest to make do with less of its memory, or gives it back; BALLOON_CHANGE tells how it goes.",
        arguments: &[VALUE],
        legal: ALIVE,
        run: |vm, arguments| done(vm.balloon(arguments.number("value"))),
    },
    Command {
        name: "closefd",
        help: "Closes a descriptor that `getfd` has kept.",
        arguments: &[FD_NAME],
        legal: ANY,
        run: |_, arguments| {
            let closed = descriptor::close(arguments.text("fdname"));
            done(closed.map_err(|error| CommandError::invalid(error.to_string())))
        },
    },
    Command {
        name: "cont",
        help: "Starts the vCPUs.",
        arguments: &[],
        legal: ALIVE,
        run: |vm, _| done(vm.cont()),
    },
    Command {
        name: "getfd",
        help: "Keeps the descriptor that comes with it (SCM_RIGHTS) for an address fd:NAME.",
        arguments: &[FD_NAME],
        legal: ANY,
        run: |_, _| {
            let text = "no descriptor came with this command: send one with its bytes, as SCM_RIGHTS";
            Err(CommandError::invalid(text))
        },
    },
    Command {
        name: "migrate",
        help: "Starts to move the guest to another process, or to save it into a file, and returns at once.",
        arguments: &[URI, CAPABILITIES, PARAMETERS],
        legal: ALIVE,
        run: migrate,
    },
    Command {
        name: "migrate-check",
        help: "Starts to ask a destination whether the guest fits there, touching neither, and returns at once.",
        arguments: &[URI, CAPABILITIES, PARAMETERS],
        legal: ALIVE,
        run: |vm, arguments| {
            let request = request("migrate-check", arguments)?;
            done(vm.check(request))
        },
    },
    Command {
        name: "migrate-continue",
        help: "Says that the guest may be stopped now, to a migration that waits in pre-switchover.",
        arguments: &[STATE],
        legal: ANY,
        run: |vm, _| done(vm.go_on()),
    },
    Command {
        name: "migrate-incoming",
        help: "Says where to listen, or which file to take the guest from, in a process started with --incoming defer.",
        arguments: &[URI, PARAMETERS],
        legal: &[RunState::InMigrate],
        run: |vm, mut arguments| {
            let parameters = arguments.object("parameters");
            done(vm.migrate_incoming(arguments.text("uri"), &parameters))
        },
    },
    Command {
        name: "migrate-pause",
        help: "Breaks the connections of a post-copy on purpose; the source makes new ones.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| done(vm.pause_postcopy()),
    },
    Command {
        name: "migrate-recover",
        help: "Says to the source of a post-copy where its destination is reached from now on.",
        arguments: &[URI],
        legal: ANY,
        run: |vm, arguments| done(vm.recover_postcopy(arguments.text("uri"))),
    },
    Command {
        name: "migrate-resolve",
        help: "Says who goes on after a migration in doubt, or at the source of a post-copy whose destination is given up.",
        arguments: &[RESOLUTION],
        legal: &[RunState::InDoubt, RunState::PostMigrate],
        run: |vm, arguments| {
            let run = arguments.text("resolution") == "run";
            done(vm.resolve(if run { Resolution::Run } else { Resolution::Discard }))
        },
    },
    Command {
        name: "migrate-set-parameters",
        help: "Changes parameters (arguments by their names) of the running migration, or of the awaited one.",
        arguments: &[],
        legal: ANY,
        run: |vm, mut arguments| {
            let changes = arguments.object(FREE);
            done(vm.set_parameters(&changes))
        },
    },
    Command {
        name: "migrate-start-postcopy",
        help: "Lets a migration with parameter postcopy (or capability postcopy-ram) hand the guest over now.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| done(vm.start_postcopy()),
    },
    Command {
        name: "migrate_cancel",
        help: "Cancels the migration, or the check of a destination; does nothing where none runs.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| done(vm.cancel()),
    },
    Command {
        name: "qmp_capabilities",
        help: "Ends the negotiation: the first command of every connection.",
        arguments: &[ENABLE],
        legal: ANY,
        run: |_, _| Err(CommandError::new(ErrorCode::UnknownCommand, "the negotiation is already complete")),
    },
    Command {
        name: "query-balloon",
        help: "Shows how much of its memory the guest has, and what it was asked to make do with.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| vm.query_balloon(),
    },
    Command {
        name: "query-chardev",
        help: "Shows where the serial port goes.",
        arguments: &[],
        legal: ANY,
        run: query_chardev,
    },
    Command {
        name: "query-commands",
        help: "Lists the commands.",
        arguments: &[],
        legal: ANY,
        run: |_, _| Ok(describe()),
    },
    Command {
        name: "query-cpus-fast",
        help: "Lists the vCPUs.",
        arguments: &[],
        legal: ANY,
        run: query_cpus,
    },
    Command {
        name: "query-metrics",
        help: "Shows the machine's figures as Prometheus reads them.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| Ok(json!({ "text": metrics::text(&vm.facts(), vm.run_state(), &vm.history()) })),
    },
    Command {
        name: "query-migrate",
        help: "Shows the running migration, or how the last one ended.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| Ok(vm.query_migrate()),
    },
    Command {
        name: "query-migrate-capabilities",
        help: "Lists the capabilities, and whether each is legal to a destination and into a file; query-migrate-features has the rest.",
        arguments: &[DESTINATION],
        legal: ANY,
        run: query_capabilities,
    },
    Command {
        name: "query-migrate-check",
        help: "Shows what the last migrate-check has found, or that it runs.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| Ok(vm.query_check()),
    },
    Command {
        name: "query-migrate-features",
        help: "Lists all that a migration may use, alone and together, and why not the rest.",
        arguments: &[DESTINATION],
        legal: ANY,
        run: |vm, arguments| vm.features(destination(&arguments)),
    },
    Command {
        name: "query-migrate-history",
        help: "Shows the reports of the latest migrations, oldest first, and how many have ended how.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| Ok(serde_json::to_value(vm.history()).unwrap_or_default()),
    },
    Command {
        name: "query-migrate-parameters",
        help: "Shows the parameters of the running or awaited migration, or else their defaults.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| Ok(vm.parameters().to_json().into()),
    },
    Command {
        name: "query-name",
        help: "Shows the machine's name.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| Ok(json!({ "name": vm.facts().name })),
    },
    Command {
        name: "query-status",
        help: "Shows whether the guest runs.",
        arguments: &[],
        legal: ANY,
        run: query_status,
    },
    Command {
        name: "query-uuid",
        help: "Shows the machine's UUID.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| Ok(json!({ "UUID": vm.facts().uuid.to_string() })),
    },
    Command {
        name: "query-version",
        help: "Shows tern's version.",
        arguments: &[],
        legal: ANY,
        run: |_, _| Ok(version()),
    },
    Command {
        name: "query-vm-generation-id",
        help: "Shows the VM generation ID, which changes when the guest is restored from a file.",
        arguments: &[],
        legal: ANY,
        run: query_vm_generation_id,
    },
    Command {
        name: "quit",
        help: "Ends the process, without asking the guest.",
        arguments: &[],
        legal: ANY,
        run: |vm, _| done(vm.quit()),
    },
    Command {
        name: "stop",
        help: "Stops the vCPUs.",
        arguments: &[],
        legal: ALIVE,
        run: |vm, _| done(vm.stop()),
    },
    Command {
        name: "system_powerdown",
        help: "Presses the guest's power button.",
        arguments: &[],
        legal: ALIVE,
        run: |vm, _| done(vm.powerdown()),
    },
    Command {
        name: "system_reset",
        help: "Starts the machine anew.",
        arguments: &[],
        legal: ALIVE,
        run: |vm, _| done(vm.reset()),
    },
];

/// The one command whose arguments are the parameters themselves, as QMP has it.
const FREE_COMMAND: &str = "migrate-set-parameters";
/// Under this name its handler finds them.
const FREE: &str = "parameters";

/// Runs a command: looks it up, checks arguments and state, and calls the machine.
///
/// # Errors
/// Whatever a client is to be told.
pub fn run(
    vm: &mut dyn Operations,
    name: &str,
    arguments: Map<String, Value>,
) -> Result<Value, CommandError> {
    let command = find(name)?;
    let arguments = if command.name == FREE_COMMAND {
        let nested = Map::from_iter([(FREE.to_owned(), Value::Object(arguments))]);
        Arguments::check(name, &[PARAMETERS], nested)?
    } else {
        Arguments::check(name, command.arguments, arguments)?
    };
    check_state(command, vm.run_state())?;
    (command.run)(vm, arguments)
}

/// The command `name`.
///
/// # Errors
/// There is none of that name.
pub fn find(name: &str) -> Result<&'static Command, CommandError> {
    COMMANDS.iter().find(|command| command.name == name).ok_or_else(|| {
        let text = format!("there is no command `{}`; query-commands lists them", shortened(name));
        CommandError::new(ErrorCode::UnknownCommand, text)
    })
}

/// Checks the arguments of a command that the server itself answers.
///
/// # Errors
/// An argument is unknown or of a wrong type.
pub fn check_arguments(name: &str, arguments: Map<String, Value>) -> Result<(), CommandError> {
    Arguments::check(name, find(name)?.arguments, arguments).map(|_| ())
}

fn check_state(command: &Command, state: RunState) -> Result<(), CommandError> {
    if command.legal.contains(&state) {
        return Ok(());
    }
    let legal: Vec<&str> = command.legal.iter().map(|state| state.name()).collect();
    let (name, legal) = (command.name, legal.join(", "));
    let remedy = match state {
        RunState::PostMigrate => {
            "; the guest has moved away: ask at its destination, or end this process with quit"
        }
        RunState::InMigrate => "; a guest is awaited here: let it arrive first",
        RunState::FinishMigrate => "; a migration is in its last stage: wait, or migrate_cancel",
        RunState::InDoubt => "; migrate-resolve says who goes on",
        RunState::Shutdown | RunState::InternalError => "; the machine has ended: quit, and start it again",
        RunState::Running | RunState::Paused => "",
    };
    Err(CommandError::illegal(format!(
        "`{name}` is legal in: {legal}; the state is {}{remedy}",
        state.name()
    )))
}

#[cfg(test)]
mod tests;
