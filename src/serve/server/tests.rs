use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;

use axum::Router;
use axum::routing::{get, post};

use super::*;
use crate::serve::http::SeenImage;
use crate::serve::models::Source;
use crate::serve::models::testing::{model, registry};
use crate::store::Version;

fn config() -> ServeConfig {
    ServeConfig { listen: Some(([127, 0, 0, 1], 0).into()), threads: 1, ..ServeConfig::default() }
}

fn server(extras: Extras) -> ServerHandle {
    let registry = registry(10);
    registry.deploy(&"digits".parse().unwrap(), Version(3), || Ok(model(1))).unwrap();
    Server::new(config(), Arc::new(Repository::new(Source::None, registry))).with(extras).start().unwrap()
}

/// Status and body of the answer to a request.
fn ask(server: &ServerHandle, request: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(server.address().unwrap()).unwrap();
    let length = body.len();
    write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string())
}

/// A grey BMP of the model's size.
fn image() -> Vec<u8> {
    let mut file = std::io::Cursor::new(Vec::new());
    image::GrayImage::from_pixel(28, 28, image::Luma([77])).write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

#[test]
fn a_program_around_it_adds_routes_and_sees_images() {
    let seen: Arc<Mutex<Vec<SeenImage>>> = Arc::default();
    let sink = seen.clone();
    let server = server(Extras {
        routes: Router::new().route("/page", get(|| async { "a page" })),
        control_routes: Router::new().route("/adapt", post(|| async { "begun" })),
        on_image: Some(Arc::new(move |image| sink.lock().unwrap().push(image))),
        status: Some(Arc::new(|| serde_json::json!({"state": "collecting"}))),
        metrics: Some(Arc::new(|| "own_things 3\n".to_string())),
    });
    assert_eq!(ask(&server, "GET /page", b""), (200, "a page".to_string()));
    let status: serde_json::Value = serde_json::from_str(&ask(&server, "GET /v1/status", b"").1).unwrap();
    assert_eq!(status["adaptation"], serde_json::json!({"state": "collecting"}));
    assert_eq!(ask(&server, "POST /adapt", b""), (200, "begun".to_string()));
    assert!(ask(&server, "GET /metrics", b"").1.ends_with("own_things 3\n"));
    assert_eq!(ask(&server, "POST /classify?top=2", &image()).0, 200);
    assert_eq!(ask(&server, "POST /classify", b"no image").0, 400);
    let seen = seen.lock().unwrap();
    let [only] = &seen[..] else { panic!("expected one image, got {}", seen.len()) };
    assert_eq!((only.bytes.to_vec(), only.model.as_str(), only.version), (image(), "digits", Version(3)));
    assert!(only.ranked.len() == 2 && only.ranked[0].1 >= only.ranked[1].1);
}

#[test]
fn versions_are_deployed_and_counts_read_from_outside() {
    let server = server(Extras::default());
    let name = "digits".parse().unwrap();
    server.registry().deploy(&name, Version(4), || Ok(model(2))).unwrap();
    assert!(ask(&server, "GET /v2/models/digits", b"").1.contains("\"versions\":[\"4\"]"));
    assert_eq!(server.metrics().model(&name).version.get(), 4);
    assert_eq!(server.metrics().answers_with(200), 1);
}

#[test]
fn a_reload_changes_what_it_may_and_refuses_what_makes_no_sense() {
    let server = server(Extras::default());
    let small = ServeConfig { max_body_bytes: 3, ..config() };
    assert!(server.reload(ServeConfig { max_batch: 0, ..small.clone() }).is_err());
    assert_eq!(ask(&server, "POST /classify", &image()).0, 200);
    server.reload(small).unwrap();
    assert_eq!(ask(&server, "POST /classify", &image()).0, 413);
}

#[test]
fn stopped_it_holds_neither_address_nor_models() {
    let server = server(Extras::default());
    let (address, registry) = (server.address().unwrap(), server.registry().clone());
    server.stop();
    assert!(TcpStream::connect(address).is_err());
    assert!(registry.all().is_empty());
}
