//! One run of the program and what it left behind.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// A run that ended.
#[derive(Debug)]
pub struct Finished {
    command: String,
    code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// The program with `arguments`, split at spaces, in `folder`; its output is captured. `SECATEUR_PROGRAM` names another
/// build of it, for figures.
pub fn command(folder: &Path, arguments: &str) -> Command {
    let program = std::env::var_os("SECATEUR_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_secateur").into());
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace()).current_dir(folder);
    command.env("XDG_CACHE_HOME", folder.join("cache"));
    // The caller's level of logging must not hide what tests look for.
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to its end.
pub fn run(folder: &Path, arguments: &str) -> Finished {
    wait(command(folder, arguments).spawn().expect("the program starts"), arguments)
}

/// Waits for the end of `child`.
pub fn wait(child: Child, arguments: &str) -> Finished {
    let output = child.wait_with_output().expect("the program can be waited for");
    Finished {
        command: arguments.to_string(),
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("results are UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("logs are UTF-8"),
    }
}

impl Finished {
    /// This run with `log`, which somebody else has read already.
    pub fn with_log(self, log: String) -> Self {
        Self { stderr: log, ..self }
    }

    /// Fails unless the run ended with one of `codes`.
    #[track_caller]
    pub fn ends_with(self, codes: &[i32]) -> Self {
        let ended = self.code.is_some_and(|code| codes.contains(&code));
        assert!(ended, "{}: expected exit code {codes:?}, got {:?}\n{}", self.command, self.code, self.stderr);
        self
    }

    /// Fails unless a signal ended the run.
    #[track_caller]
    pub fn ended_by_a_signal(&self) {
        assert_eq!(self.code, None, "{}: it ended before it was killed\n{}", self.command, self.stderr);
    }

    /// Fails unless the run ended with an error that names all of `parts`, without a panic and without a result.
    #[track_caller]
    pub fn fails_naming(self, parts: &[&str]) -> Self {
        let finished = self.ends_with(&[2]);
        finished.logs(parts);
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
        assert_eq!(finished.stdout, "", "{}", finished.command);
        finished
    }

    /// Fails unless the log holds all of `parts`.
    #[track_caller]
    pub fn logs(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.stderr.contains(part), "{}: expected {part:?} in\n{}", self.command, self.stderr);
        }
    }

    /// The JSON object on the last line of stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{}: {e}: {last:?}", self.command))
    }
}

/// The keys of a JSON object, in its order.
#[track_caller]
pub fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("expected an object, got {value}")).keys().map(String::as_str).collect()
}
