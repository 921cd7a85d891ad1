//! The page, what it reads, and what it changes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::server::{Answer, Serving};
use super::{Workplace, peers, pixel_request, publish, shapes_server};
use crate::teacher;

const TOKEN: &str = "0123456789abcdef";

/// A store with two versions of `shapes`, the second one active.
fn two_versions() -> Workplace {
    let place = Workplace::new();
    teacher::write_untrained(&place.path("other.safetensors"), 4);
    publish(&place, "other.safetensors");
    publish(&place, "teacher.safetensors");
    place
}

/// Damages the file of version 1.
fn damage(place: &Workplace) {
    let file = place.path("store/shapes/1/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, bytes).unwrap();
}

fn rollback(server: &Serving, body: &str) -> Answer {
    server.ask("POST /v1/models/shapes/rollback", &[("content-type", "application/json")], body.as_bytes())
}

#[test]
fn the_page_runs_nothing_but_its_own_script() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert!(page.body.starts_with(b"<!doctype html>"));
}

#[test]
fn the_status_tells_versions_latency_and_what_was_predicted() {
    let place = two_versions();
    let server = Serving::start(place.folder(), "--store store");
    let before = server.get("/v1/status").good();
    assert_eq!(before["adaptation"], json!(null));
    assert!(before["server"]["uptime_s"].is_u64() && before["board"]["memory_available"].as_u64() > Some(1 << 20));
    let model = &before["models"][0];
    let active = (&model["active"], &model["store_active"], &model["rollback_to"], &model["ready"]);
    assert_eq!(active, (&json!(2), &json!(2), &json!(1), &json!(true)));
    assert_eq!((&model["requests"], &model["latency_ms"]), (&json!(0), &json!({"p50": null, "p99": null})));
    let version = &model["versions"][1];
    assert_eq!((&version["version"], &version["active"]), (&json!(2), &json!(true)));
    assert_eq!(version["channels"], json!(teacher::PRUNABLE));
    assert!(version["published"].as_str().unwrap().starts_with("20"), "{version}");
    for class in [1, 1, 2] {
        server.post("/v2/models/shapes/infer", &pixel_request(class)).good();
    }
    // Probes are no predictions.
    server.get("/v2/health/ready").good();
    let model = &server.get("/v1/status").good()["models"][0];
    assert_eq!(model["classes"], json!([{"name": "columns", "count": 2}, {"name": "ring", "count": 1}]));
    assert_eq!((&model["requests"], &model["predictions"]), (&json!(3), &json!(3)));
    let [p50, p99] = ["p50", "p99"].map(|q| model["latency_ms"][q].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99 && p99 < 10_000.0, "{p50} {p99}");
}

#[test]
fn versions_are_changed_and_the_log_says_by_whom() {
    let place = two_versions();
    let server = Serving::start(place.folder(), "--store store");
    assert_eq!(rollback(&server, "{\"from\": 2}").good(), json!({"name": "shapes", "version": 1, "before": 2}));
    assert_eq!(server.get("/v2/models/shapes").good()["versions"], json!(["1"]));
    let rows = place.run("models list --store store --json").stdout;
    assert!(rows.lines().next().unwrap().contains("\"active\":true"), "the store says so, too: {rows}");
    server.wait_for("change requested what=rollback model=shapes from=2 to=1 peer=127.0.0.1:");
    // Somebody who still sees version 2.
    rollback(&server, "{\"from\": 2}").refused(409, "conflict");
    rollback(&server, "{}").refused(404, "version_not_found");
    let activate = |version: u64| server.post("/v1/models/shapes/activate", &json!({"version": version}));
    assert_eq!(activate(2).good()["before"], 1);
    assert_eq!(activate(2).good()["before"], 2, "it is so already");
    assert!(activate(3).refused(404, "version_not_found").contains("there are: 1, 2"));
    server.post("/v1/models/other/activate", &json!({"version": 1})).refused(404, "model_not_found");
}

#[test]
fn a_version_that_cannot_serve_changes_nothing() {
    let place = two_versions();
    damage(&place);
    let server = Serving::start(place.folder(), "--store store");
    server.post("/v1/models/shapes/activate", &json!({"version": 1})).refused(422, "model_refused");
    rollback(&server, "{}").refused(404, "version_not_found");
    server.wait_for("change refused what=activate model=shapes from=2 peer=");
    let model = &server.get("/v1/status").good()["models"][0];
    assert_eq!((&model["active"], &model["store_active"], &model["ready"]), (&json!(2), &json!(2), &json!(true)));
}

#[test]
fn a_damaged_file_is_shown_as_such() {
    let place = two_versions();
    fs::write(place.path("store/shapes/1/manifest.json"), "{").unwrap();
    let server = Serving::start(place.folder(), "--store store");
    let version = &server.get("/v1/status").good()["models"][0]["versions"][0];
    assert_eq!((&version["damaged"], &version["channels"]), (&json!(true), &json!(null)));
    assert!(version["note"].as_str().unwrap().contains("damaged"), "{version}");
}

#[test]
fn changes_are_not_taken_from_other_sites_nor_in_other_forms() {
    let place = two_versions();
    let server = Serving::start(place.folder(), "--store store");
    let json = ("content-type", "application/json");
    let post = |headers: &[(&str, &str)], body: &[u8]| server.ask("POST /v1/models/shapes/rollback", headers, body);
    post(&[json, ("origin", "https://evil.example")], b"{}").refused(403, "forbidden");
    // What a form of another site can send without asking.
    for form in ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "text/plain"] {
        post(&[("content-type", form)], b"{}").refused(415, "unsupported_media_type");
    }
    post(&[], b"{}").refused(415, "unsupported_media_type");
    for wrong in ["", "[]", "{\"from\": 0}", "{\"from\": \"2\"}", "{\"to\": 1}"] {
        post(&[json], wrong.as_bytes()).refused(400, "malformed");
    }
    server.post("/v1/models/shapes/activate", &json!({})).refused(400, "malformed");
    assert_eq!(server.get("/v2/models/shapes").good()["versions"], json!(["2"]));
}

#[test]
fn a_file_has_no_other_versions() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let model = &server.get("/v1/status").good()["models"][0];
    assert_eq!((&model["active"], &model["versions"], &model["rollback_to"]), (&json!(1), &json!([]), &json!(null)));
    assert!(rollback(&server, "{}").refused(404, "version_not_found").contains("not served from a store"));
}

#[test]
fn with_a_token_the_page_is_open_and_everything_it_asks_for_is_not() {
    let place = two_versions();
    place.write("token", TOKEN);
    fs::set_permissions(place.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let server = Serving::start(place.folder(), "--store store --token-file token");
    assert_eq!(server.get("/").status, 200);
    server.get("/v1/status").refused(401, "unauthorized");
    rollback(&server, "{}").refused(401, "unauthorized");
    let headers = [("authorization", "Bearer 0123456789abcdef"), ("content-type", "application/json")];
    server.ask("GET /v1/status", &headers, b"").good();
    server.ask("POST /v1/models/shapes/rollback", &headers, b"{}").good();
}

/// Runs the browser; what is not installed skips.
#[track_caller]
fn browse(place: &Path, server: &Serving, more: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/serve/dashboard.py");
    let python = peers::python();
    let axe = std::env::var("SECATEUR_AXE").ok();
    let axe: Vec<&str> = axe.iter().flat_map(|file| ["--axe", file]).collect();
    let mut command = Command::new(&python);
    command.current_dir(place).args([script, &server.address.to_string(), "shapes"]).args(axe).args(more);
    let Ok(output) = command.output() else {
        println!("skipped: {python} does not start");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    if last.starts_with("missing: ") {
        println!("skipped: {last} (SECATEUR_PYTHON names another interpreter)");
        return;
    }
    assert!(output.status.success() && last == "ok", "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}

#[test]
fn a_browser_shows_it_and_rolls_back_by_keyboard() {
    let place = two_versions();
    let server = Serving::start(place.folder(), "--store store");
    browse(place.folder(), &server, &[]);
}

#[test]
fn a_browser_asks_for_the_token_once() {
    let place = two_versions();
    place.write("token", TOKEN);
    fs::set_permissions(place.path("token"), fs::Permissions::from_mode(0o600)).unwrap();
    let server = Serving::start(place.folder(), "--store store --token-file token");
    browse(place.folder(), &server, &["--token", TOKEN]);
}
