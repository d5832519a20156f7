//! Saves over a file that fails, is cancelled or is interfered with at each of its calls.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// The guest makes pages zero that an earlier round has stored.
struct Zeroing(FakeGuest);

impl Observer for Zeroing {
    /// Told just before the guest is stopped.
    fn status(&self, status: Status) {
        if status == Status::Device {
            [0, 3, 6, 7, 8].into_iter().for_each(|page| assert!(self.0.zero_page(1, page)));
        }
    }
    fn pass(&self, _: u32) {}
}

#[test]
fn a_page_that_turns_zero_again_is_zero_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for holes in [true, false] {
        let path = folder.path().join("vm");
        let options =
            Options { touched_every: 1, writes_per_call: 1, working_set_pages: 60, ..Options::default() };
        let vm = FakeVm::booted(options).unwrap();
        let control = Control::new(Side::Source, Box::new(Zeroing(vm.guest()))).unwrap();
        let plan = Plan { no_holes: !holes, ..Plan::default() };
        let end = save_over(vm, &path, plan, &control);
        assert!(matches!(end.outcome, Outcome::Saved { .. }), "{:?}", end.outcome);
        assert_holds(&path, &end.vm);
        let snapshot = SnapshotFile::open(&path).unwrap();
        assert!([0, 3, 6, 7, 8].into_iter().all(|page| snapshot.page(1, page).unwrap().is_zero()));
        assert!(!snapshot.page(1, 9).unwrap().is_zero());
    }
}

/// What a [`Troubled`] file does at one of its calls.
#[derive(Default)]
struct Plan {
    fail_at: Option<u32>,
    errno: i32,
    cancel_at: Option<(u32, Arc<Control>)>,
    no_holes: bool,
    /// Calls by name.
    calls: Arc<Mutex<Vec<&'static str>>>,
}

/// A file that fails where a test wants it.
struct Troubled {
    inner: Partial,
    plan: Plan,
    made: AtomicU32,
}

impl Troubled {
    fn call(&self, name: &'static str) -> io::Result<()> {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        self.plan.calls.lock().unwrap().push(name);
        if let Some((_, control)) = self.plan.cancel_at.as_ref().filter(|(at, _)| *at == number) {
            control.cancel();
        }
        match self.plan.fail_at {
            Some(at) if at == number => Err(io::Error::from_raw_os_error(self.plan.errno)),
            _ => Ok(()),
        }
    }
}

impl Medium for Troubled {
    fn write_pages(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.call("write_pages")?;
        self.inner.write_pages(bytes, offset)
    }
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.call("write")?;
        self.inner.write(bytes, offset)
    }
    fn clear(&self, range: Range<u64>) -> io::Result<()> {
        self.call("clear")?;
        if self.plan.no_holes { self.inner.clear_by_writing(range) } else { self.inner.clear(range) }
    }
    fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.call("set_length")?;
        self.inner.set_length(bytes)
    }
    fn sync_part(&self, range: Range<u64>) {
        // Can't fail.
        let _ = self.call("sync_part");
        self.inner.sync_part(range);
    }
    fn sync(&self) -> io::Result<()> {
        self.call("sync")?;
        self.inner.sync()
    }
    fn check_place(&self) -> Result<(), SaveError> {
        self.inner.check_place()
    }
    fn publish(&self) -> io::Result<()> {
        self.call("publish")?;
        self.inner.publish()
    }
    fn sync_folder(&self) -> io::Result<()> {
        self.call("sync_folder")?;
        self.inner.sync_folder()
    }
}

fn save_over(vm: FakeVm, path: &Path, plan: Plan, control: &Arc<Control>) -> SourceEnd<FakeVm> {
    let inner = Partial::create(path, false).unwrap();
    let medium = Box::new(Troubled { inner, plan, made: AtomicU32::new(0) });
    let live = live(r#"{"file-threads": 1}"#);
    let file = SaveFile::over(medium, path, &live, control);
    let route = Route::new(&Uri::File { path: path.to_owned() });
    source::carry(vm, Box::new(file), route, &live, control)
}

#[test]
fn whatever_fails_the_guest_goes_on_and_the_older_file_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let mut seen = BTreeSet::new();
    for (number, errno) in (0..).zip([libc::ENOSPC, libc::EIO].into_iter().cycle()) {
        fs::write(&path, OLDER).unwrap();
        let vm = restless();
        let control = Control::new(Side::Source, Box::new(Zeroing(vm.guest()))).unwrap();
        let plan = Plan { fail_at: Some(number), errno, ..Plan::default() };
        let calls = Arc::clone(&plan.calls);
        let end = save_over(vm, &path, plan, &control);
        let Some(name) = calls.lock().unwrap().get(number as usize).copied() else {
            assert!(matches!(end.outcome, Outcome::Saved { .. }), "{:?}", end.outcome);
            break;
        };
        seen.insert(name);
        assert_eq!(files(folder.path()), ["vm"], "{name} number {number}");
        match end.outcome {
            Outcome::Failed(error) => {
                let code = if errno == libc::ENOSPC { "disk-full" } else { "file-write" };
                assert_eq!(error.code(), code, "{}", error.text());
                assert!(error.text().contains("save to another"), "{}", error.text());
                assert!(
                    end.vm.is_running()
                        && end.vm.calls(Call::DirtyLogStop) == end.vm.calls(Call::DirtyLogStart)
                );
            }
            // Only a hint to the kernel; and what comes once the file has its name.
            Outcome::Saved { .. } => {
                let warnings = control.report().warnings;
                let warned =
                    matches!(&warnings[..], [one] if one.contains("may not survive a power failure"));
                let expected = if warned { "sync_folder" } else { "sync_part" };
                assert_eq!((name, warnings.len()), (expected, usize::from(warned)), "{warnings:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
        let kept = fs::read(&path).unwrap() == OLDER.as_bytes();
        assert_eq!(kept, !["sync_part", "sync_folder"].contains(&name), "{name} number {number}");
    }
    let all = ["clear", "publish", "set_length", "sync", "sync_folder", "sync_part", "write", "write_pages"];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
}

#[test]
fn a_cancel_in_any_phase_leaves_nothing_until_the_file_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    for number in 0.. {
        fs::write(&path, OLDER).unwrap();
        let control = control();
        let plan = Plan { cancel_at: Some((number, Arc::clone(&control))), ..Plan::default() };
        let calls = Arc::clone(&plan.calls);
        let end = save_over(restless(), &path, plan, &control);
        let name = calls.lock().unwrap().get(number as usize).copied();
        assert_eq!(files(folder.path()), ["vm"], "{name:?} number {number}");
        let kept = fs::read(&path).unwrap() == OLDER.as_bytes();
        match end.outcome {
            Outcome::Cancelled => assert!(kept && end.vm.is_running(), "{name:?}"),
            Outcome::Saved { .. } => assert!(!kept && matches!(name, None | Some("publish" | "sync_folder"))),
            other => panic!("{name:?}: {other:?}"),
        }
        if name.is_none() {
            break;
        }
    }
}

/// Somebody puts another file where the save goes.
struct Intruding(PathBuf);

impl Observer for Intruding {
    fn status(&self, status: Status) {
        if status == Status::Device {
            fs::write(&self.0, "a person's notes").unwrap();
        }
    }
    fn pass(&self, _: u32) {}
}

#[test]
fn a_file_that_appears_meanwhile_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let control = Control::new(Side::Source, Box::new(Intruding(path.clone()))).unwrap();
    let end = save_over(restless(), &path, Plan::default(), &control);
    let Outcome::Failed(error) = end.outcome else { panic!("{:?}", end.outcome) };
    assert_eq!(error.code(), "not-a-snapshot", "{}", error.text());
    assert!(end.vm.is_running() && fs::read(&path).unwrap() == b"a person's notes");
    assert_eq!(files(folder.path()), ["vm"]);
}
