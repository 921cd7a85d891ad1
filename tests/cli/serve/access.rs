//! Who may do what, and how the server ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Workplace, pixel_request, shapes_server};
use crate::program;

const TOKEN: &str = "0123456789abcdef";

fn with_token(place: &Workplace, mode: u32) {
    place.write("token", TOKEN);
    fs::set_permissions(place.path("token"), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_page_of_another_site_whose_name_leads_here_reads_nothing() {
    let place = Workplace::new();
    place.write("serve.toml", "[serve]\nallowed_hosts = \"board.example\"\n");
    let server = shapes_server(&place, "--config serve.toml");
    let asked_as = |host: &str| {
        let mut client = server.connect();
        client.send(format!("GET /v1/status HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).unwrap();
        client.answer().unwrap()
    };
    for own in ["127.0.0.1", "localhost:8000", "[::1]:8000", "board", "board.example:80"] {
        asked_as(own).good();
    }
    for other in ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:80"] {
        asked_as(other).refused(403, "forbidden");
    }
    let mut old = server.connect();
    old.send(b"GET /v2 HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(old.answer().unwrap().status, 200, "no browser leaves the name out");
}

#[test]
fn with_a_token_everything_but_health_needs_it() {
    let place = Workplace::new();
    with_token(&place, 0o600);
    let server = shapes_server(&place, "--token-file token");
    let bearer = format!("Bearer {TOKEN}");
    for path in ["/v2", "/v2/models/shapes", "/metrics", "/openapi.json", "/v2/models/shapes/ready"] {
        assert_eq!(server.get(path).header("www-authenticate"), Some("Bearer"), "{path}");
        server.get(path).refused(401, "unauthorized");
        server
            .ask(&format!("GET {path}"), &[("authorization", "Bearer 0123456789abcdeX")], b"")
            .refused(401, "unauthorized");
        assert_eq!(server.ask(&format!("GET {path}"), &[("authorization", &bearer)], b"").status, 200, "{path}");
    }
    server.post("/v2/models/shapes/infer", &pixel_request(0)).refused(401, "unauthorized");
    server.post("/v2/repository/models/shapes/load", &json!({})).refused(401, "unauthorized");
    server.ask("POST /v2/repository/models/shapes/load", &[("authorization", &bearer)], b"").good();
    server.get("/v2/health/live").good();
    server.get("/v2/health/ready").good();
}

#[test]
fn a_token_that_others_can_read_is_refused() {
    let place = Workplace::new();
    with_token(&place, 0o644);
    let finished =
        program::run(place.folder(), "serve --model teacher.safetensors --listen 127.0.0.1:0 --token-file token");
    finished.fails_naming(&["token", "chmod 600", "644"]);
}

#[test]
fn changes_from_this_device_are_taken_unless_a_foreign_page_asks() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let load = "POST /v2/repository/models/shapes/load";
    server.ask(load, &[("origin", "https://evil.example")], b"").refused(403, "forbidden");
    assert_eq!(server.ask(load, &[], b"").good(), json!({"name": "shapes", "version": "1"}));
    server.post("/v2/repository/models/shapes/unload", &json!({})).good();
    server.get("/v2/models/shapes").refused(404, "model_not_found");
    server.get("/v2/health/ready").refused(503, "unavailable");
    server.get("/v2/health/live").good();
    server.post("/v2/repository/models/shapes/unload", &json!({})).refused(404, "model_not_found");
    server.post("/v2/repository/models/other/load", &json!({})).refused(404, "model_not_found");
    server.ask(load, &[], b"").good();
    server.get("/v2/health/ready").good();
}

#[test]
fn sigterm_finishes_what_is_in_progress() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let body = pixel_request(1).to_string();
    let mut slow = server.connect();
    let mut idle = server.connect();
    let head = format!("POST /v2/models/shapes/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    slow.send(head.as_bytes()).unwrap();
    slow.send(&body.as_bytes()[..20]).unwrap();
    idle.ask("GET /v2", &[], b"").good();
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    server.signal(libc::SIGTERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(idle.answer().is_none(), "an idle connection is closed");
    assert!(std::net::TcpStream::connect(server.address).is_err(), "no new connection is taken");
    slow.send(&body.as_bytes()[20..]).unwrap();
    slow.answer().expect("an answer").good();
    server.end().ends_with(&[0]);
    assert!(begun.elapsed() < Duration::from_secs(9), "it waited for nobody");
}

#[test]
fn an_address_in_use_is_told() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let address = server.address;
    let finished = program::run(place.folder(), &format!("serve --model teacher.safetensors --listen {address}"));
    finished.fails_naming(&["serve.listen", &address.to_string()]);
    program::run(place.folder(), "serve --listen 127.0.0.1:0").fails_naming(&["--store", "--model"]);
    let broken = program::run(place.folder(), "serve --listen 127.0.0.1:0 --model images/ring/00.png");
    broken.fails_naming(&["00.png"]);
}
