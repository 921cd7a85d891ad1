//! Drives the real program, every test in a folder of its own.

mod accuracy;
mod adapt;
mod broken_images;
mod daemon;
mod demo;
mod doctor;
mod errors;
mod export;
mod gate;
mod latency;
mod models;
mod models_crash;
mod models_disk;
mod onnx_runtime;
mod predict;
mod program;
mod real_data;
mod resume;
mod serve;
mod shapes;
mod teacher;
mod workplace;
