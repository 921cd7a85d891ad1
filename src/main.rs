//! The `secateur` program: parse, run, exit code.

fn main() {}
