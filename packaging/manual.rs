//! Writes what packages hold besides the program, all of it made from the program's own definitions: `man/*.1`,
//! completions for bash, zsh and fish, `secateur.toml`.
//!
//! usage: manual FOLDER

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::{Shell, generate_to};
use secateur::cli::Cli;
use secateur::config::Config;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: manual FOLDER")?);
    let man = folder.join("man");
    let completions = folder.join("completions");
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "secateur", &completions)?;
    }
    fs::write(folder.join("secateur.toml"), Config::documented())?;
    Ok(())
}
