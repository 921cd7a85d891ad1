//! Clients and tools that others wrote, where they are installed.

use std::process::{Command, Stdio};

use super::{Workplace, shapes_server};

/// The interpreter in `SECATEUR_PYTHON`, else `python3`.
pub fn python() -> String {
    std::env::var("SECATEUR_PYTHON").unwrap_or_else(|_| "python3".into())
}

#[test]
fn the_official_triton_client_works() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/triton_check.py");
    let python = python();
    let Ok(output) = Command::new(&python).args([script, &server.address.to_string(), "shapes"]).output() else {
        println!("skipped: {python} does not start");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    if last.starts_with("missing: ") {
        println!("skipped: {python}: {last} (SECATEUR_PYTHON names another interpreter)");
        return;
    }
    assert!(output.status.success() && last == "ok", "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn prometheus_accepts_the_metrics() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    server.post("/v2/models/shapes/infer", &super::pixel_request(0)).good();
    let metrics = server.get("/metrics").body;
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        println!("skipped: promtool does not start");
        return;
    };
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), &metrics).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn the_description_is_true() {
    let place = Workplace::new();
    // The name that the configuration beside the scripts gives for every path.
    let server = super::Serving::start(place.folder(), "--model teacher.safetensors --name model");
    let program = std::path::PathBuf::from(python()).with_file_name("schemathesis");
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/schemathesis.toml");
    let url = format!("http://{}/openapi.json", server.address);
    let started = Command::new(program)
        .args(["--config-file", config, "run", &url, "--max-examples", "15", "--seed", "1", "--no-color"])
        .current_dir(place.folder())
        .output();
    let Ok(output) = started else {
        println!("skipped: schemathesis does not start (it is looked for beside SECATEUR_PYTHON)");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
