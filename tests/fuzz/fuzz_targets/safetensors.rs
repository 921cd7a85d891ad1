//! Weights files, from the header to the tensors.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use secateur::weights::TensorFile;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a temporary file");
    file.write_all(data).expect("it can be written");
    let Ok(tensors) = TensorFile::open(file.path()) else { return };
    for name in tensors.names() {
        let Ok((_, shape)) = tensors.info(name) else { continue };
        let values: usize = shape.iter().product();
        if let Ok(read) = tensors.read_f32(name) {
            assert_eq!(read.len(), values);
        }
    }
});
