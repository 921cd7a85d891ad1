//! Versions that take each other's place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::server::Serving;
use super::{Workplace, pixel_request, publish};
use crate::teacher;

fn wait_for_version(server: &Serving, version: &str) {
    let begun = Instant::now();
    while server.get("/v2/models/shapes").good()["versions"] != json!([version]) {
        assert!(begun.elapsed() < Duration::from_secs(30), "version {version} does not serve:\n{}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn activated_versions_are_followed_without_a_failed_request() {
    let place = Workplace::new();
    teacher::write_untrained(&place.path("other.safetensors"), 4);
    publish(&place, "teacher.safetensors");
    let server = Serving::start(place.folder(), "--store store");
    let body = pixel_request(1).to_string();
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = server.connect();
                while !stop.load(Ordering::Relaxed) {
                    client.ask("POST /v2/models/shapes/infer", &[], body.as_bytes()).good();
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for (version, file) in [("2", "other.safetensors"), ("3", "teacher.safetensors"), ("4", "other.safetensors")] {
            publish(&place, file);
            wait_for_version(&server, version);
        }
        place.run("models rollback --store store shapes").ends_with(&[0]);
        wait_for_version(&server, "3");
        for _ in 0..20 {
            server.post("/v2/repository/models/shapes/load", &json!({})).good();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(answers.load(Ordering::Relaxed) > 100);
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    assert!(metrics.contains("secateur_model_loads_total{model=\"shapes\"} 25"), "{metrics}");
}

#[test]
fn a_damaged_version_does_not_take_over_and_does_not_start() {
    let place = Workplace::new();
    publish(&place, "teacher.safetensors");
    let server = Serving::start(place.folder(), "--store store");
    publish(&place, "teacher.safetensors");
    wait_for_version(&server, "2");
    // Damage without the store's knowledge, as a worn-out card does it.
    let path = place.path("store/shapes/1/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 4;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(place.path("store/shapes/active"), "{\"version\": 1, \"earlier\": [2]}").unwrap();
    let why = server.wait_for("version refused model=shapes version=1 still_serving=2: ");
    assert!(why.contains("SHA-256"), "{why}");
    server.post("/v2/repository/models/shapes/load", &json!({})).refused(422, "model_refused");
    server.post("/v2/models/shapes/infer", &pixel_request(0)).good();
    drop(server);
    let server = Serving::start(place.folder(), "--store store");
    assert!(server.log().contains("version cannot serve model=shapes version=1"), "{}", server.log());
    wait_for_version(&server, "2");
}

#[test]
fn a_store_may_be_empty_at_first() {
    let place = Workplace::new();
    let server = Serving::start(place.folder(), "--store store");
    server.get("/v2/health/ready").refused(503, "unavailable");
    server.ask("POST /classify", &[], b"").refused(503, "unavailable");
    publish(&place, "teacher.safetensors");
    let begun = Instant::now();
    while server.get("/v2/health/ready").status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
}
