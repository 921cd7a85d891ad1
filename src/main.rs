//! The `secateur` program: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use secateur::cli::{Cli, ReusingAllocator, start_logging};

#[global_allocator]
static ALLOCATOR: ReusingAllocator = ReusingAllocator::new();

fn main() -> ExitCode {
    ALLOCATOR.keep_small_blocks();
    let cli = Cli::parse();
    start_logging();
    match cli.run(|| ALLOCATOR.release()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
