//! How devices give and take their state: parse all, check all, then apply.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tern_schema::{Section, SectionRange, StateError, StateSet};
use thiserror::Error;

/// Why a device can't take a saved state. Nothing has been applied then.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// The section is absent or damaged.
    #[error(transparent)]
    State(#[from] StateError),
    /// A field has a value that the device can never have.
    #[error("{record}.{field}: {found:#x} is impossible, {expected}")]
    Field {
        /// Saved type.
        record: &'static str,
        /// Field.
        field: &'static str,
        /// Value in the state.
        found: u64,
        /// What is possible, in words.
        expected: &'static str,
    },
    /// A queue of a virtio device can't be as the state says.
    #[error("{record} queue {queue}, {field}: {found:#x} is impossible, {expected}")]
    Queue {
        /// Saved type.
        record: &'static str,
        /// Queue's number.
        queue: usize,
        /// Field.
        field: &'static str,
        /// Value in the state.
        found: u64,
        /// What is possible, in words.
        expected: &'static str,
    },
    /// The device here is configured otherwise than where the state was saved.
    #[error("{record}: {what} is {here} here, but the state was saved with {saved}; start both sides alike")]
    Differs {
        /// Saved type.
        record: &'static str,
        /// What differs.
        what: &'static str,
        /// Value in the state.
        saved: String,
        /// Value of this device.
        here: String,
    },
    /// The device could not be started with what the guest had negotiated.
    #[error("{record}: the device could not be started on this host: {source}")]
    Activate {
        /// Saved type.
        record: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// A device whose state travels.
pub trait Stateful: Send {
    /// The saved type.
    type Saved: Section + Send;
    /// The state. The device must be quiet (see `MmioDevice::pause`), and may go on afterwards.
    fn save(&self) -> Self::Saved;
    /// Could this device take `saved`? Changes nothing.
    fn check(&self, saved: &Self::Saved) -> Result<(), RestoreError>;
    /// Takes `saved`, after checking it. Interrupts that were under way are raised again.
    fn restore(&mut self, saved: Self::Saved) -> Result<(), RestoreError>;
    /// Why the machine can't be moved or saved now, if this device has state that no section holds; in words
    /// that name the device and the remedy.
    fn blocked(&self) -> Option<String> {
        None
    }
}

/// The last step of a restore; see [`Part::prepare`].
pub type Apply = Box<dyn FnOnce() -> Result<(), RestoreError> + Send>;

/// One row of the VMM's table of what migrates.
pub trait Part: Send + Sync {
    /// Section's name and instance, the versions in which it can be saved and taken, and whether a machine
    /// without this part may pass over it.
    fn offer(&self) -> SectionRange;
    /// Adds the state to `set`, in the version that its reader has chosen.
    fn put(&self, set: &mut StateSet) -> Result<(), StateError>;
    /// Parses and checks this part's section. The device changes only when the result is called. An
    /// optional part whose section is absent stays as it is.
    fn prepare(&self, set: &mut StateSet) -> Result<Apply, RestoreError>;
    /// Why the machine can't be moved or saved now, if this part forbids it.
    fn blocked(&self) -> Option<String>;
}

struct Row<S> {
    device: Arc<Mutex<S>>,
    instance: u32,
}

/// A row for `device`.
pub fn part<S: Stateful + 'static>(device: Arc<Mutex<S>>, instance: u32) -> Box<dyn Part> {
    Box::new(Row { device, instance })
}

impl<S: Stateful + 'static> Part for Row<S> {
    fn offer(&self) -> SectionRange {
        SectionRange::of::<S::Saved>(self.instance)
    }

    fn put(&self, set: &mut StateSet) -> Result<(), StateError> {
        set.put(self.instance, &lock(&self.device).save())
    }

    fn prepare(&self, set: &mut StateSet) -> Result<Apply, RestoreError> {
        let (name, instance) = (S::Saved::NAME, self.instance);
        let saved = match set.take_if_there::<S::Saved>(instance)? {
            Some(saved) => saved,
            None if S::Saved::OPTIONAL => return Ok(Box::new(|| Ok(()))),
            None => return Err(StateError::Missing { name, instance }.into()),
        };
        lock(&self.device).check(&saved)?;
        let device = Arc::clone(&self.device);
        Ok(Box::new(move || lock(&device).restore(saved)))
    }

    fn blocked(&self) -> Option<String> {
        lock(&self.device).blocked()
    }
}

/// Locks. A thread that panicked has ended the process (`panic = "abort"`), so poison means a test.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BusDevice, I8042};
    use vmm_sys_util::eventfd::EventFd;

    fn chip() -> Arc<Mutex<I8042>> {
        Arc::new(Mutex::new(I8042::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())))
    }

    #[test]
    fn a_part_changes_only_when_it_is_applied() {
        let source = chip();
        lock(&source).write(4, &[0xd1]);
        let mut set = StateSet::default();
        part(Arc::clone(&source), 3).put(&mut set).unwrap();
        let destination = chip();
        let row = part(Arc::clone(&destination), 3);
        let offer = row.offer();
        assert_eq!((offer.name, offer.instance, offer.newest, offer.optional), ("i8042", 3, 1, false));
        let apply = row.prepare(&mut set).unwrap();
        assert_eq!(lock(&destination).save(), lock(&chip()).save());
        apply().unwrap();
        assert_eq!(lock(&destination).save(), lock(&source).save());
        assert!(matches!(row.prepare(&mut set), Err(RestoreError::State(StateError::Missing { .. }))));
    }
}
