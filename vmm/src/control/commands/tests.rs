//! The table against the fake machine.

use super::*;
use crate::control::testing::FakeMachine;

fn run_json(vm: &mut FakeMachine, name: &str, arguments: Value) -> Result<Value, CommandError> {
    run(vm, name, arguments.as_object().cloned().unwrap_or_default())
}

#[test]
fn names_are_sorted_and_distinct() {
    assert!(COMMANDS.windows(2).all(|pair| pair[0].name < pair[1].name));
}

#[test]
fn stop_and_cont() {
    let mut vm = FakeMachine::default();
    assert_eq!(run_json(&mut vm, "stop", json!({})), Ok(json!({})));
    let status = run_json(&mut vm, "query-status", json!({})).unwrap();
    assert_eq!((&status["status"], &status["running"]), (&json!("paused"), &json!(false)));
    assert_eq!(run_json(&mut vm, "cont", json!({})), Ok(json!({})));
    assert_eq!(vm.state, RunState::Running);
}

#[test]
fn illegal_states_say_what_is_legal_and_what_to_do() {
    let mut vm = FakeMachine { state: RunState::PostMigrate, ..FakeMachine::default() };
    let error = run_json(&mut vm, "cont", json!({})).unwrap_err();
    assert_eq!(error.code, ErrorCode::IllegalState);
    assert!(error.desc.contains("running, paused; the state is postmigrate; the guest has moved"), "{error}");
    let mut vm = FakeMachine::default();
    let error = run_json(&mut vm, "migrate-resolve", json!({"resolution": "run"})).unwrap_err();
    assert_eq!(error.code, ErrorCode::IllegalState);
    assert!(vm.calls.is_empty());
}

#[test]
fn a_machine_in_doubt_says_so_and_is_resolved() {
    let mut vm = FakeMachine { state: RunState::InDoubt, ..FakeMachine::default() };
    let status = run_json(&mut vm, "query-status", json!({})).unwrap();
    assert_eq!((&status["status"], &status["detail"]), (&json!("postmigrate"), &json!("in-doubt")));
    run_json(&mut vm, "migrate-resolve", json!({"resolution": "discard"})).unwrap();
    assert_eq!(vm.calls, ["resolve Discard"]);
    let error = run_json(&mut vm, "migrate-resolve", json!({"resolution": "maybe"})).unwrap_err();
    assert!(error.desc.contains("run|discard"), "{error}");
}

#[test]
fn migrate_takes_its_own_parameters() {
    let mut vm = FakeMachine::default();
    let capabilities = json!([{"capability": "events", "state": false}]);
    let parameters = json!({"downtime-limit": 50});
    let arguments = json!({"uri": "unix:m", "parameters": parameters, "capabilities": capabilities});
    run_json(&mut vm, "migrate", arguments).unwrap();
    run_json(&mut vm, "migrate", json!({"uri": "unix:n", "capabilities": ["events"]})).unwrap();
    assert_eq!(vm.calls, ["migrate unix:m 50 ms events false", "migrate unix:n 300 ms events true"]);
}

#[test]
fn a_check_takes_what_a_migration_takes() {
    let mut vm = FakeMachine::default();
    let arguments = json!({"uri": "unix:m", "parameters": {"max-bandwidth": 1 << 20}});
    assert_eq!(run_json(&mut vm, "migrate-check", arguments), Ok(json!({})));
    let error =
        run_json(&mut vm, "migrate-check", json!({"uri": "unix:m", "parameters": {"speed": 1}})).unwrap_err();
    assert!(error.desc.contains("`migrate-check`") && error.desc.contains("speed"), "{error}");
    assert_eq!(run_json(&mut vm, "query-migrate-check", json!({})), Ok(json!({})));
    vm.state = RunState::InMigrate;
    assert!(run_json(&mut vm, "migrate-check", json!({"uri": "unix:m"})).is_err());
    assert_eq!(vm.calls, ["check unix:m"]);
}

#[test]
fn bad_parameters_are_refused_before_the_machine_is_asked() {
    let mut vm = FakeMachine::default();
    for extra in [
        json!({"parameters": {"downtime": 1}}),
        json!({"parameters": {"downtime-limit": -1}}),
        json!({"parameters": {"max-bandwidth": 1}}),
        json!({"capabilities": ["warp"]}),
    ] {
        let mut arguments = extra;
        arguments["uri"] = "unix:m".into();
        let error = run_json(&mut vm, "migrate", arguments).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    }
    assert!(vm.calls.is_empty());
}

#[test]
fn set_parameters_takes_any_names() {
    let mut vm = FakeMachine::default();
    run_json(&mut vm, "migrate-set-parameters", json!({"max-bandwidth": 1})).unwrap();
    assert_eq!(vm.calls, [r#"set {"max-bandwidth":1}"#]);
}

#[test]
fn the_serial_socket_can_be_found() {
    let mut vm = FakeMachine::default();
    let list = run_json(&mut vm, "query-chardev", json!({})).unwrap();
    assert_eq!(list[0]["path"], "/run/serial");
    assert_eq!(list[0]["filename"], "unix:/run/serial,server=on");
}

#[test]
fn unknown_commands_are_of_their_class() {
    let error = run_json(&mut FakeMachine::default(), &"x".repeat(9999), json!({})).unwrap_err();
    assert_eq!(error.to_json()["class"], "CommandNotFound");
    assert!(error.desc.len() < 200);
}

#[test]
fn every_command_describes_itself() {
    let list = describe();
    assert_eq!(list.as_array().map(Vec::len), Some(COMMANDS.len()));
    assert!(COMMANDS.iter().all(|command| command.help.ends_with('.') && !command.legal.is_empty()));
}
