//! A running server and a client that can misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{Finished, command, wait};

/// `secateur serve` on a port of its own, killed when dropped.
pub struct Serving {
    child: Option<Child>,
    arguments: String,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Serving {
    /// Starts `serve` with `arguments` in `folder` and waits until it listens.
    #[track_caller]
    pub fn start(folder: &Path, arguments: &str) -> Self {
        let arguments = format!("serve --listen 127.0.0.1:0 --threads 1 {arguments}");
        Self::spawn(command(folder, &arguments), arguments)
    }

    /// Starts `command`, which `arguments` describe, and waits until it listens.
    #[track_caller]
    pub fn spawn(mut command: Command, arguments: String) -> Self {
        let mut child = command.spawn().expect("the program starts");
        let (log, reader) = collect(child.stderr.take().unwrap());
        let mut serving =
            Self { child: Some(child), arguments, address: ([127, 0, 0, 1], 0).into(), log, reader: Some(reader) };
        serving.address = serving.wait_for("listening address=").parse().expect("an address");
        serving
    }

    /// Waits for a line with `text` in the log and returns what follows it.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            let log = self.log();
            if let Some((_, after)) = log.split_once(text)
                && let Some((rest, _)) = after.split_once('\n')
            {
                return rest.to_string();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{}: expected {text:?} in\n{}", self.arguments, self.log());
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: the process is ours and not yet waited for.
        assert_eq!(unsafe { libc::kill(self.pid() as i32, signal) }, 0);
    }

    /// Waits for the end.
    #[track_caller]
    pub fn end(mut self) -> Finished {
        let finished = wait(self.child.take().unwrap(), &self.arguments);
        self.reader.take().unwrap().join().unwrap();
        finished.with_log(self.log())
    }

    /// A new connection.
    pub fn connect(&self) -> Client<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client(BufReader::new(stream))
    }

    /// One request over a new connection.
    #[track_caller]
    pub fn ask(&self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.connect().ask(request, headers, body)
    }

    /// The answer to a GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), &[], b"")
    }

    /// The answer to a POST of JSON.
    #[track_caller]
    pub fn post(&self, path: &str, json: &Value) -> Answer {
        self.ask(&format!("POST {path}"), &[("content-type", "application/json")], json.to_string().as_bytes())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn collect(stderr: ChildStderr) -> (Arc<Mutex<String>>, JoinHandle<()>) {
    let log = Arc::new(Mutex::new(String::new()));
    let shared = log.clone();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let mut log = shared.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    (log, reader)
}

/// One connection.
pub struct Client<S: Read + Write>(pub BufReader<S>);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn ask(&mut self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut text = format!("{request} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
        let bytes = [text.as_bytes(), b"\r\n", body].concat();
        // A server that refuses early may close before it has read everything.
        let _ = self.send(&bytes);
        self.answer().unwrap_or_else(|| panic!("{request}: no answer"))
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.get_mut().write_all(bytes)?;
        self.0.get_mut().flush()
    }

    /// The next answer; `None` if the connection is closed instead.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut line = || {
            let mut line = String::new();
            self.0.read_line(&mut line).ok().filter(|n| *n > 0).map(|_| line.trim_end().to_string())
        };
        let status = line()?.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        let length = answer.header("content-length").map_or(0, |n| n.parse().unwrap());
        answer.body = vec![0; length];
        self.0.read_exact(&mut answer.body).ok()?;
        Some(answer)
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The JSON of a good answer.
    #[track_caller]
    pub fn good(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Fails unless this is a refusal with `status` and `code`; returns its message.
    #[track_caller]
    pub fn refused(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        let json = self.json();
        assert_eq!(json["code"], code, "{json}");
        json["error"].as_str().expect("a message").to_string()
    }
}
