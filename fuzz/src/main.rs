//! `tern-fuzz`: lists the targets, writes their first corpora, runs single inputs. `scripts/fuzz` calls it.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use tern_fuzz::{Target, corpus, find, memory, targets};

const USAGE: &str = "usage: tern-fuzz list | seeds | replay TARGET FILE... | adopt TARGET FOLDER";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["list"] => {
            targets::all().iter().for_each(|target| println!("{:<36}{}", target.name, target.what));
            Ok(())
        }
        ["seeds"] => targets::all().iter().try_for_each(write_seeds),
        ["adopt", name, found] => corpus::adopt(name, found.as_ref()),
        ["replay", name, files @ ..] if !files.is_empty() => match find(name) {
            Some(target) => files.iter().try_for_each(|file| replay(target, file.as_ref())),
            None => Err(io::Error::other(format!("there is no target {name}; `tern-fuzz list` shows all"))),
        },
        _ => Err(io::Error::other(USAGE)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What no target takes: where a length comes first, it is that of the rest.
const NOISE: [u8; 6] = [4, 0, 0xff, 0xff, 0xff, 0xff];

/// The valid inputs of this build, each of them cut short, and noise.
fn write_seeds(target: &Target) -> io::Result<()> {
    let folder = corpus::corpus(&target.name);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("noise"), NOISE)?;
    for (number, seed) in target.seeds().into_iter().enumerate() {
        let half = seed.get(..seed.len() / 2).unwrap_or_default();
        fs::write(folder.join(format!("cut-{number}")), half)?;
        fs::write(folder.join(format!("seed-{number}")), seed)?;
    }
    Ok(())
}

fn replay(target: &Target, file: &Path) -> io::Result<()> {
    let bytes = fs::read(file)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
    let (verdict, most) = memory::most_bytes(|| target.run(&bytes));
    let allowed = target.allowed_bytes(bytes.len());
    println!("{}: {verdict:?}, {} bytes, {most} of {allowed} bytes held", file.display(), bytes.len());
    if most > allowed {
        return Err(io::Error::other("it holds more than an input of this length may"));
    }
    Ok(())
}
