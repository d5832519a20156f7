//! The tables, and what is refused.

use super::*;

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

/// A legal value that isn't the default.
pub(crate) fn other(row: &Parameter) -> Setting {
    match &row.kind {
        Kind::Number { range, .. } if range.contains(&300_000) => Setting::Number(300_000),
        Kind::Number { range, default, .. } if range.start() == default => Setting::Number(*range.end()),
        Kind::Number { range, .. } => Setting::Number(*range.start()),
        Kind::Switch { default } => Setting::Switch(!default),
        Kind::Choice { names } => Setting::Choice(names[1]),
        Kind::Text { .. } => Setting::Text(Some("/a".into())),
    }
}

#[test]
fn every_default_is_legal_and_every_row_sets_its_own_field() {
    for row in PARAMETERS {
        row.checked(row.default()).unwrap();
        assert_eq!(row.get(&Parameters::default()), row.default(), "{}", row.name);
        let mut changed = Parameters::default();
        changed.set(row.name, other(row)).unwrap();
        assert_eq!(row.get(&changed), other(row), "{}", row.name);
        let others = PARAMETERS.iter().filter(|other| other.get(&changed) != other.default());
        assert_eq!(others.count(), 1, "{} changes more than itself", row.name);
        assert_eq!(row.read(&row.json(&other(row))).unwrap(), other(row), "{} in QMP", row.name);
        assert!(!row.meaning.is_empty() && row.meaning.ends_with('.'), "{}", row.name);
    }
}

#[test]
fn choices_and_texts_are_read_as_they_are_shown() {
    let choice = Parameter::choice("colour", &["red", "blue"], |_| unreachable!()).means("None.");
    assert_eq!(choice.default(), Setting::Choice("red"));
    assert_eq!(choice.read(&"blue".into()).unwrap(), Setting::Choice("blue"));
    let error = choice.read(&"green".into()).unwrap_err().to_string();
    assert_eq!(error, "migration parameter colour: there is no \"green\"; legal: red, blue");
    choice.read(&1.into()).unwrap_err();
    let text = Parameter::text("folder", "DIR", "none", |_| unreachable!()).means("None.");
    assert_eq!(text.shown(&text.default()), "none");
    assert_eq!(text.read(&"".into()).unwrap(), Setting::Text(None));
    assert_eq!(text.read(&"/a".into()).unwrap(), Setting::Text(Some("/a".into())));
    for wrong in [Value::from("x".repeat(5000)), "a\0b".into(), 7.into()] {
        assert!(text.read(&wrong).unwrap_err().to_string().contains("is not a text"), "{wrong}");
    }
}

#[test]
fn errors_name_parameter_value_and_range() {
    let defaults = Parameters::default();
    let error = |text| defaults.merged(&object(text)).unwrap_err().to_string();
    assert_eq!(
        error(r#"{"downtime-limit": 2000001}"#),
        "migration parameter downtime-limit: 2000001 ms is out of range; legal: 0 to 2000000"
    );
    assert!(error(r#"{"max-bandwidth": "1G"}"#).contains("\"1G\" is not a whole number of bytes/s"));
    assert!(error(r#"{"max-bandwith": 1}"#).contains("these exist: max-bandwidth,"));
    assert!(error(r#"{"capabilities": [{"capability": "multifd", "state": true}]}"#).contains("multifd"));
    assert!(error(r#"{"capabilities": {"events": true}}"#).contains("not a list"));
}

#[test]
fn a_merge_with_an_error_changes_nothing() {
    let live = LiveParameters::default();
    live.merge(&object(r#"{"downtime-limit": 7, "max-total-time": 9, "nonsense": 1}"#)).unwrap_err();
    assert_eq!(live.get(), Parameters::default());
    live.merge(&object(r#"{"downtime-limit": 7}"#)).unwrap();
    assert_eq!(live.get().downtime_limit_ms, 7);
}

#[test]
fn a_destination_refuses_what_only_a_source_uses() {
    let defaults = Parameters::default();
    for row in PARAMETERS {
        let changes = object(&format!(r#"{{"{}": {}}}"#, row.name, row.json(&row.default())));
        let merged = defaults.merged_at_destination(&changes);
        if row.scope.is_destinations() {
            merged.unwrap();
            continue;
        }
        assert_eq!(
            merged.unwrap_err().to_string(),
            format!("migration parameter {} is the source's: give it to `migrate` there", row.name)
        );
    }
    let unknown = defaults.merged_at_destination(&object(r#"{"max-bandwith": 1}"#)).unwrap_err();
    assert!(matches!(unknown, ConfigError::UnknownParameter { .. }));
    let quiet = object(r#"{"capabilities": [{"capability": "events", "state": false}]}"#);
    assert!(!defaults.merged_at_destination(&quiet).unwrap().capabilities.events);
}

#[test]
fn what_a_file_has_is_refused_for_a_peer_and_while_it_is_made() {
    let (peer, file): (Uri, Uri) = ("tcp:b:1".parse().unwrap(), "file:/b".parse().unwrap());
    for changes in [
        r#"{"file-threads": 7}"#,
        r#"{"direct-io": true}"#,
        r#"{"capabilities": [{"capability": "keep-running", "state": true}]}"#,
    ] {
        let changed = Parameters::default().merged(&object(changes)).unwrap();
        let error = changed.check_for(&peer).unwrap_err().to_string();
        assert!(error.contains("(file:PATH), and this guest goes to tcp:b:1"), "{error}");
        changed.check_for(&file).unwrap();
    }
    Parameters::default().check_for(&peer).unwrap();
    let error = LiveParameters::default().merge(&object(r#"{"file-threads": 1}"#)).unwrap_err();
    assert_eq!(error, ConfigError::Fixed { name: "file-threads" });
    let wrong = Parameters::default().merged(&object(r#"{"direct-io": 1}"#)).unwrap_err().to_string();
    assert!(wrong.contains("direct-io: 1 is neither true nor false"), "{wrong}");
    assert_eq!(Parameters::default().to_json()["direct-io"], false);
}

#[test]
fn capabilities_are_queried_as_they_are_set() {
    let list = serde_json::json!([{"capability": "events", "state": false}]);
    let answer = Capabilities::default().merged(&list).unwrap().to_json();
    assert_eq!((&answer[0], answer.as_array().unwrap().len()), (&list[0], CAPABILITIES.len()));
}

#[test]
fn qmps_capability_allows_post_copy_and_leaves_a_chosen_mode_alone() {
    let list = |state: &str| {
        object(&format!(r#"{{"capabilities": [{{"capability": "events", "state": false}}, {state}]}}"#))
    };
    let on = list(r#"{"capability": "postcopy-ram", "state": true}"#);
    let off = list(r#"{"capability": "postcopy-ram", "state": false}"#);
    let manual = Parameters::default().merged(&on).unwrap();
    assert_eq!((manual.postcopy, manual.capabilities.events), ("manual", false));
    assert_eq!(manual.postcopy_mode(), Some(PostcopyMode::Manual));
    assert!(manual.capabilities_json().to_string().contains(r#"{"capability":"postcopy-ram","state":true}"#));
    let chosen = Parameters::default().merged(&object(r#"{"postcopy": "at-once"}"#)).unwrap();
    assert_eq!(chosen.merged(&on).unwrap().postcopy, "at-once");
    assert_eq!(chosen.merged(&off).unwrap().postcopy_mode(), None);
    let error =
        Parameters::default().merged(&list(r#"{"capability": "postcopy-ram", "state": 1}"#)).unwrap_err();
    assert!(error.to_string().contains("postcopy-ram"), "{error}");
}

#[test]
fn no_guest_is_saved_by_post_copy() {
    let chosen = Parameters::default().merged(&object(r#"{"postcopy": "auto"}"#)).unwrap();
    let error = chosen.check_for(&"file:/tmp/a".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("it needs a running destination"), "{error}");
    assert!(chosen.check_for(&"unix:/tmp/a".parse().unwrap()).is_ok());
}

#[test]
fn every_mode_of_post_copy_is_known() {
    let row = Parameter::named("postcopy").unwrap();
    let Kind::Choice { names } = &row.kind else { panic!("{row:?}") };
    for name in *names {
        let chosen = Parameters { postcopy: name, ..Parameters::default() };
        assert_eq!(chosen.postcopy_mode().is_some(), chosen.may_postcopy(), "{name}");
    }
}
