use super::*;
use crate::data::Preprocess;
use proptest::prelude::*;
use serde_json::{Value, json};

fn signature() -> Signature {
    let preprocess =
        Preprocess { channels: 3, height: 1, width: 2, mean: vec![0.5; 3], std: vec![0.5; 3], ..Preprocess::default() };
    Signature { input: [3, 1, 2], class_names: vec!["a".into(), "b".into()], preprocess }
}

fn parse(json: &Value) -> Result<InferRequest, Refusal> {
    InferRequest::parse(&Bytes::from(json.to_string()), None)
}

fn with_tensor(tensor: &Value) -> Value {
    json!({ "inputs": [tensor] })
}

/// A request with `binary` behind its JSON.
fn binary(tensor: &Value, binary: &[u8]) -> Result<InferRequest, Refusal> {
    let json = with_tensor(tensor).to_string();
    let body = [json.as_bytes(), binary].concat();
    InferRequest::parse(&Bytes::from(body), Some(json.len()))
}

fn code(result: Result<InferRequest, Refusal>) -> &'static str {
    result.and_then(|request| request.images(&signature())).unwrap_err().code.name_and_status().0
}

#[test]
fn flat_and_nested_data_are_the_same() {
    let flat = json!({"name": "input", "datatype": "FP32", "shape": [1, 3, 1, 2], "data": [0, 1, 2.5, -3, 4, 5e-1]});
    let nested = json!({"name": "input", "datatype": "FP32", "shape": [1, 3, 1, 2], "data": [[[[0, 1]], [[2.5, -3]], [[4, 0.5]]]]});
    for tensor in [flat, nested] {
        let (images, count) = parse(&with_tensor(&tensor)).unwrap().images(&signature()).unwrap();
        assert_eq!((images, count), (vec![0.0, 1.0, 2.5, -3.0, 4.0, 0.5], 1));
    }
}

#[test]
fn binary_tensors_follow_the_json() {
    let values = [0.0f32, 1.0, 2.0, 3.0, 4.0, 5.0];
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensor =
        json!({"name": "input", "datatype": "FP32", "shape": [1, 3, 1, 2], "parameters": {"binary_data_size": 24}});
    assert_eq!(binary(&tensor, &bytes).unwrap().images(&signature()).unwrap(), (values.to_vec(), 1));
    assert_eq!(code(binary(&tensor, &bytes[..23])), "malformed");
    assert_eq!(code(binary(&tensor, &[&bytes[..], b"!"].concat())), "malformed");
    let nan = [&bytes[..20], &f32::NAN.to_le_bytes()].concat();
    assert_eq!(code(binary(&tensor, &nan)), "not_finite");
}

#[test]
fn raw_pixels_are_normalised_and_turned_to_planes() {
    let tensor =
        json!({"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 3], "parameters": {"binary_data_size": 6}});
    let want = [1.0, -1.0, 1.0, 1.0, -1.0, 1.0];
    assert_eq!(binary(&tensor, &[255, 255, 0, 0, 255, 255]).unwrap().images(&signature()).unwrap().0, want);
    let tensor =
        json!({"name": "input", "datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [255, 255, 0, 0, 255, 255]});
    assert_eq!(parse(&with_tensor(&tensor)).unwrap().images(&signature()).unwrap().0, want);
}

#[test]
fn what_the_answer_shall_look_like_is_read() {
    let tensor = json!({"name": "input", "datatype": "FP32", "shape": [1, 3, 1, 2], "data": [0, 0, 0, 0, 0, 0]});
    let request = parse(&json!({
        "id": "42", "inputs": [tensor], "parameters": {"binary_data_output": true, "timeout": 1500, "priority": 3},
    }))
    .unwrap();
    assert_eq!(request.id.as_deref(), Some("42"));
    assert_eq!(request.wanted, Wanted { classification: None, binary: true });
    assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
    let output = json!({"name": "logits", "parameters": {"classification": 2, "binary_data": false}});
    let request =
        parse(&json!({"inputs": [tensor], "outputs": [output], "parameters": {"binary_data_output": true}})).unwrap();
    assert_eq!(request.wanted, Wanted { classification: Some(2), binary: false });
}

#[test]
fn what_does_not_fit_is_refused_by_its_kind() {
    let good = json!({"name": "input", "datatype": "FP32", "shape": [1, 3, 1, 2], "data": [0, 0, 0, 0, 0, 0]});
    let changed = |key: &str, value: Value| {
        let mut tensor = good.clone();
        tensor[key] = value;
        code(parse(&with_tensor(&tensor)))
    };
    assert_eq!(changed("name", json!("image")), "invalid_tensor");
    assert_eq!(changed("datatype", json!("FP64")), "invalid_tensor");
    assert_eq!(changed("datatype", json!(7)), "malformed");
    for shape in [json!([]), json!([0, 3, 1, 2]), json!([1, 3, 2]), json!([1, 3, 1, 3]), json!([-1, 3, 1, 2])] {
        assert_eq!(changed("shape", shape.clone()), "invalid_tensor", "{shape}");
    }
    assert_eq!(changed("shape", json!([4294967296u64, 4294967296u64, 3, 1])), "invalid_tensor");
    assert_eq!(changed("shape", json!([i64::MAX, 2, 0, 1])), "invalid_tensor");
    assert_eq!(changed("data", json!([0, 0, 0, 0, 0])), "invalid_tensor");
    assert_eq!(changed("data", json!([0, 0, 0, 0, 0, "0"])), "malformed");
    assert_eq!(changed("data", json!([0, 0, 0, 0, 0, true])), "malformed");
    assert_eq!(changed("data", json!([0, 0, 0, 0, 0, 1e39])), "malformed");
    assert_eq!(changed("data", json!(3)), "malformed");
    assert_eq!(changed("parameters", json!({"binary_data_size": 0})), "malformed");
    assert_eq!(changed("parameters", json!({"shared_memory_region": "r"})), "invalid_parameter");
    let pixels = |value: f64| json!({"name": "input", "datatype": "UINT8", "shape": [1, 1, 1, 1], "data": [value]});
    for value in [-1.0, 0.5, 256.0] {
        assert_eq!(code(parse(&with_tensor(&pixels(value)))), "invalid_tensor", "{value}");
    }
    let output = |output: Value| code(parse(&json!({"inputs": [good], "outputs": [output]})));
    assert_eq!(output(json!({"name": "probs"})), "invalid_tensor");
    assert_eq!(output(json!({"name": "logits", "parameters": {"classification": 0}})), "invalid_parameter");
    for text in ["", "{", "[]", "null", "{\"inputs\": []}", "{\"inputs\": [1]}", "{\"inputs\": NaN}"] {
        assert_eq!(code(InferRequest::parse(&Bytes::from(text), None)), "malformed", "{text}");
    }
    assert_eq!(code(InferRequest::parse(&Bytes::from("{}"), Some(3))), "malformed");
    let deep = format!("{{\"inputs\": [{{\"data\": {}", "[".repeat(100_000));
    assert_eq!(code(InferRequest::parse(&Bytes::from(deep), None)), "malformed");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..300), length in prop::option::of(0..400usize)) {
        let _ = InferRequest::parse(&Bytes::from(body), length);
    }

    #[test]
    fn any_finite_tensor_comes_back(values in prop::collection::vec(-1e30f32..1e30, 6)) {
        let tensor = json!({"name": "input", "datatype": "FP32", "shape": [1, 3, 1, 2], "data": values});
        let (images, _) = parse(&with_tensor(&tensor)).unwrap().images(&signature()).unwrap();
        prop_assert_eq!(images, values);
    }
}
