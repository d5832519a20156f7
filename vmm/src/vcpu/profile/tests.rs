//! A profile's file, read and written.

use proptest::prelude::*;

use super::{AddressBits, FILE_LIMIT_BYTES, Fault, HostNote, Profile};
use crate::vcpu::{Feature, FeatureSet, Place};

#[test]
fn the_profiles_inside_are_files_of_their_names() {
    for name in Profile::names() {
        assert_eq!(Profile::named(name).unwrap().name, name);
    }
}

#[test]
fn each_level_has_the_one_below() {
    let levels: Vec<Profile> = Profile::names().map(|name| Profile::named(name).unwrap()).collect();
    for pair in levels.windows(2) {
        let lost = pair[0].features.without(&pair[1].features);
        assert!(lost.is_empty(), "{} lacks {lost} of {}", pair[1].name, pair[0].name);
    }
    for feature in Feature::all() {
        let both =
            levels.iter().find(|level| level.features.contains(feature) && level.optional.contains(feature));
        assert!(both.is_none(), "{feature} is required and optional");
    }
}

#[test]
fn an_unknown_profile_is_told_which_exist() {
    let text = Profile::named("x86-64-v9").unwrap_err().to_string();
    assert!(text.contains("host, x86-64-v1, x86-64-v2, x86-64-v3"), "{text}");
}

fn v1() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../cpu/x86-64-v1.json")).unwrap()
}

fn fault(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut file = v1();
    change(&mut file);
    Profile::parse(serde_json::to_string_pretty(&file).unwrap().as_bytes()).unwrap_err().to_string()
}

#[test]
fn errors_name_the_place_and_what_is_legal() {
    type Case = (fn(&mut serde_json::Value), &'static [&'static str]);
    let cases: [Case; 15] = [
        (
            |file| file["features"][2] = "sse4.2".into(),
            &["\"sse4.2\"", "near it are sse4_1, sse4_2", "line ", "column"],
        ),
        (|file| file["features"][2] = "osxsave".into(), &["osxsave is in no profile"]),
        (|file| file["features"][2] = 7.into(), &["expected the name of a CPU feature", "line"]),
        (|file| file["feature"] = "x".into(), &["unknown field `feature`", "`features`"]),
        (|file| file["tern-cpu-profile"] = 2.into(), &["version 2", "reads version 1", "newer tern"]),
        (|file| file["name"] = "".into(), &["\"name\" has 0 bytes", "1 to 255"]),
        (|file| file["name"] = "a\nb".into(), &["control characters"]),
        (|file| file["vendor"] = "Intel".into(), &["\"vendor\"", "12 to 12"]),
        (
            |file| file["address-bits"] = serde_json::json!({"physical": 60, "linear": 48}),
            &["physical is 60", "36 to 52"],
        ),
        (|file| file["optional"][0] = "sse2".into(), &["sse2: in \"features\" and in \"optional\""]),
        (|file| file["features"] = serde_json::json!(["fpu"]), &["lacks", "lm", "every guest"]),
        (|file| file["optional"][0] = "avx2".into(), &["avx2 needs avx", "\"optional\""]),
        (
            |file| file["raw"] = serde_json::json!([{"register": "cpuid 0x7.0x0", "features": "0x1"}]),
            &["cpuid 0x7.0x0 ebx", "line"],
        ),
        (
            |file| file["raw"] = serde_json::json!([{"register": "cpuid 0x4.0x0 eax", "features": "0x1"}]),
            &["isn't a register of features"],
        ),
        (
            |file| file["raw"] = serde_json::json!([{"register": "msr 0x10a", "features": "17"}]),
            &["not a number", "0x8000"],
        ),
    ];
    for (change, expected) in cases {
        let text = fault(change);
        assert!(expected.iter().all(|part| text.contains(part)), "{expected:?}: {text}");
    }
}

#[test]
fn what_is_no_profile_is_refused() {
    for text in ["", "{", "[]", "{}", "{\"tern-cpu-profile\": 1}", "\u{0}", "nul"] {
        assert!(matches!(Profile::parse(text.as_bytes()), Err(Fault::Shape { .. })), "{text}");
    }
    let deep = "[".repeat(FILE_LIMIT_BYTES);
    assert!(matches!(Profile::parse(deep.as_bytes()), Err(Fault::Shape { .. })));
    let long = vec![b' '; FILE_LIMIT_BYTES + 1];
    assert_eq!(Profile::parse(&long), Err(Fault::TooLong { limit_bytes: FILE_LIMIT_BYTES }));
}

#[test]
fn a_host_with_every_feature_fits_into_a_file() {
    let mut profile = Profile::named("x86-64-v1").unwrap();
    let all =
        [Place::Msr { index: 0x10a }].into_iter().chain(Feature::all().filter_map(|f| Some(f.place()?.0)));
    profile.features =
        all.fold(FeatureSet::default(), |set, place| set.or(&FeatureSet::of_bits(place, !0).unwrap()));
    profile.optional = FeatureSet::default();
    let text = profile.to_json();
    assert!(text.len() * 10 < FILE_LIMIT_BYTES, "{}", text.len());
    assert_eq!(Profile::parse(text.as_bytes()).unwrap(), profile);
}

fn features() -> impl Strategy<Value = FeatureSet> {
    let places: Vec<Place> = Feature::all().filter_map(|feature| Some(feature.place()?.0)).collect();
    let bits = proptest::collection::vec((proptest::sample::select(places), any::<u64>()), 0..40);
    bits.prop_map(|list| {
        let each =
            |set: FeatureSet, (place, bits)| set.or(&FeatureSet::of_bits(place, bits).unwrap_or_default());
        list.into_iter().fold(FeatureSet::default(), each)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(more in features(), optional in features(), name in "[a-z]{1,20}", physical in 36u8..53) {
        let mut profile = Profile::named("x86-64-v1").unwrap();
        profile.name = name;
        profile.features = profile.features.or(&more);
        profile.optional = optional.without(&profile.features);
        profile.address_bits = Some(AddressBits { physical, linear: 57 });
        profile.host = Some(HostNote { kvm: "k".into(), tsc_khz: 1, tsc_scaling: true, forced: FeatureSet::default() });
        profile.drop_needy();
        let read = Profile::parse(profile.to_json().as_bytes());
        prop_assert_eq!(read.unwrap(), profile);
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Profile::parse(&bytes);
    }

    #[test]
    fn any_damage_is_answered(at in 0usize..1000, with in any::<u8>()) {
        let mut bytes = include_bytes!("../../../cpu/x86-64-v1.json").to_vec();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(read) = Profile::parse(&bytes) {
            prop_assert_eq!(Profile::parse(read.to_json().as_bytes()).unwrap(), read);
        }
    }
}
