//! Builds the bare programs that run inside guests, with the compiler that builds everything
//! else: nothing to install, and no flags of the user's reach them.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A program without an operating system or libc under it. The result is `OUT_DIR/name`.
struct Program {
    name: &'static str,
    source: &'static str,
    /// Without one, the linker's own layout of a static program.
    linker_script: Option<&'static str>,
    opt_level: &'static str,
}

/// The workspace's rules, which cargo gives to its own crates only: `unsafe` is opened per module, with a reason.
const LINTS: [&str; 4] = ["-Dunsafe_code", "-Dunsafe_op_in_unsafe_fn", "-Dunused", "-Dunused_qualifications"];

const PROGRAMS: [Program; 2] = [
    Program { name: "pulse", source: "pulse/main.rs", linker_script: Some("pulse/link.ld"), opt_level: "3" },
    Program { name: "agent", source: "agent/main.rs", linker_script: None, opt_level: "s" },
];

fn main() -> ExitCode {
    match build_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn build_all() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    for program in &PROGRAMS {
        program.build(&root, &out)?;
    }
    Ok(())
}

impl Program {
    fn build(&self, root: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
        let source = root.join(self.source);
        let directory = source.parent().ok_or("a program needs a directory of its own")?;
        println!("cargo::rerun-if-changed={}", directory.display());

        let rustc = env::var_os("RUSTC").ok_or("RUSTC is not set")?;
        let mut command = Command::new(&rustc);
        command
            .args(["--edition=2024", "--crate-type=bin", "--target=x86_64-unknown-linux-gnu"])
            .arg(format!("--crate-name={}", self.name))
            .args(LINTS)
            // Baseline x86-64: some hosts save no more than SSE state, whatever CPUID says.
            .args([
                "-Ctarget-cpu=x86-64",
                "-Cpanic=abort",
                "-Crelocation-model=static",
                "-Cforce-unwind-tables=no",
            ])
            .arg(format!("-Copt-level={}", self.opt_level))
            .args(["-Ccodegen-units=1", "-Cstrip=debuginfo"])
            .args([
                "-Clink-arg=-nostartfiles",
                "-Clink-arg=-nostdlib",
                "-Clink-arg=-static",
                "-Clink-arg=-no-pie",
            ])
            .args(["-Clink-arg=-Wl,--build-id=none", "-Clink-arg=-Wl,-z,noexecstack"])
            // The core library names it for unwinding, which never happens here.
            .arg("-Clink-arg=-Wl,--defsym=rust_eh_personality=0");
        if let Some(script) = self.linker_script {
            command.arg(format!("-Clink-arg=-Wl,-T,{}", root.join(script).display()));
        }
        command.arg("-o").arg(out.join(self.name)).arg(&source);

        let output = command.output().map_err(|error| {
            format!("cannot run {} to build guest program {}: {error}", rustc.display(), self.name)
        })?;
        if !output.status.success() {
            return Err(format!(
                "guest program {} does not build ({}).\nIt needs rustc for x86_64-unknown-linux-gnu and a C linker \
                 (Debian: apt-get install gcc).\nThe command was:\n{command:?}\nIt said:\n{}",
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )
            .into());
        }
        Ok(())
    }
}
