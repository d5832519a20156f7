//! How soon a cancel is carried out when the peer says and takes nothing any more.
//!
//! A proxy stops the stream in each phase before COMMIT. Timed from just before `migrate_cancel` is sent until the event
//! `MIGRATION cancelled`, which comes when the guest goes on as before. The same guest is moved again and again.

use std::io;
use std::time::Instant;

use serde_json::json;
use tern_tests::limit::wait_for;
use tern_tests::{Direction, Fault, Frame, Place, Proxy};

use crate::contender::{Machine, Process, Vmm};
use crate::plan::{Plan, Transport};
use crate::pulse_lines::is_ready;
use crate::table::{Aim, Figure, Group};

const CMDLINE: &str = "ws=84M rate=5000 content=random";

/// Where the stream stops, and what the source waits for then.
const PHASES: [(&str, Direction, Place); 4] = [
    ("setup: no answer to the offer", Direction::ToSource, Place::Before(Frame::Agreed)),
    ("active: nothing is taken", Direction::ToDestination, Place::Inside(Frame::Pages)),
    ("device: the state is not taken", Direction::ToDestination, Place::Before(Frame::State)),
    ("device: not prepared", Direction::ToSource, Place::Before(Frame::Prepared)),
];

fn cancel(source: &Process, target: &str, direction: Direction, place: Place, channels: u32) -> f64 {
    let proxy = Proxy::with(target, direction, place, Fault::Hold);
    let mut near = source.qmp();
    near.execute("migrate", json!({ "uri": proxy.uri(), "parameters": { "channels": channels } }));
    proxy.wait_fault();
    let began = Instant::now();
    near.execute("migrate_cancel", json!({}));
    near.wait_status_event(&["cancelled"]);
    began.elapsed().as_secs_f64() * 1e3
}

/// In each phase, over one connection and over four.
pub fn measure(plan: &Plan) -> io::Result<Group> {
    let machine = Machine::pulse(&plan.pulse, CMDLINE);
    let destination = machine.await_guest(Vmm::Tern, &plan.programs)?;
    let source = machine.boot(Vmm::Tern, &plan.programs)?;
    let target = crate::migration::listen(&destination, Transport::Unix)?;
    wait_for("pulse to have filled its memory", || is_ready(&source.serial()).then_some(()));
    let mut figures = Vec::new();
    for (name, direction, place) in PHASES {
        let found = plan.turns_of(&[Vmm::Tern], "cancels", plan.runs, |_| {
            Ok([1, 4].map(|channels| cancel(&source, &target, direction, place, channels)))
        })?;
        let figure = |(pair, channels)| {
            Figure::new(format!("{name}, {channels} channels"), "ms", pair, Some(Aim::Below(200.0)))
        };
        figures.extend(found.into_iter().zip([1, 4]).map(figure));
    }
    let setting = "from migrate_cancel until the guest goes on, with a peer that stands still; pulse, 1 GiB";
    Ok(Group { name: "cancel", setting: setting.to_owned(), figures, notes: Vec::new() })
}
