//! Clients that are wrong, slow, or many: each gets a clear refusal or a clean close, and the server goes on.

use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::server::Serving;
use super::{Workplace, pixel_request, publish, request, shapes_server};
use crate::shapes::SIDE;

const INFER: &str = "/v2/models/shapes/infer";

/// Fails unless the server still gives the right answer.
#[track_caller]
fn still_answers(server: &Serving) {
    server.get("/v2/health/ready").good();
    let answer = server.post(INFER, &pixel_request(1)).good();
    assert_eq!(answer["outputs"][0]["shape"], json!([1, 4]));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn wrong_requests_are_refused_by_their_kind() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let pixels = vec![0.0; SIDE * SIDE];
    let post = |body: &[u8]| server.ask(&format!("POST {INFER}"), &[], body);
    for body in
        [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", b"{\"inputs\": [{}]}", b"{\"inputs\": 3}", &[b'['; 100_000]]
    {
        post(body).refused(400, "malformed");
    }
    for (datatype, shape) in [
        ("FP64", vec![1, 1, SIDE, SIDE]),
        ("FP32", vec![1, 3, SIDE, SIDE]),
        ("FP32", vec![SIDE, SIDE]),
        ("FP32", vec![0, 1, SIDE, SIDE]),
        ("FP32", vec![2, 1, SIDE, SIDE]),
        ("UINT8", vec![1, 1, SIDE, SIDE]),
    ] {
        server.post(INFER, &request(datatype, &shape, &pixels)).refused(400, "invalid_tensor");
    }
    let mut shape = request("FP32", &[1, 1, SIDE, SIDE], &pixels);
    shape["inputs"][0]["shape"] = json!([1, 1, -12, -12]);
    server.post(INFER, &shape).refused(400, "invalid_tensor");
    server.post(INFER, &request("FP32", &[1, 1, SIDE, SIDE], &vec![3e38; SIDE * SIDE])).refused(400, "not_finite");
    let many = 300;
    let large = request("UINT8", &[many, SIDE, SIDE, 1], &vec![0.0; many * SIDE * SIDE]);
    server.post(INFER, &large).refused(400, "invalid_parameter");

    // Binary tensors whose sizes lie, and NaN, which JSON cannot hold.
    let tensor = |size: usize| json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, SIDE, SIDE], "parameters": {"binary_data_size": size}}]});
    let binary = |size: usize, length: &str, bytes: &[u8]| {
        let head = tensor(size).to_string();
        let length = if length.is_empty() { head.len().to_string() } else { length.to_string() };
        let body = [head.as_bytes(), bytes].concat();
        server.ask(&format!("POST {INFER}"), &[("inference-header-content-length", &length)], &body)
    };
    let bytes = vec![0; 4 * SIDE * SIDE];
    binary(bytes.len(), "", &bytes).good();
    binary(bytes.len(), "", &bytes[1..]).refused(400, "malformed");
    binary(bytes.len() - 4, "", &bytes).refused(400, "invalid_tensor");
    binary(usize::MAX, "", &bytes).refused(400, "malformed");
    binary(bytes.len(), "18446744073709551615", &bytes).refused(400, "malformed");
    binary(bytes.len(), "-1", &bytes).refused(400, "malformed");
    binary(bytes.len(), "0", &bytes).refused(400, "malformed");
    binary(bytes.len() - 4, "", &bytes[4..]).refused(400, "invalid_tensor");
    let nan = f32::NAN.to_le_bytes().repeat(SIDE * SIDE);
    binary(nan.len(), "", &nan).refused(400, "not_finite");

    server.ask(&format!("POST {INFER}"), &[("content-encoding", "gzip")], b"{}").refused(415, "unsupported_media_type");
    server.post("/v2/repository/index", &json!({"ready": "yes"})).refused(400, "malformed");
    still_answers(&server);
}

#[test]
fn wrong_images_are_refused() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let classify = |body: &[u8]| server.ask("POST /classify", &[("content-type", "image/png")], body);
    let image = place.bytes("images/ring/00.png");
    let photo = place.bytes("images/ring/01.jpg");
    for body in
        [&b""[..], b"no image", b"GIF89a..........", &image[..image.len() / 2], &photo[..photo.len() / 2], b"BM"]
    {
        classify(body).refused(400, "invalid_image");
    }
    // The header of a PNG of 60000 × 60000 pixels.
    let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0".to_vec();
    bomb.extend(bomb_crc(&bomb[12..29]).to_be_bytes());
    bomb.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    let message = classify(&bomb).refused(400, "invalid_image");
    assert!(message.contains("60000x60000"), "{message}");
    for (query, code) in
        [("top=0", "invalid_parameter"), ("top=x", "invalid_parameter"), ("top=1&top=2", "invalid_parameter")]
    {
        server.ask(&format!("POST /classify?{query}"), &[], &image).refused(400, code);
    }
    let form = [("content-type", "multipart/form-data; boundary=b")];
    server.ask("POST /classify", &form, &image).refused(400, "malformed");
    server.ask("POST /classify", &[("content-type", "text/html")], &image).refused(415, "unsupported_media_type");
    still_answers(&server);
}

/// The checksum of a PNG chunk.
fn bomb_crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 })
    })
}

#[test]
fn names_lead_nowhere_else() {
    let place = Workplace::new();
    publish(&place, "teacher.safetensors");
    let server = Serving::start(place.folder(), "--store store");
    let long = "x".repeat(5000);
    let names = [
        "..%2F..%2Fetc%2Fpasswd",
        "%2e%2e",
        "..",
        "%00",
        ".lock",
        "shapes%2F1",
        "shapes%20",
        "SHAPES",
        &long,
        "%C3%A4",
    ];
    for name in names {
        for path in [format!("/v2/models/{name}"), format!("/v2/models/{name}/ready")] {
            assert_eq!(server.get(&path).status, 404, "{path}");
        }
        for verb in ["load", "unload"] {
            assert_eq!(server.post(&format!("/v2/repository/models/{name}/{verb}"), &json!({})).status, 404, "{name}");
        }
    }
    assert_eq!(server.get("/v2/models/%FF").status, 400);
    assert_eq!(server.get("/v2/models/shapes/versions/..%2F1").status, 404);
    still_answers(&server);
}

#[test]
fn bodies_and_headers_have_limits() {
    let place = Workplace::new();
    let config =
        "[serve]\nmax_body_bytes = 20000\nbody_timeout_ms = 300\nheader_timeout_ms = 500\nbody_memory_bytes = 20000";
    place.write("config.toml", config);
    let server = shapes_server(&place, "--config config.toml");
    server.ask(&format!("POST {INFER}"), &[], &[b' '; 20001]).refused(413, "body_too_large");
    // A body of unstated length that never ends, and one that is announced and does not come.
    let mut client = server.connect();
    client.send(format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    for _ in 0..30 {
        let _ = client.send(&[b"400\r\n", &[b' '; 1024][..], b"\r\n"].concat());
    }
    client.answer().expect("an answer").refused(413, "body_too_large");
    let mut client = server.connect();
    client.send(format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf").as_bytes()).unwrap();
    client.answer().expect("an answer").refused(408, "body_timeout");
    // While one body holds the memory, another of its size is turned away.
    let mut holding = server.connect();
    holding.send(format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 19000\r\n\r\n").as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let answer = server.ask(&format!("POST {INFER}"), &[], &[b' '; 10000]);
    answer.refused(429, "overloaded");
    assert_eq!(answer.header("retry-after"), Some("1"));
    // Headers that are too large, too many, broken, or never end.
    for head in [
        format!("GET /v2 HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(100_000)),
        format!("GET /v2 HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(1000)),
        "GET /v2 HTTP/1.1\r\nno colon\r\n\r\n".to_string(),
        "POST /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n".to_string(),
        "\0\0\0\0\r\n\r\n".to_string(),
    ] {
        let mut client = server.connect();
        let _ = client.send(head.as_bytes());
        let status = client.answer().map(|answer| answer.status);
        assert!(
            status.is_none_or(|status| (400..500).contains(&status)),
            "{status:?} for {:?}",
            &head[..30.min(head.len())]
        );
    }
    let begun = Instant::now();
    let mut client = server.connect();
    client.send(b"GET /v2 HTTP/1.1\r\nhost:").unwrap();
    assert!(client.answer().is_none());
    assert!(begun.elapsed() < Duration::from_secs(10), "a header that never ends held its connection");
    still_answers(&server);
}

#[test]
fn clients_that_leave_are_forgotten() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let body = pixel_request(0).to_string();
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    for how in 0..40 {
        let mut client = server.connect();
        match how % 4 {
            // Half a header, half a body, a whole request and no ear, a half-closed connection.
            0 => client.send(&head.as_bytes()[..20]).unwrap(),
            1 => client.send(&[head.as_bytes(), &body.as_bytes()[..10]].concat()).unwrap(),
            2 => client.send(&[head.as_bytes(), body.as_bytes()].concat()).unwrap(),
            _ => {
                client.send(&[head.as_bytes(), &body.as_bytes()[..10]].concat()).unwrap();
                client.0.get_ref().shutdown(Shutdown::Write).unwrap();
                let status = client.answer().map(|answer| answer.status);
                assert!(status.is_none_or(|status| status == 400), "{status:?}");
            }
        }
    }
    still_answers(&server);
    let begun = Instant::now();
    loop {
        let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
        if metrics.lines().any(|line| line == "secateur_connections 1") {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "connections are left open:\n{metrics}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let place = Workplace::new();
    place.write("config.toml", "[serve]\nmax_connections = 50");
    let server = shapes_server(&place, "--config config.toml");
    let mut busy = server.connect();
    busy.ask("GET /v2", &[], b"").good();
    let idle: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    still_answers(&server);
    let metrics = String::from_utf8(server.get("/metrics").body).unwrap();
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} is not in\n{metrics}")).parse().unwrap()
    };
    assert!(count("secateur_connections") <= 50, "{metrics}");
    assert!(count("secateur_connections_evicted_total") >= 250, "{metrics}");
    drop(idle);
}

#[test]
fn a_deadline_that_cannot_be_kept_is_told() {
    let place = Workplace::new();
    let server = shapes_server(&place, "");
    let mut body = pixel_request(0);
    body["parameters"] = json!({"timeout": 0});
    server.post(INFER, &body).refused(504, "deadline_exceeded");
    body["parameters"] = json!({"timeout": 10_000_000});
    server.post(INFER, &body).good();
}

#[test]
fn a_full_queue_turns_requests_away() {
    let place = Workplace::new();
    place.write("config.toml", "[serve]\nqueue_images = 64");
    let server = shapes_server(&place, "--config config.toml");
    let body = request("UINT8", &[64, SIDE, SIDE, 1], &vec![0.0; 64 * SIDE * SIDE]).to_string();
    let outcomes: Vec<(u16, Option<String>)> = std::thread::scope(|scope| {
        let ask = || {
            let answer = server.ask(&format!("POST {INFER}"), &[], body.as_bytes());
            (answer.status, answer.header("retry-after").map(String::from))
        };
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(move || (0..5).map(|_| ask()).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(
        outcomes.iter().all(|(status, after)| *status == 200 || (*status == 429 && after.is_some())),
        "{outcomes:?}"
    );
    assert!(outcomes.iter().any(|(status, _)| *status == 200) && outcomes.iter().any(|(status, _)| *status == 429));
    still_answers(&server);
}
