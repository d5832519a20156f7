//! Runs the kernel's `make`, and `patch`, with an environment of their own and a log.

use crate::tether::{Tool, tether};
use crate::{ImageError, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// Lines of a failed tool's output that an error shows; the rest is in the log.
const TAIL_LINES: usize = 15;

/// Source and object directories, and the log of one build.
pub(crate) struct Make<'a> {
    tree: &'a Path,
    objects: &'a Path,
    log: &'a Path,
}

impl<'a> Make<'a> {
    /// Starts an empty log.
    pub(crate) fn new(tree: &'a Path, objects: &'a Path, log: &'a Path) -> Result<Self> {
        if let Some(directory) = log.parent() {
            std::fs::create_dir_all(directory).map_err(ImageError::io("create the directory", directory))?;
        }
        File::create(log).map_err(ImageError::io("write the log", log))?;
        Ok(Make { tree, objects, log })
    }

    /// Applies a patch to the source, with as much fuzz as `patch` allows by itself.
    pub(crate) fn patch(&self, text: &str) -> Result<()> {
        let mut command = clean("patch");
        command.args(["-p1", "--batch", "--forward", "--no-backup-if-mismatch", "-d"]).arg(self.tree);
        self.execute(command, text, &mut || ())
    }

    /// Runs `make` with these arguments; `each_line` is called for each line that it prints.
    pub(crate) fn run(&self, arguments: &[&str], each_line: &mut dyn FnMut()) -> Result<()> {
        // A build in the background must not slow down what runs besides.
        let mut command = clean("nice");
        command
            .arg("make")
            .arg("-C")
            .arg(self.tree)
            .arg(format!("O={}", self.objects.display()))
            .args(arguments);
        self.execute(command, "", each_line)
    }

    fn execute(&self, mut command: Command, input: &str, each_line: &mut dyn FnMut()) -> Result<()> {
        let open =
            || File::options().append(true).open(self.log).map_err(ImageError::io("write the log", self.log));
        let (mut log, errors) = (open()?, open()?);
        let shown = format!("{command:?}");
        let start = |source| ImageError::Start { command: shown.clone(), source };
        tether(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut tool = Tool(command.spawn().map_err(start)?);
        if let Some(mut stdin) = tool.0.stdin.take() {
            // A tool that ends before it has read everything says why by itself.
            let _ = stdin.write_all(input.as_bytes());
        }
        if let Some(stdout) = tool.0.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                let mut line = line.map_err(start)?;
                line.push(b'\n');
                log.write_all(&line).map_err(ImageError::io("write the log", self.log))?;
                each_line();
            }
        }
        let status = tool.0.wait().map_err(start)?;
        if status.success() {
            return Ok(());
        }
        let (status, log) = (status.to_string(), self.log.to_path_buf());
        Err(ImageError::Tool { command: shown, status, tail: tail(&log), log })
    }
}

/// A command that inherits nothing which would change a build: neither the job server of a `make`
/// around us, nor `ARCH` or `CROSS_COMPILE`, nor a language. The build says who built it for the same reason.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    command.envs(
        ["PATH", "HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))),
    );
    command.env("KBUILD_BUILD_USER", "tern").env("KBUILD_BUILD_HOST", "tern").env("LOCALVERSION", "");
    command.env("KBUILD_BUILD_TIMESTAMP", "1970-01-01 00:00:00 UTC");
    command
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A source tree whose Makefile has `rules`.
    fn tree(rules: &str) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("Makefile"), rules).unwrap();
        tree
    }

    #[test]
    fn lines_are_counted_and_logged() {
        let tree = tree("all:\n\t@echo one\n\t@echo two\n\t@echo problem >&2\n");
        let log = tree.path().join("logs/log");
        let make = Make::new(tree.path(), tree.path(), &log).unwrap();
        let mut lines = 0;
        make.run(&["--no-print-directory", "all"], &mut || lines += 1).unwrap();
        assert_eq!(lines, 2);
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("one\n") && text.contains("two\n") && text.contains("problem\n"), "{text}");
    }

    #[test]
    fn a_failure_shows_the_end_of_the_log() {
        let tree = tree("all:\n\t@echo it is broken >&2\n\t@false\n");
        let log = tree.path().join("log");
        let make = Make::new(tree.path(), tree.path(), &log).unwrap();
        let error = make.run(&["all"], &mut || ()).unwrap_err().to_string();
        assert!(error.contains("it is broken") && error.contains(&log.display().to_string()), "{error}");
    }

    #[test]
    fn patches_apply_at_shifted_lines_and_refuse_other_text() {
        let tree = tempfile::tempdir().unwrap();
        let patch = "Why.\n\n--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n";
        let log = tree.path().join("log");
        let make = Make::new(tree.path(), tree.path(), &log).unwrap();
        fs::write(tree.path().join("f"), "x\ny\na\nb\nc\n").unwrap();
        make.patch(patch).unwrap();
        assert_eq!(fs::read_to_string(tree.path().join("f")).unwrap(), "x\ny\na\nB\nc\n");
        fs::write(tree.path().join("f"), "q\nr\ns\n").unwrap();
        assert!(matches!(make.patch(patch), Err(ImageError::Tool { .. })));
    }
}
