//! Inference requests: the first two bytes say how long the JSON claims to be, the rest is the body.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use secateur::data::Preprocess;
use secateur::serve::protocol::{Answer, InferRequest, Signature};

fuzz_target!(|data: &[u8]| {
    let Some((length, body)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length));
    let length = (length != usize::from(u16::MAX)).then_some(length);
    let Ok(request) = InferRequest::parse(&Bytes::copy_from_slice(body), length) else { return };
    let preprocess = Preprocess { channels: 1, height: 2, width: 2, mean: vec![0.5], std: vec![0.5], ..Default::default() };
    let signature = Signature { input: [1, 2, 2], class_names: vec!["a".into(), "b".into()], preprocess };
    let Ok((images, count)) = request.images(&signature) else { return };
    assert_eq!(images.len(), count * 4);
    assert!(images.iter().all(|value| value.is_finite()));
    let logits = vec![0.5; count * 2];
    let id = request.id.as_deref();
    let answer = Answer { id, model: "m", version: "1", class_names: &signature.class_names, logits: &logits };
    let encoded = answer.encode(request.wanted);
    assert!(encoded.json_length.unwrap_or(encoded.body.len()) <= encoded.body.len());
});
