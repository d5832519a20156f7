//! The cache of built things: a directory per thing, named by what went into it.
//!
//! ```text
//! locks/KEY         held (flock) while KEY is built; the kernel drops it with the process
//! building/KEY.PID/ where it is built: no other process writes there, whatever a killed one has left running
//! KEY/              finished: a rename put it there, so it is complete or absent
//! ```

use crate::{ImageError, hash::Parts};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A cache directory. Any number of processes may use it at once.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// A cache below `root`, which is created when needed.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Cache { root: root.into() }
    }

    /// The user's cache: `$XDG_CACHE_HOME/tern`, or `$HOME/.cache/tern`.
    pub fn of_user() -> Result<Self, ImageError> {
        // The XDG specification says to ignore relative paths.
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        base.map(|base| Cache::at(base.join("tern"))).ok_or(ImageError::NoCacheDirectory)
    }

    /// Where finished things are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A key for a thing called `name` that is made of these parts.
    pub fn key(name: &str, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
        let hash = parts.into_iter().fold(Parts::default(), |hash, part| hash.add(part));
        format!("{name}-{}", hash.short())
    }

    /// Removes all finished things whose key starts with `prefix` but the `count` newest.
    pub fn keep_newest(&self, prefix: &str, count: usize) {
        let mut found = self.named(prefix);
        found.sort();
        let surplus = found.len().saturating_sub(count);
        for (_, path) in found.into_iter().take(surplus) {
            // One that stays is looked at the next time.
            let _ = fs::remove_dir_all(path);
        }
    }

    /// The finished thing called `key`, if there is one.
    pub(crate) fn get(&self, key: &str) -> Option<PathBuf> {
        Some(self.root.join(key)).filter(|path| path.is_dir())
    }

    /// The newest finished thing whose key starts with `prefix`.
    pub(crate) fn newest(&self, prefix: &str) -> Option<PathBuf> {
        self.named(prefix).into_iter().max().map(|(_, path)| path)
    }

    fn named(&self, prefix: &str) -> Vec<(SystemTime, PathBuf)> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect()
    }

    /// The finished thing called `key`, built by `fill` in an empty directory if there is none yet.
    ///
    /// If another process builds it, `waiting` is called once and then that one's result is awaited.
    pub fn get_or_build(
        &self,
        key: &str,
        waiting: impl FnOnce(),
        fill: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        if let Some(found) = self.get(key) {
            return Ok(found);
        }
        let _lock = self.lock(key, waiting)?;
        if let Some(found) = self.get(key) {
            return Ok(found);
        }
        self.remove_stale(key)?;
        let building = self.root.join("building");
        create(&building)?;
        let draft = Draft(building.join(format!("{key}.{}", std::process::id())));
        // One that is there already could not be removed, and holds we don't know what.
        fs::create_dir(&draft.0).map_err(ImageError::io("create the directory", &draft.0))?;
        fill(&draft.0)?;
        let finished = self.root.join(key);
        sync_tree(&draft.0)?;
        fs::rename(&draft.0, &finished).map_err(ImageError::io("move the finished image to", &finished))?;
        sync(&self.root)?;
        Ok(finished)
    }

    fn lock_file(&self, key: &str) -> Result<File, ImageError> {
        let locks = self.root.join("locks");
        create(&locks)?;
        let path = locks.join(key);
        File::create(&path).map_err(ImageError::io("create the lock", path))
    }

    fn lock(&self, key: &str, waiting: impl FnOnce()) -> Result<File, ImageError> {
        let file = self.lock_file(key)?;
        let failed = ImageError::io("lock", self.root.join("locks").join(key));
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => waiting(),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        file.lock().map_err(failed)?;
        Ok(file)
    }

    /// Removes what interrupted builds left: drafts whose lock nobody holds. `own` is locked by us.
    fn remove_stale(&self, own: &str) -> Result<(), ImageError> {
        let Ok(drafts) = fs::read_dir(self.root.join("building")) else { return Ok(()) };
        for draft in drafts.flatten() {
            let name = draft.file_name();
            let Some(name) = name.to_str() else { continue };
            let key = name.rsplit_once('.').map_or(name, |(key, _pid)| key);
            let _lock = if key == own { None } else { Some(self.lock_file(key)?) };
            if _lock.as_ref().is_none_or(|lock| lock.try_lock().is_ok()) {
                // A killed build's tools may still be ending, and writing: what stays is removed next time.
                let _ = fs::remove_dir_all(draft.path());
            }
        }
        Ok(())
    }
}

/// A directory that goes away unless it was renamed.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // What remains here is removed by the next build; there is nobody to tell.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn create(path: &Path) -> Result<(), ImageError> {
    fs::create_dir_all(path).map_err(ImageError::io("create the directory", path))
}

fn sync(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::io("write to disk", path))
}

/// Makes a finished draft durable before it gets its name. Drafts are flat.
fn sync_tree(directory: &Path) -> Result<(), ImageError> {
    let entries = fs::read_dir(directory).map_err(ImageError::io("list", directory))?;
    for entry in entries.flatten() {
        sync(&entry.path())?;
    }
    sync(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::at(directory.path().join("tern"));
        (directory, cache)
    }

    fn write(directory: &Path, text: &str) -> Result<(), ImageError> {
        fs::write(directory.join("file"), text).map_err(ImageError::io("write", directory))
    }

    fn build(cache: &Cache, key: &str, text: &str) -> PathBuf {
        cache.get_or_build(key, || panic!("nobody else builds"), |to| write(to, text)).unwrap()
    }

    #[test]
    fn a_second_build_finds_the_first() {
        let (_keep, cache) = cache();
        let first = build(&cache, "k", "one");
        let second = cache.get_or_build("k", || (), |_| panic!("built twice")).unwrap();
        assert_eq!(first, second);
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "one");
        assert_ne!(build(&cache, "other", "two"), second);
    }

    #[test]
    fn all_but_the_newest_are_removed() {
        let (_keep, cache) = cache();
        let keys = ["a", "b", "c"].map(|part| Cache::key("thing", [part]));
        for (age_s, key) in [1, 2, 3].into_iter().rev().zip(&keys) {
            let made = build(&cache, key, "whole");
            let time = SystemTime::now() - Duration::from_secs(age_s);
            File::open(made).unwrap().set_modified(time).unwrap();
        }
        build(&cache, "other", "whole");
        cache.keep_newest("thing-", 2);
        assert_eq!(keys.map(|key| cache.get(&key).is_some()), [false, true, true]);
        assert!(cache.get("other").is_some());
    }

    #[test]
    fn a_failed_build_leaves_nothing_and_can_be_repeated() {
        let (_keep, cache) = cache();
        let failed = cache.get_or_build(
            "k",
            || (),
            |to| {
                write(to, "half")?;
                Err(ImageError::NoCacheDirectory)
            },
        );
        assert!(matches!(failed, Err(ImageError::NoCacheDirectory)));
        assert_eq!(cache.get("k"), None);
        assert_eq!(fs::read_dir(cache.root().join("building")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(build(&cache, "k", "whole").join("file")).unwrap(), "whole");
    }

    #[test]
    fn what_a_killed_build_left_is_never_used_and_is_removed() {
        let (_keep, cache) = cache();
        // A killed process leaves drafts, and no lock.
        for name in ["k.1", "another.1", "k"] {
            let draft = cache.root().join("building").join(name);
            fs::create_dir_all(&draft).unwrap();
            write(&draft, "half").unwrap();
            fs::write(draft.join("leftover"), "half").unwrap();
        }
        assert_eq!(cache.get("k"), None);
        let built = build(&cache, "k", "whole");
        assert_eq!(fs::read_to_string(built.join("file")).unwrap(), "whole");
        assert!(!built.join("leftover").exists());
        assert_eq!(fs::read_dir(cache.root().join("building")).unwrap().count(), 0);
    }

    #[test]
    fn the_draft_of_a_running_build_is_left_alone() {
        let (_keep, cache) = cache();
        cache
            .get_or_build(
                "slow",
                || (),
                |to| {
                    write(to, "slow")?;
                    build(&cache, "quick", "quick");
                    Ok(())
                },
            )
            .unwrap();
        assert_eq!(fs::read_to_string(cache.get("slow").unwrap().join("file")).unwrap(), "slow");
    }

    #[test]
    fn of_two_at_once_one_builds_and_both_have_it() {
        let (_keep, cache) = cache();
        let (builds, waits, start) = (AtomicU32::new(0), AtomicU32::new(0), Barrier::new(2));
        let results = thread::scope(|scope| {
            let run = || {
                start.wait();
                let waiting = || {
                    waits.fetch_add(1, SeqCst);
                };
                cache.get_or_build("k", waiting, |to| {
                    builds.fetch_add(1, SeqCst);
                    // Long enough that the other one comes while this one builds.
                    thread::sleep(Duration::from_millis(200));
                    write(to, "once")
                })
            };
            [scope.spawn(run), scope.spawn(run)].map(|thread| thread.join().unwrap().unwrap())
        });
        assert_eq!(results[0], results[1]);
        assert_eq!((builds.into_inner(), waits.into_inner()), (1, 1));
        assert_eq!(fs::read_to_string(results[0].join("file")).unwrap(), "once");
    }

    #[test]
    fn newest_goes_by_prefix() {
        let (_keep, cache) = cache();
        assert_eq!(cache.newest("kernel-a-"), None);
        let old = build(&cache, "kernel-a-1", "old");
        build(&cache, "kernel-b-1", "other");
        assert_eq!(cache.newest("kernel-a-"), Some(old));
        thread::sleep(Duration::from_millis(20));
        let new = build(&cache, "kernel-a-2", "new");
        assert_eq!(cache.newest("kernel-a-"), Some(new));
    }
}
