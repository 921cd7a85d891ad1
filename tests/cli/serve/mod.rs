//! The server, over real sockets.

mod access;
mod bad_input;
mod configuration;
mod dashboard;
mod peers;
mod protocol;
pub mod server;
mod soak;
mod swap;
mod tls;

use serde_json::{Value, json};

use super::shapes::{self, SIDE};
use super::workplace::Workplace;
use secateur::rng::Rng;
use server::Serving;

/// Serves the small teacher under the name `shapes`.
fn shapes_server(place: &Workplace, more: &str) -> Serving {
    Serving::start(place.folder(), &format!("--model teacher.safetensors --name shapes {more}"))
}

/// Raw pixels of shape `class`.
fn pixels(class: usize) -> Vec<u8> {
    shapes::draw(class, &mut Rng::new(5)).into_raw()
}

/// A request with `data` as JSON.
fn request(datatype: &str, shape: &[usize], data: &[f32]) -> Value {
    json!({"inputs": [{"name": "input", "datatype": datatype, "shape": shape, "data": data}]})
}

/// A request with the pixels of shape `class` as UINT8.
fn pixel_request(class: usize) -> Value {
    let pixels: Vec<f32> = pixels(class).into_iter().map(f32::from).collect();
    request("UINT8", &[1, SIDE, SIDE, 1], &pixels)
}

/// Publishes a model under the name `shapes` and activates the new version.
#[track_caller]
fn publish(place: &Workplace, file: &str) {
    // A store takes models that say all about themselves.
    place.run(&format!("export {file} --safetensors whole.safetensors")).ends_with(&[0]);
    place.run("models publish --store store --activate --name shapes whole.safetensors").ends_with(&[0]);
}
