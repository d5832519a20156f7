//! `tern image`: build and find guest images.

use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tern_guest_images::{ImagePaths, Kind, Progress, build, images, path};

use super::{Exit, Failure, print, print_json};

pub(super) const EXAMPLES: &str = "\
Examples:
  tern image list
  tern image build linux
  tern image path linux";

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image, if it isn't there yet; minutes for a Linux kernel
    #[command(after_help = "Example:\n  tern image build linux")]
    Build {
        /// Name of the image (`tern image list`)
        name: String,
        /// Compilers at once [default: all CPUs]
        #[arg(long, short, value_parser = clap::value_parser!(u16).range(1..=1024))]
        jobs: Option<u16>,
    },
    /// List the images
    #[command(after_help = "Example:\n  tern image list")]
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show an image's files: the kernel, and on the next line the initramfs if there is one
    #[command(after_help = "Example:\n  tern run --kernel $(tern image path linux | head -1) ...")]
    Path {
        /// Name of the image
        name: String,
        /// As JSON, with the image's kernel parameters
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(command: &ImageCommand) -> Result<Exit, Failure> {
    match command {
        ImageCommand::Build { name, jobs } => build_image(name, jobs.map(usize::from)),
        ImageCommand::List { json } => list(*json),
        ImageCommand::Path { name, json } => show_path(name, *json),
    }
}

fn build_image(name: &str, jobs: Option<usize>) -> Result<Exit, Failure> {
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let mut shown = None;
    let mut progress = |progress: Progress| {
        if shown != Some(progress.step) {
            shown = Some(progress.step);
            begin_step(&bar, name, progress);
        }
        bar.set_position(progress.done);
    };
    let paths = build(name, jobs, &mut progress);
    bar.finish_and_clear();
    let paths = paths.map_err(|error| Failure::new(&error))?;
    print(&lines(&paths))
}

/// Steps that can't be counted get a spinner. In a pipe, one line a step.
fn begin_step(bar: &ProgressBar, name: &str, progress: Progress) {
    if !io::stderr().is_terminal() {
        crate::cli::tell(&format!("{name}: {}", progress.step));
        return;
    }
    let template = if progress.total == 0 {
        "{msg} {spinner} {elapsed}"
    } else {
        "{msg} [{wide_bar}] {percent:>3}% {elapsed}"
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    if progress.total > 0 {
        bar.set_length(progress.total);
    }
    bar.set_message(format!("{name}: {}", progress.step));
    bar.enable_steady_tick(Duration::from_millis(200));
}

fn lines(paths: &ImagePaths) -> String {
    let files = std::iter::once(&paths.kernel).chain(&paths.initramfs);
    files.map(|path| format!("{}\n", path.display())).collect()
}

fn list(json: bool) -> Result<Exit, Failure> {
    let ready = |name, kind: &Kind| matches!(kind, Kind::Embedded(_)) || matches!(path(name), Ok(Some(_)));
    if json {
        let row = |image: &tern_guest_images::ImageInfo| json!({ "name": image.name, "description": image.description, "ready": ready(image.name, &image.kind) });
        return print_json(&images().iter().map(row).collect::<Vec<_>>());
    }
    let row = |image: &tern_guest_images::ImageInfo| {
        let state = if ready(image.name, &image.kind) { "ready" } else { "not built" };
        format!("{:<10} {state:<10} {}\n", image.name, image.description)
    };
    print(&images().iter().map(row).collect::<String>())
}

fn show_path(name: &str, json: bool) -> Result<Exit, Failure> {
    let paths = path(name).map_err(|error| Failure::new(&error))?.ok_or_else(|| {
        Failure::text(
            Exit::Failure,
            format!("image {name} is not built yet; `tern image build {name}` does it"),
        )
    })?;
    if !json {
        return print(&lines(&paths));
    }
    print_json(
        &json!({ "kernel": paths.kernel, "initramfs": paths.initramfs, "cmdline": paths.cmdline, "manifest": paths.manifest }),
    )
}
