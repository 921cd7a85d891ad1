//! `secateur status`: what the daemon is doing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::output::print;
use crate::config::Config;
use crate::serve::ServeConfig;
use crate::{Error, Result};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer.
const MOST_BYTES: u64 = 16 << 20;
/// Events shown to people.
const EVENTS: usize = 8;

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The daemon's configuration file, which says where it listens
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address it listens on [default: the configuration's]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Print the whole status as JSON
    #[arg(long)]
    json: bool,
}

impl StatusArgs {
    pub fn run(self) -> Result<()> {
        let flags = self.listen.iter().flat_map(|address| {
            // A given address goes before a socket of the configuration.
            [("serve.listen".to_string(), address.clone()), ("serve.socket".to_string(), String::new())]
        });
        let serve = Config::load(self.config.as_deref(), std::env::vars_os(), flags)?.serve;
        let status = ask(&serve)?;
        print(&if self.json { status.to_string() } else { table(&status) })
    }
}

/// Asks the daemon that listens as `serve` says, through its socket if it has one.
fn ask(serve: &ServeConfig) -> Result<Value> {
    if let Some(socket) = &serve.socket {
        let path: &Path = socket.as_ref();
        let stream = UnixStream::connect(path)
            .map_err(|e| Error::io("reach a daemon there (see --config, --listen)", path, e))?;
        let limited = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
        return limited.map_err(|e| Error::io("ask", path, e)).and_then(|()| exchange(stream, path, serve));
    }
    let address = serve.listen.ok_or_else(|| Error::Config("serve.listen: expected an address, got none".into()))?;
    if serve.tls_certificate.is_some() {
        let reason = "the status is asked for over plain HTTP; set serve.socket besides HTTPS, and it is asked there";
        return Err(Error::Config(format!("serve.tls_certificate: {reason}")));
    }
    let name = PathBuf::from(address.to_string());
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .map_err(|e| Error::io("reach a daemon there (see --config, --listen)", &name, e))?;
    let limited = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    limited.map_err(|e| Error::io("ask", &name, e)).and_then(|()| exchange(stream, &name, serve))
}

fn exchange(mut stream: impl Read + Write, name: &Path, serve: &ServeConfig) -> Result<Value> {
    let token = match &serve.token_file {
        None => String::new(),
        Some(path) => {
            let path: &Path = path.as_ref();
            let token = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            format!("authorization: Bearer {}\r\n", token.trim())
        }
    };
    let request = format!("GET /v1/status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{token}\r\n");
    let mut answer = Vec::new();
    stream.write_all(request.as_bytes()).map_err(|e| Error::io("ask", name, e))?;
    stream.take(MOST_BYTES).read_to_end(&mut answer).map_err(|e| Error::io("hear", name, e))?;
    parse(&answer).map_err(|reason| Error::data(name, reason))
}

/// The JSON of an HTTP answer whose end is the connection's.
fn parse(answer: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("expected an HTTP answer, got something else")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    let json: Value = serde_json::from_str(body).map_err(|e| format!("status {status}: expected JSON: {e}"))?;
    match status {
        "200" => Ok(json),
        _ => Err(format!("status {status}: {}", json["error"].as_str().unwrap_or("refused"))),
    }
}

/// A text without its quotes.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// What serves, and how fast.
fn models(status: &Value) -> Vec<String> {
    let describe = |model: &Value| {
        let latency = &model["latency_ms"];
        let latency = match (latency["p50"].as_f64(), latency["p99"].as_f64()) {
            (Some(p50), Some(p99)) => format!("p50 {p50:.1} ms, p99 {p99:.1} ms"),
            _ => "no requests yet".to_string(),
        };
        let serves = match model["active"].as_u64() {
            Some(version) if model["ready"] == true => format!("version {version}"),
            Some(version) => format!("version {version}, which does NOT answer"),
            None => "NO version".to_string(),
        };
        format!("{:<10} {} {serves}, {latency}", "serves", text(&model["name"]))
    };
    status["models"].as_array().into_iter().flatten().map(describe).collect()
}

/// What the guards say.
fn guards(daemon: &Value) -> Vec<String> {
    let all = daemon["guards"].as_array().map(Vec::as_slice).unwrap_or_default();
    let describe = |guard: &Value| {
        let word = if guard["ok"] == true { "guard" } else { "AGAINST IT" };
        format!("{word:<10} {}: {}", text(&guard["name"]), text(&guard["detail"]))
    };
    all.iter().map(describe).collect()
}

/// The status for people.
fn table(status: &Value) -> String {
    let daemon = &status["adaptation"];
    let mut lines = models(status);
    if daemon.is_null() {
        lines.push("this server is no daemon: it only serves".to_string());
        return lines.join("\n");
    }
    let images = &daemon["images"];
    lines.extend([
        format!("{:<10} {} since {}", "state", text(&daemon["state"]), text(&daemon["since"])),
        format!("{:<10} {}", "reason", text(&daemon["reason"])),
        format!(
            "{:<10} {} kept ({:.1} MB), {} new, {} more wanted, {} duplicates, {} quarantined",
            "images",
            images["reservoir"],
            images["bytes"].as_f64().unwrap_or(0.0) / 1e6,
            images["new"],
            images["needed"],
            images["duplicates"],
            images["quarantined"]
        ),
    ]);
    if images["left_alone"].as_u64() > Some(0) {
        lines.push(format!("{:<10} {} links, folders or the like are left alone there", "inbox", images["left_alone"]));
    }
    if let Some(run) = daemon["run"].as_object() {
        let eta = run["eta_s"].as_f64().unwrap_or(0.0);
        let (step, steps) = (&run["step"], &run["steps"]);
        // Between phases there is nothing to count.
        let known = steps.as_u64() > Some(0);
        let far = if known { format!(" {step}/{steps}, {eta:.0} s left in this phase") } else { String::new() };
        lines.push(format!("{:<10} {}: {}{far}", "run", text(&run["id"]), text(&run["phase"])));
    }
    if let Some(gate) = daemon["gate"].as_object() {
        let word = if gate["accepted"] == true { "accepted" } else { "REFUSED" };
        lines.push(format!("{:<10} {word}: {}", "gate", text(&gate["reason"])));
    }
    if let Some(watch) = daemon["watch"].as_object() {
        lines.push(format!(
            "{:<10} version {}: {} of {} answers",
            "watch", watch["version"], watch["answers"], watch["wanted"]
        ));
    }
    lines.extend(guards(daemon));
    if daemon["backoff_until"].is_string() {
        lines.push(format!("{:<10} until {}", "backing off", text(&daemon["backoff_until"])));
    }
    let history = daemon["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    for event in history.iter().rev().take(EVENTS).rev() {
        lines.push(format!("{}  {}  {}", text(&event["at"]), text(&event["event"]), text(&event["detail"])));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_and_refusals_are_read() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\na: b\r\n\r\n{\"a\":1}"), Ok(json!({"a": 1})));
        let refused = parse(b"HTTP/1.1 401 Unauthorized\r\n\r\n{\"error\":\"no token\"}").unwrap_err();
        assert_eq!(refused, "status 401: no token");
        assert!(parse(b"SSH-2.0").is_err() && parse(b"HTTP/1.1 200 OK\r\n\r\n<html>").is_err());
    }

    #[test]
    fn the_table_says_what_matters() {
        let models = json!([
            {"name": "shapes", "active": 2, "ready": true, "latency_ms": {"p50": 1.25, "p99": 2.5}},
            {"name": "new", "active": null, "ready": false, "latency_ms": {"p50": null, "p99": null}},
        ]);
        let mut status = json!({"models": models, "adaptation": {
            "state": "paused", "since": "2026-11-24T21:00:00Z", "reason": "temperature: 80 °C",
            "images": {"reservoir": 7, "bytes": 2_500_000, "new": 3, "needed": 4, "duplicates": 1, "quarantined": 2,
                "left_alone": 2},
            "run": {"id": "r1", "phase": "prune", "step": 3, "steps": 9, "eta_s": 12.4},
            "gate": null, "watch": null, "backoff_until": null,
            "guards": [{"name": "temperature", "ok": false, "detail": "80 °C"}, {"name": "load", "ok": true, "detail": ""}],
            "history": [{"at": "2026", "event": "adaptation started", "detail": "run=r1"}],
        }});
        let shown = table(&status);
        for part in [
            "serves     shapes version 2, p50 1.2 ms, p99 2.5 ms",
            "serves     new NO version, no requests yet",
            "paused since",
            "7 kept (2.5 MB), 3 new",
            "2 links, folders",
            "r1: prune 3/9, 12 s",
            "AGAINST IT temperature: 80 °C",
            "guard      load: ",
            "run=r1",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        status["adaptation"]["run"] = json!({"id": "r1", "phase": "judging", "step": 0, "steps": 0, "eta_s": 0.0});
        assert!(table(&status).contains("r1: judging\n"));
        let only = table(&json!({"models": models, "adaptation": null}));
        assert!(only.contains("shapes version 2") && only.contains("no daemon"), "{only}");
    }
}
