//! What a client that follows the protocol sees.

use serde_json::json;

use super::server::Serving;
use super::{Workplace, pixel_request, pixels, request, shapes_server};
use crate::shapes::{NAMES, SIDE};

/// Mean and deviation of the teacher's normalisation.
const HALF: f32 = 0.3;

fn normalised(class: usize) -> Vec<f32> {
    pixels(class).into_iter().map(|p| (f32::from(p) / 255.0 - HALF) / HALF).collect()
}

fn logits(server: &Serving, body: &serde_json::Value) -> Vec<f64> {
    let answer = server.post("/v2/models/shapes/infer", body).good();
    answer["outputs"][0]["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

#[test]
fn the_server_and_its_model_describe_themselves() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    assert_eq!(server.get("/v2").good()["name"], "secateur");
    let model = server.get("/v2/models/shapes").good();
    assert_eq!(model["inputs"], json!([{"name": "input", "datatype": "FP32", "shape": [-1, 1, SIDE, SIDE]}]));
    assert_eq!(model["outputs"], json!([{"name": "logits", "datatype": "FP32", "shape": [-1, NAMES.len()]}]));
    assert_eq!((&model["versions"], &model["class_names"]), (&json!(["1"]), &json!(NAMES)));
    assert_eq!(server.get("/v2/models/shapes/versions/1").good(), model);
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/shapes/ready", "/v2/models/shapes/versions/1/ready"]
    {
        server.get(path).good();
    }
    let index = server.post("/v2/repository/index", &json!({})).good();
    assert_eq!(index, json!([{"name": "shapes", "version": "1", "state": "READY", "reason": ""}]));
    server.get("/v2/models/other").refused(404, "model_not_found");
    server.get("/v2/models/shapes/versions/2").refused(404, "version_not_found");
    server.get("/v2/models/shapes/versions/01").refused(404, "version_not_found");
    server.get("/v3").refused(404, "not_found");
    server.get("/classify").refused(405, "method_not_allowed");
    let description = server.get("/openapi.json").good();
    assert!(description["paths"]["/classify"].is_object());
}

#[test]
fn tensors_give_the_logits_of_the_program_in_every_form() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    for (class, name) in NAMES.iter().enumerate() {
        let floats = logits(&server, &request("FP32", &[1, 1, SIDE, SIDE], &normalised(class)));
        let best = (0..floats.len()).max_by(|a, b| floats[*a].total_cmp(&floats[*b])).unwrap();
        assert_eq!(best, class, "{name}: {floats:?}");
        let from_pixels = logits(&server, &pixel_request(class));
        assert!(floats.iter().zip(&from_pixels).all(|(a, b)| (a - b).abs() < 1e-4), "{floats:?} {from_pixels:?}");
    }

    // Both directions binary, two images at once.
    let both: Vec<f32> = [normalised(0), normalised(1)].concat();
    let bytes: Vec<u8> = both.iter().flat_map(|v| v.to_le_bytes()).collect();
    let head = json!({
        "id": "abc",
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 1, SIDE, SIDE], "parameters": {"binary_data_size": bytes.len()}}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": true}}],
    })
    .to_string();
    let body = [head.as_bytes(), &bytes].concat();
    let length = head.len().to_string();
    let answer =
        server.ask("POST /v2/models/shapes/versions/1/infer", &[("inference-header-content-length", &length)], &body);
    assert_eq!(answer.status, 200);
    assert!(answer.header("server-timing").unwrap().contains("compute;dur="), "{answer:?}");
    let json_length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&answer.body[..json_length]).unwrap();
    assert_eq!((&json["id"], &json["model_version"]), (&json!("abc"), &json!("1")));
    assert_eq!(json["outputs"][0]["shape"], json!([2, NAMES.len()]));
    let got: Vec<f32> = answer.body[json_length..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let want = [0, 1].map(|class| logits(&server, &request("FP32", &[1, 1, SIDE, SIDE], &normalised(class)))).concat();
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4), "{got:?} {want:?}");
}

#[test]
fn classes_come_by_name_where_they_are_asked_for() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let mut body = pixel_request(2);
    body["outputs"] = json!([{"name": "logits", "parameters": {"classification": 2}}]);
    let output = &server.post("/v2/models/shapes/infer", &body).good()["outputs"][0];
    assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([1, 2])));
    assert!(output["data"][0].as_str().unwrap().ends_with(":2:ring"), "{output}");
}

#[test]
fn photographs_are_classified_as_body_and_as_form() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    for (class, name) in NAMES.iter().enumerate() {
        let file = place.bytes(&format!("images/{name}/00.png"));
        let answer = server.ask("POST /classify?top=2", &[("content-type", "image/png")], &file).good();
        assert_eq!((&answer["model"], &answer["classes"][0]["class"]), (&json!("shapes"), &json!(name)), "{answer}");
        assert_eq!((&answer["classes"][0]["index"], answer["classes"].as_array().unwrap().len()), (&json!(class), 2));
        let head = "--b\r\ncontent-disposition: form-data; name=\"image\"; filename=\"a\"\r\n\r\n";
        let form = [head.as_bytes(), &file, b"\r\n--b--\r\n"].concat();
        let formed = server.ask("POST /classify", &[("content-type", "multipart/form-data; boundary=b")], &form).good();
        assert_eq!(formed["classes"][0], answer["classes"][0]);
    }
    let message = server.ask("POST /classify?model=x", &[], b"").refused(404, "model_not_found");
    assert!(message.contains("\"x\""), "{message}");
}

#[test]
fn ids_metrics_and_kept_connections() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let mut client = server.connect();
    let named = client.ask("GET /v2", &[("x-request-id", "camera-7")], b"");
    assert_eq!(named.header("x-request-id"), Some("camera-7"));
    let ids: Vec<String> =
        (0..3).map(|_| client.ask("GET /v2", &[], b"").header("x-request-id").unwrap().into()).collect();
    assert!(ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
    for _ in 0..5 {
        client.ask("POST /v2/models/shapes/infer", &[], pixel_request(1).to_string().as_bytes()).good();
    }
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    for line in [
        "secateur_http_requests_total{route=\"/v2\",code=\"200\"} 4",
        "secateur_http_requests_total{route=\"/v2/models/{model}/infer\",code=\"200\"} 5",
        "secateur_compute_duration_seconds_count{model=\"shapes\"} 5",
        "secateur_model_info{model=\"shapes\",version=\"1\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
}

#[test]
#[cfg(unix)]
fn a_unix_socket_answers_as_well() {
    use std::io::BufReader;
    let place = Workplace::new();
    let server = shapes_server(&place, "--socket s.sock");
    server.wait_for("listening socket=");
    let stream = std::os::unix::net::UnixStream::connect(place.path("s.sock")).unwrap();
    super::server::Client(BufReader::new(stream)).ask("GET /v2/health/ready", &[], b"").good();
    server.signal(libc::SIGTERM);
    server.end().ends_with(&[0]);
    assert!(!place.path("s.sock").exists());
}
