//! ONNX Runtime as a second opinion, where Python has it.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// A Python process that checks and runs ONNX files, started once for many.
pub struct OnnxRuntime {
    child: Child,
    questions: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl OnnxRuntime {
    /// Starts the interpreter in `SECATEUR_PYTHON`, else `python3`; `None`, with a message, where it or one of the
    /// modules numpy, onnx and onnxruntime is missing.
    pub fn start() -> Option<Self> {
        let python = env::var("SECATEUR_PYTHON").unwrap_or_else(|_| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/onnx_check.py");
        let started = Command::new(&python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = started else {
            println!("skipped: {python} does not start");
            return None;
        };
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut runtime = Self { child, questions, answers };
        let hello = runtime.answers.next().unwrap().unwrap();
        if hello != "ready" {
            println!("skipped: {python}: {hello} (SECATEUR_PYTHON names another interpreter)");
            return None;
        }
        Some(runtime)
    }

    /// Checks `model.onnx` in `folder` and runs it on `input`; returns what the file says, and the logits.
    #[track_caller]
    pub fn run(&mut self, folder: &Path, input: &[f32]) -> (Value, Vec<f32>) {
        let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
        fs::write(folder.join("input.f32"), bytes).unwrap();
        writeln!(self.questions.as_mut().unwrap(), "{}", folder.display()).unwrap();
        let answer = self.answers.next().expect("an answer").unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer.get("error").is_none(), "{answer}");
        let logits = fs::read(folder.join("logits.f32")).unwrap();
        (answer, logits.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

impl Drop for OnnxRuntime {
    fn drop(&mut self) {
        // The end of its input ends the process.
        self.questions = None;
        let _ = self.child.wait();
    }
}
