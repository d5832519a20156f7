//! What commands do that only put an answer together, or take a request to pieces.

use serde_json::{Map, Value, json};
use tern_migration::config::Parameters;

use super::super::CommandError;
use super::super::arguments::{Argument, Arguments};
use super::super::operations::{MigrateRequest, Operations, RunState, SerialFacts};
use super::{COMMANDS, Command};

pub(super) fn destination(arguments: &Arguments) -> Option<&str> {
    Some(arguments.text("uri")).filter(|uri| !uri.is_empty())
}

/// QMP's list, with what stands against each capability.
pub(super) fn query_capabilities(
    vm: &mut dyn Operations,
    arguments: Arguments,
) -> Result<Value, CommandError> {
    let features = vm.features(destination(&arguments))?;
    let mut list = vm.parameters().capabilities_json();
    for entry in list.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        // QMP's capability for it is a parameter here.
        let name = match entry.get("capability").and_then(Value::as_str) {
            Some("postcopy-ram") => "postcopy=manual",
            name => name.unwrap_or_default(),
        }
        .to_owned();
        for way in ["to_peer", "to_file"] {
            let rows = features[way].as_array().map(Vec::as_slice).unwrap_or_default();
            let of = |row: &&Value| row["feature"] == name.as_str() && row["kind"] != "encoding";
            if let Some(Value::Object(row)) = rows.iter().find(of).cloned() {
                let told = row.into_iter().filter(|(key, _)| !matches!(key.as_str(), "feature" | "kind"));
                entry.insert(way.to_owned(), told.collect::<Map<_, _>>().into());
            }
        }
    }
    Ok(list)
}

pub(super) fn done(result: Result<(), CommandError>) -> Result<Value, CommandError> {
    result.map(|()| json!({}))
}

pub(super) fn migrate(vm: &mut dyn Operations, arguments: Arguments) -> Result<Value, CommandError> {
    let request = request("migrate", arguments)?;
    done(vm.migrate(request))
}

/// What `migrate` and `migrate-check` take.
pub(super) fn request(command: &str, mut arguments: Arguments) -> Result<MigrateRequest, CommandError> {
    let mut changes = arguments.object("parameters");
    if let Some(list) = arguments.capabilities("capabilities") {
        changes.insert("capabilities".to_owned(), list);
    }
    // Always from the defaults: nothing that was set for another migration leaks into this one.
    let parameters = Parameters::default().merged(&changes);
    let parameters = parameters.map_err(|error| CommandError::invalid(format!("`{command}`: {error}")))?;
    Ok(MigrateRequest { uri: arguments.text("uri").to_owned(), parameters })
}

pub(super) fn query_status(vm: &mut dyn Operations, _: Arguments) -> Result<Value, CommandError> {
    let state = vm.run_state();
    let running = state == RunState::Running;
    Ok(json!({ "status": state.qmp_name(), "running": running, "singlestep": false, "detail": state.name() }))
}

pub(super) fn query_cpus(vm: &mut dyn Operations, _: Arguments) -> Result<Value, CommandError> {
    let describe = |cpu: &super::super::CpuFacts| {
        json!({
            "cpu-index": cpu.index,
            "thread-id": cpu.thread_id,
            "qom-path": format!("/machine/cpu[{}]", cpu.index),
            "props": { "core-id": cpu.index },
            "target": "x86_64",
        })
    };
    Ok(vm.facts().cpus.iter().map(describe).collect())
}

/// QMP's three fields, and the path and kind apart, so that nobody has to take `filename` to pieces.
pub(super) fn query_chardev(vm: &mut dyn Operations, _: Arguments) -> Result<Value, CommandError> {
    let entry = |filename: String, connected: bool| json!({ "label": "serial0", "filename": filename, "frontend-open": connected });
    let entry = match vm.facts().serial {
        SerialFacts::Stdio => entry("stdio".to_owned(), true),
        SerialFacts::Null => entry("null".to_owned(), true),
        SerialFacts::File(path) => entry(format!("file:{}", path.display()), true),
        SerialFacts::Unix { path, connected } => {
            let mut entry = entry(format!("unix:{},server=on", path.display()), connected);
            entry["path"] = path.display().to_string().into();
            entry
        }
    };
    Ok(json!([entry]))
}

pub(super) fn query_vm_generation_id(vm: &mut dyn Operations, _: Arguments) -> Result<Value, CommandError> {
    match vm.facts().generation_id {
        Some(id) => Ok(json!({ "guid": id.to_string() })),
        None => Err(CommandError::illegal(
            "the guest has no VM generation ID: it waits to come here, or was booted by a tern that gave it none",
        )),
    }
}

/// `query-version`'s answer, and the greeting's `version`: QMP's shape, tern's numbers.
pub fn version() -> Value {
    let number = |text: &str| text.parse::<u32>().unwrap_or_default();
    let qemu = json!({
        "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
        "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
        "micro": number(env!("CARGO_PKG_VERSION_PATCH")),
    });
    json!({ "qemu": qemu, "package": concat!("tern-", env!("CARGO_PKG_VERSION")) })
}

/// The table, as `query-commands` shows it: QMP's `name`, and what else a person wants to know.
pub(super) fn describe() -> Value {
    let argument = |argument: &Argument| {
        json!({
            "name": argument.name,
            "type": argument.kind.name(),
            "required": argument.required,
            "help": argument.help,
        })
    };
    let command = |command: &Command| {
        json!({
            "name": command.name,
            "help": command.help,
            "arguments": command.arguments.iter().map(argument).collect::<Vec<_>>(),
            "states": command.legal.iter().map(|state| state.name()).collect::<Vec<_>>(),
        })
    };
    COMMANDS.iter().map(command).collect()
}
