//! The answer to an inference request.

use serde::Serialize;

use super::{OUTPUT, Wanted};

/// What is answered.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The client's name for the request.
    pub id: Option<&'a str>,
    /// The model's name.
    pub model: &'a str,
    /// The version that answered.
    pub version: &'a str,
    /// One name per logit.
    pub class_names: &'a [String],
    /// `[N, classes]`.
    pub logits: &'a [f32],
}

/// An answer's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// JSON, and behind it binary tensors if there are any.
    pub body: Vec<u8>,
    /// The bytes of JSON if binary tensors follow.
    pub json_length: Option<usize>,
}

#[derive(Serialize)]
struct Response<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: [Tensor<'a>; 1],
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<BinarySize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data<'a>>,
}

#[derive(Serialize)]
struct BinarySize {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Logits(&'a [f32]),
    Labels(Vec<String>),
}

impl Data<'_> {
    /// As the binary extension wants it: floats little-endian; strings each behind a 32-bit length.
    fn to_binary(&self) -> Vec<u8> {
        match self {
            Self::Logits(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::Labels(labels) => {
                let one = |label: &String| [&(label.len() as u32).to_le_bytes()[..], label.as_bytes()].concat();
                labels.iter().flat_map(one).collect()
            }
        }
    }
}

impl Answer<'_> {
    /// The answer as `wanted`.
    pub fn encode(&self, wanted: Wanted) -> Encoded {
        let classes = self.class_names.len().max(1);
        let rows = self.logits.len() / classes;
        let (datatype, width, data) = match wanted.classification {
            None => ("FP32", classes, Data::Logits(self.logits)),
            Some(k) => {
                let k = k.min(classes);
                let labels = self.logits.chunks_exact(classes).flat_map(|row| self.labels(row, k)).collect();
                ("BYTES", k, Data::Labels(labels))
            }
        };
        let binary = wanted.binary.then(|| data.to_binary());
        let tensor = Tensor {
            name: OUTPUT,
            datatype,
            shape: [rows, width],
            parameters: binary.as_ref().map(|bytes| BinarySize { binary_data_size: bytes.len() }),
            data: binary.is_none().then_some(data),
        };
        let (model_name, model_version) = (self.model, self.version);
        let response = Response { model_name, model_version, id: self.id, outputs: [tensor] };
        // Strings and finite numbers always become JSON.
        let mut body = serde_json::to_vec(&response).unwrap_or_default();
        let json_length = binary.is_some().then_some(body.len());
        body.extend(binary.unwrap_or_default());
        Encoded { body, json_length }
    }

    /// The `k` largest logits of a row in Triton's form `value:index:name`.
    fn labels(&self, row: &[f32], k: usize) -> Vec<String> {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        order.truncate(k);
        order.iter().map(|&class| format!("{:.6}:{class}:{}", row[class], self.class_names[class])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const LOGITS: [f32; 6] = [0.5, -1.0, 2.0, 3.0, 1.0, 2.0];

    fn encode(wanted: Wanted) -> (Value, Vec<u8>) {
        let class_names = ["cat".to_string(), "dog: big".into(), "é".into()];
        let answer = Answer { id: Some("7"), model: "m", version: "2", class_names: &class_names, logits: &LOGITS };
        let Encoded { body, json_length } = answer.encode(wanted);
        assert_eq!(json_length.is_some(), wanted.binary);
        let (json, binary) = body.split_at(json_length.unwrap_or(body.len()));
        (serde_json::from_slice(json).unwrap(), binary.to_vec())
    }

    #[test]
    fn logits_come_in_json_or_behind_it() {
        let (json, binary) = encode(Wanted::default());
        assert_eq!(
            json,
            json!({
                "model_name": "m", "model_version": "2", "id": "7",
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3], "data": [0.5, -1.0, 2.0, 3.0, 1.0, 2.0]}],
            })
        );
        assert!(binary.is_empty());
        let (json, binary) = encode(Wanted { binary: true, ..Wanted::default() });
        assert_eq!(json["outputs"][0]["parameters"], json!({"binary_data_size": 24}));
        assert_eq!(json["outputs"][0].get("data"), None);
        let floats: Vec<f32> = binary.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        assert_eq!(floats, LOGITS);
    }

    #[test]
    fn classes_come_by_name_the_largest_first() {
        let (json, _) = encode(Wanted { classification: Some(2), binary: false });
        let output = &json["outputs"][0];
        assert_eq!((&output["datatype"], &output["shape"]), (&json!("BYTES"), &json!([2, 2])));
        assert_eq!(output["data"], json!(["2.000000:2:é", "0.500000:0:cat", "3.000000:0:cat", "2.000000:2:é"]));
        let (json, binary) = encode(Wanted { classification: Some(9), binary: true });
        assert_eq!(json["outputs"][0]["shape"], json!([2, 3]), "no more than there are");
        assert_eq!(&binary[..4], 13u32.to_le_bytes());
        assert_eq!(&binary[4..17], "2.000000:2:é".as_bytes());
    }
}
