//! Which features are legal: where a guest goes, on this machine, with that destination, and together. One table: `migrate`
//! refuses by it, and `query-migrate-capabilities` and `query-migrate-features` show it, so they can't disagree.
//!
//! What no row speaks of is legal, alone and with any other.

use serde::Serialize;

use super::{CAPABILITIES, Capability, ConfigError, Kind, PARAMETERS, Parameter, Parameters, Scope, Setting};
use crate::channel::Uri;
use crate::ram::{ENCODINGS, Encoding, EncodingInfo};

/// Where a guest goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Peer,
    File,
}

/// What stands against a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// It goes this way.
    To(Way),
    /// There is one connection only.
    OneConnection,
    /// That is set too.
    With(&'static str),
    /// None of these is set.
    Without(&'static [&'static str]),
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// `migrate` refuses it.
    Refused,
    /// The guest moves without it.
    LeftOut,
    /// It is taken, and does nothing.
    Nothing,
}

/// One row.
struct Rule {
    /// A parameter, capability or encoding.
    feature: &'static str,
    /// This choice alone; none: whatever isn't the default.
    value: Option<&'static str>,
    when: When,
    effect: Effect,
    reason: &'static str,
    remedy: &'static str,
}

const fn refused(feature: &'static str, when: When, reason: &'static str, remedy: &'static str) -> Rule {
    Rule { feature, value: None, when, effect: Effect::Refused, reason, remedy }
}

const fn idle(feature: &'static str, without: &'static [&'static str], remedy: &'static str) -> Rule {
    let (when, reason) = (When::Without(without), "it does nothing alone");
    Rule { feature, value: None, when, effect: Effect::Nothing, reason, remedy }
}

const LEAVE_OUT: &str = "leave it out";

/// All rows but those that follow from the scopes in the tables.
const RULES: &[Rule] = &[
    refused("postcopy", When::To(Way::File), "it needs a running destination", LEAVE_OUT),
    refused("postcopy", When::OneConnection, "it needs a second connection", "give another address"),
    refused(
        "xbzrle",
        When::To(Way::File),
        "a file keeps the latest of each page, and changes need what was before",
        LEAVE_OUT,
    ),
    refused("channels", When::To(Way::File), "a file is no connection", "use file-threads"),
    refused("known", When::To(Way::File), "a file that needs another one is worth nothing alone", LEAVE_OUT),
    refused(
        "tls-creds",
        When::With("tls-psk"),
        "a side shows one identity, and tls-psk is another one",
        "leave one of the two out",
    ),
    Rule {
        value: Some("require"),
        ..refused(
            "tls",
            When::Without(&["tls-creds", "tls-psk"]),
            "it has no credentials",
            "give tls-creds or tls-psk",
        )
    },
    Rule {
        effect: Effect::LeftOut,
        ..refused("channels", When::OneConnection, "there is one connection only", "give another address")
    },
    idle("compress-level", &["compress"], "choose a method of compression"),
    idle("compress-threads", &["compress"], "choose a method of compression"),
    idle("xbzrle-cache-size", &["xbzrle"], "switch xbzrle on"),
    idle("on-timeout", &["max-total-time"], "set max-total-time"),
    idle("switchover-limit", &["pause-before-switchover"], "switch pause-before-switchover on"),
    idle("max-postcopy-bandwidth", &["postcopy"], "choose when post-copy begins"),
    idle("postcopy-hold", &["postcopy"], "choose when post-copy begins"),
    idle("tls-hostname", &["tls-creds"], "give tls-creds: a shared secret has no names"),
];

/// What a destination has said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its release.
    pub tern_version: String,
    /// Encodings that both sides have.
    pub encodings: Vec<&'static str>,
    /// Connections that it takes.
    pub channels: u32,
    /// It can compare all memory and state.
    pub proof: bool,
    /// Why post-copy isn't possible, and what to do; none: it is.
    pub postcopy: Option<(String, String)>,
    /// Pages that it has in files.
    pub known_pages: u64,
}

/// Something that this machine can't do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// A choice, such as `dirty-log`.
    pub parameter: &'static str,
    /// Its value.
    pub value: &'static str,
    /// Why not.
    pub reason: String,
}

/// All that a feature's legality depends on.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'s> {
    /// What is set.
    pub parameters: &'s Parameters,
    /// Where the guest goes; none: to any destination.
    pub uri: Option<&'s Uri>,
    /// What this machine can't do.
    pub here: &'s [Lack],
    /// The destination, if it was asked.
    pub peer: Option<&'s Peer>,
}

/// What stands against a feature, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// What follows.
    pub effect: Effect,
    /// Why.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

/// One feature, and what stands against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Legality {
    /// Such as `xbzrle` or `compress=zstd`.
    pub feature: String,
    /// `parameter`, `capability` or `encoding`.
    pub kind: &'static str,
    /// May it be used?
    pub legal: bool,
    /// Why not, or why it would do nothing.
    #[serde(flatten)]
    pub obstacle: Option<Obstacle>,
}

/// Two features, of which one forbids the other, or does nothing without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Combination {
    /// A feature.
    pub feature: String,
    /// It stands against that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with: Option<&'static str>,
    /// One of these it needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without: Option<&'static [&'static str]>,
    /// What follows, and why.
    #[serde(flatten)]
    pub obstacle: Obstacle,
}

/// Something that a migration may use.
#[derive(Clone, Copy)]
enum Feature {
    /// A parameter that isn't at its default; of a choice, this one.
    Parameter(&'static Parameter, Option<&'static str>),
    Capability(&'static Capability),
    Encoding(&'static EncodingInfo),
}

impl Feature {
    fn all() -> impl Iterator<Item = Self> {
        let parameters = PARAMETERS.iter().flat_map(|row| match &row.kind {
            Kind::Choice { names } => {
                names.iter().skip(1).map(|name| Self::Parameter(row, Some(name))).collect::<Vec<_>>()
            }
            _ => vec![Self::Parameter(row, None)],
        });
        let capabilities = CAPABILITIES.iter().map(Self::Capability);
        // What a capability or a choice asks for stands there.
        let encodings = ENCODINGS.iter().map(Self::Encoding);
        parameters.chain(capabilities).chain(encodings)
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Parameter(row, _) => row.name,
            Self::Capability(row) => row.name,
            Self::Encoding(row) => row.name,
        }
    }

    fn value(&self) -> Option<&'static str> {
        if let Self::Parameter(_, value) = self { *value } else { None }
    }

    fn shown(&self) -> String {
        self.value().map_or(self.name().to_owned(), |value| format!("{}={value}", self.name()))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Parameter(..) => "parameter",
            Self::Capability(_) => "capability",
            Self::Encoding(_) => "encoding",
        }
    }

    /// Is it asked for?
    fn is_set(&self, parameters: &Parameters) -> bool {
        match self {
            Self::Parameter(row, Some(value)) => row.get(parameters) == Setting::Choice(value),
            Self::Parameter(row, None) => row.get(parameters) != row.default(),
            Self::Capability(row) => row.get(&parameters.capabilities) != row.default,
            Self::Encoding(_) => false,
        }
    }

    /// What follows from whose a parameter or capability is.
    fn scope(&self, way: Way) -> Option<Obstacle> {
        let (reason, remedy) = match (self, way) {
            (Self::Parameter(row, _), _) if row.scope == Scope::Destination => {
                ("it is the destination's", "give it to `migrate-incoming` there")
            }
            (Self::Parameter(row, _), Way::Peer) if row.scope == Scope::Files => {
                ("it is for saving into a file (file:PATH)", LEAVE_OUT)
            }
            (Self::Capability(row), Way::Peer) if row.files_only => {
                ("it is for saving into a file (file:PATH)", LEAVE_OUT)
            }
            _ => return None,
        };
        Some(Obstacle { effect: Effect::Refused, reason: reason.to_owned(), remedy: remedy.to_owned() })
    }

    /// What the destination lacks for it.
    fn lacking(&self, peer: &Peer) -> Option<Obstacle> {
        let release = || format!("the destination's tern {} does not have it", peer.tern_version);
        let newer = || "take a newer release there".to_owned();
        let encoding = match self {
            Self::Encoding(row) => Some(row.name),
            Self::Capability(row) if row.name == Encoding::Xbzrle.info().name => Some(row.name),
            Self::Parameter(row, value) if row.name == "compress" => *value,
            _ => None,
        };
        let lacks = |name| ENCODINGS.iter().any(|row| row.name == name) && !peer.encodings.contains(&name);
        let (reason, remedy) = match (self.name(), encoding) {
            ("known", Some(_)) if peer.known_pages == 0 => {
                ("the destination knows no pages".to_owned(), "start it with --known FILE".to_owned())
            }
            (_, Some(name)) if lacks(name) => (release(), newer()),
            ("channels", None) if peer.channels <= 1 => (
                "the destination has one connection only".to_owned(),
                "let it wait at another address".to_owned(),
            ),
            ("verify", None) if !peer.proof => (release(), newer()),
            ("postcopy", None) => {
                let (reason, remedy) = peer.postcopy.clone()?;
                return Some(Obstacle { effect: Effect::Refused, reason, remedy });
            }
            _ => return None,
        };
        Some(Obstacle { effect: Effect::LeftOut, reason, remedy })
    }

    /// What stands against it, the gravest first.
    fn obstacle(&self, way: Way, scene: &Scene<'_>) -> Option<Obstacle> {
        let here =
            scene.here.iter().find(|lack| (lack.parameter, Some(lack.value)) == (self.name(), self.value()));
        let here = here.map(|lack| Obstacle {
            effect: Effect::Refused,
            reason: lack.reason.clone(),
            remedy: LEAVE_OUT.to_owned(),
        });
        let mut rules =
            RULES.iter().filter(|rule| rule.speaks_of(self) && rule.holds(way, scene)).map(Rule::obstacle);
        self.scope(way)
            .or(here)
            .or_else(|| rules.next())
            .or_else(|| self.lacking(scene.peer.filter(|_| way == Way::Peer)?))
    }

    fn legality(self, way: Way, scene: &Scene<'_>) -> Legality {
        let obstacle = self.obstacle(way, scene);
        let legal = obstacle.as_ref().is_none_or(|obstacle| obstacle.effect == Effect::Nothing);
        Legality { feature: self.shown(), kind: self.kind(), legal, obstacle }
    }
}

impl Rule {
    fn speaks_of(&self, feature: &Feature) -> bool {
        self.feature == feature.name() && (self.value.is_none() || self.value == feature.value())
    }

    fn holds(&self, way: Way, scene: &Scene<'_>) -> bool {
        let set =
            |name: &str| Feature::all().any(|other| other.name() == name && other.is_set(scene.parameters));
        match self.when {
            When::To(to) => to == way,
            When::OneConnection => way == Way::Peer && matches!(scene.uri, Some(Uri::Fd { .. })),
            When::With(other) => set(other),
            When::Without(others) => !others.iter().any(|other| set(other)),
        }
    }

    fn obstacle(&self) -> Obstacle {
        let Self { effect, reason, remedy, .. } = *self;
        Obstacle { effect, reason: reason.to_owned(), remedy: remedy.to_owned() }
    }
}

/// All features, for a guest that goes to a destination.
pub fn to_peer(scene: &Scene<'_>) -> Vec<Legality> {
    Feature::all().map(|feature| feature.legality(Way::Peer, scene)).collect()
}

/// All features, for a guest that is saved into a file.
pub fn to_file(scene: &Scene<'_>) -> Vec<Legality> {
    Feature::all().map(|feature| feature.legality(Way::File, scene)).collect()
}

/// What stands between two features; all others go together.
pub fn combinations() -> Vec<Combination> {
    let combination = |rule: &Rule| {
        let (with, without) = match rule.when {
            When::With(other) => (Some(other), None),
            When::Without(others) => (None, Some(others)),
            _ => return None,
        };
        let value = rule.value.map(|value| format!("={value}")).unwrap_or_default();
        Some(Combination {
            feature: format!("{}{value}", rule.feature),
            with,
            without,
            obstacle: rule.obstacle(),
        })
    };
    RULES.iter().filter_map(combination).collect()
}

/// Why these parameters are refused for that address, if they are.
pub fn refusal(scene: &Scene<'_>, uri: &Uri) -> Result<(), ConfigError> {
    let way = if matches!(uri, Uri::File { .. }) { Way::File } else { Way::Peer };
    for feature in Feature::all().filter(|feature| feature.is_set(scene.parameters)) {
        if let Some(Obstacle { effect: Effect::Refused, reason, remedy }) = feature.obstacle(way, scene) {
            let (feature, uri) = (feature.shown(), uri.to_string());
            return Err(ConfigError::NotLegal { feature, uri, reason, remedy });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::other;

    const URIS: [&str; 4] = ["tcp:b:1", "unix:/b", "fd:7", "file:/b"];

    /// With this feature alone.
    fn only(feature: &Feature) -> Parameters {
        let mut parameters = Parameters::default();
        match feature {
            Feature::Parameter(row, Some(value)) => parameters.set(row.name, Setting::Choice(value)).unwrap(),
            Feature::Parameter(row, None) => parameters.set(row.name, other(row)).unwrap(),
            Feature::Capability(row) => {
                let list = serde_json::json!([{"capability": row.name, "state": !row.default}]);
                parameters.capabilities = parameters.capabilities.merged(&list).unwrap();
            }
            Feature::Encoding(_) => {}
        }
        parameters
    }

    fn listed(scene: &Scene<'_>, uri: &Uri) -> Vec<Legality> {
        if matches!(uri, Uri::File { .. }) { to_file(scene) } else { to_peer(scene) }
    }

    #[test]
    fn what_is_refused_is_listed_and_what_is_listed_is_refused() {
        let here = [Lack { parameter: "dirty-log", value: "ring", reason: "no rings were made".to_owned() }];
        let mut refusals = 0;
        for uri in URIS {
            let uri: Uri = uri.parse().unwrap();
            for one in Feature::all() {
                for two in Feature::all() {
                    let mut parameters = only(&one);
                    if let Feature::Parameter(row, _) = two {
                        parameters.set(row.name, row.get(&only(&two))).unwrap();
                    }
                    let scene = Scene { parameters: &parameters, uri: Some(&uri), here: &here, peer: None };
                    let refused = refusal(&scene, &uri);
                    let set: Vec<String> =
                        Feature::all().filter(|f| f.is_set(&parameters)).map(|f| f.shown()).collect();
                    let listed: Vec<Legality> = listed(&scene, &uri);
                    let against: Vec<&Legality> = listed
                        .iter()
                        .filter(|row| set.contains(&row.feature) && row.kind != "encoding")
                        .filter(|row| row.obstacle.as_ref().is_some_and(|o| o.effect == Effect::Refused))
                        .collect();
                    assert_eq!(refused.is_err(), !against.is_empty(), "{uri} {set:?}: {refused:?}");
                    if let Err(error) = refused {
                        refusals += 1;
                        let text = error.to_string();
                        let first = against[0].obstacle.as_ref().unwrap();
                        assert!(text.contains(&first.reason) && text.contains(&first.remedy), "{text}");
                    }
                }
            }
        }
        assert!(refusals > 500, "{refusals}");
    }

    #[test]
    fn every_row_is_of_something_that_exists() {
        let exists = |name: &str| Feature::all().any(|feature| feature.name() == name);
        for rule in RULES {
            assert!(Feature::all().any(|feature| rule.speaks_of(&feature)), "{}", rule.feature);
            match rule.when {
                When::With(other) => assert!(exists(other)),
                When::Without(others) => assert!(others.iter().all(|other| exists(other))),
                _ => {}
            }
        }
        assert!(combinations().iter().any(|pair| pair.feature == "tls=require" && pair.without.is_some()));
    }

    #[test]
    fn what_a_destination_lacks_is_left_out_with_a_reason() {
        let parameters = Parameters::default();
        let peer = Peer {
            tern_version: "0.0.9".to_owned(),
            encodings: vec!["zero", "raw", "lz4"],
            channels: 1,
            proof: false,
            postcopy: Some(("can't do it".to_owned(), "take another kernel".to_owned())),
            known_pages: 0,
        };
        let scene = Scene { parameters: &parameters, uri: None, here: &[], peer: Some(&peer) };
        let all = to_peer(&scene);
        let find = |name: &str| all.iter().filter(|row| row.feature == name).collect::<Vec<_>>();
        for name in ["compress=zstd", "xbzrle", "channels", "verify", "postcopy=manual", "known"] {
            let rows = find(name);
            assert!(!rows.is_empty() && rows.iter().all(|row| !row.legal), "{name}: {rows:?}");
        }
        for name in ["compress=lz4", "lz4", "raw", "max-bandwidth", "compress=auto"] {
            assert!(find(name).iter().all(|row| row.legal), "{name}");
        }
        // A file doesn't depend on any destination.
        assert!(to_file(&scene).iter().any(|row| row.feature == "compress=zstd" && row.legal));
    }
}
