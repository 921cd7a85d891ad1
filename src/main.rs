//! The `secateur` program: parse, run, exit code.

mod allocator;

use std::process::ExitCode;

use clap::Parser;
use secateur::cli::{Cli, start_logging};

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    allocator::keep_freed_memory();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
