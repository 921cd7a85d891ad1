//! The `secateur` program: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use secateur::cli::{Cli, keep_freed_memory, start_logging};

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    keep_freed_memory();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
