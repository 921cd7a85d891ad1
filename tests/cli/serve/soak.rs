//! Five hundred changes of version under load. Takes two minutes, so it is asked for: `cargo test --test cli -- --ignored
//! --nocapture soak`, with `SECATEUR_PROGRAM=target/release/secateur` for figures that mean something, and
//! `SECATEUR_MODELS=a.safetensors:b.safetensors` for other models than the tests' own.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use secateur::store::{Store, Version};
use serde_json::json;

use super::server::Serving;
use super::{Workplace, publish};
use crate::teacher;

const SWAPS: u64 = 500;
/// Swaps between two calm times.
const BLOCK: u64 = 25;
const CONNECTIONS: usize = 8;
const CALM: Duration = Duration::from_secs(2);
const BETWEEN_SWAPS: Duration = Duration::from_millis(80);

#[test]
#[ignore = "two minutes"]
fn five_hundred_swaps_fail_no_request_delay_none_and_leak_nothing() {
    let place = Workplace::new();
    teacher::write_untrained(&place.path("other.safetensors"), 4);
    let models = std::env::var("SECATEUR_MODELS").unwrap_or_else(|_| "teacher.safetensors:other.safetensors".into());
    models.split(':').for_each(|model| publish(&place, model));
    let (store, name) = (Store::open(&place.path("store")).unwrap(), "shapes".parse().unwrap());
    let server = Serving::start(place.folder(), "--store store");
    let (body, length) = black_image(&server);
    let (stop, phase) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Milliseconds of requests that began in calm times, and between swaps.
    let times = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
    let mut memory = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut client = server.connect();
                while !stop.load(Ordering::Relaxed) {
                    let (phase, begun) = (phase.load(Ordering::Relaxed), Instant::now());
                    let headers = [("inference-header-content-length", length.as_str())];
                    let answer = client.ask("POST /v2/models/shapes/infer", &headers, &body);
                    assert_eq!(answer.status, 200, "{:?}", String::from_utf8_lossy(&answer.body));
                    times[phase].lock().unwrap().push(begun.elapsed().as_secs_f64() * 1e3);
                }
            });
        }
        let mut control = server.connect();
        for swap in 0..SWAPS {
            if swap % BLOCK == 0 {
                phase.store(0, Ordering::Relaxed);
                std::thread::sleep(CALM);
                memory.push((swap, resident_kib(server.pid())));
                phase.store(1, Ordering::Relaxed);
            }
            store.activate(&name, Version(swap % 2 + 1)).unwrap();
            let loaded = control.ask("POST /v2/repository/models/shapes/load", &[], b"").good();
            assert_eq!(loaded, json!({"name": "shapes", "version": (swap % 2 + 1).to_string()}));
            std::thread::sleep(BETWEEN_SWAPS);
        }
        phase.store(0, Ordering::Relaxed);
        std::thread::sleep(CALM);
        memory.push((SWAPS, resident_kib(server.pid())));
        stop.store(true, Ordering::Relaxed);
    });
    let [calm, swapping] = times.map(|times| {
        let mut times = times.into_inner().unwrap();
        times.sort_by(f64::total_cmp);
        [0.5, 0.9, 0.99, 1.0].map(|q| times[((times.len() - 1) as f64 * q) as usize])
    });
    println!("ms at the 50th, 90th, 99th, 100th percentile: calm {calm:.2?}, swapping {swapping:.2?}");
    println!("resident KiB after so many swaps: {memory:?}");
    assert!(swapping[2] <= 2.0 * calm[2], "p99: calm {} ms, swapping {} ms", calm[2], swapping[2]);
    let (early, late) = (memory[1].1, memory[memory.len() - 1].1);
    assert!(late as f64 <= 1.05 * early as f64, "{memory:?}");
}

/// A request with a binary tensor of zeros that suits the model, and the length of its JSON.
fn black_image(server: &Serving) -> (Vec<u8>, String) {
    let metadata = server.get("/v2/models/shapes").good();
    let mut shape: Vec<u64> =
        metadata["inputs"][0]["shape"].as_array().unwrap().iter().filter_map(|n| n.as_u64()).collect();
    shape.insert(0, 1);
    let size = 4 * shape.iter().product::<u64>() as usize;
    let tensor = json!({"name": "input", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}});
    let head = json!({"inputs": [tensor], "parameters": {"binary_data_output": true}}).to_string();
    ([head.as_bytes(), &vec![0; size]].concat(), head.len().to_string())
}

/// Median of a few readings: requests come and go.
fn resident_kib(pid: u32) -> u64 {
    let mut readings: Vec<u64> = (0..15)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        })
        .collect();
    readings.sort_unstable();
    readings[readings.len() / 2]
}
