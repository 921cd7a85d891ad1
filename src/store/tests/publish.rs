//! What becomes a version, and what it is then.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::graph::{ChannelGroups, Scope};
use crate::weights::{INT8_KEY, PROVENANCE_KEY, sha256_file};

#[test]
fn versions_are_numbered_from_one_and_whole() {
    let place = Place::new();
    assert_eq!((place.versions(), place.store.models().unwrap()), (vec![], vec![]));
    for number in 1..=3 {
        assert_eq!(place.publish(), Version(number));
    }
    assert_eq!(place.versions(), [1, 2, 3]);
    assert_eq!(place.store.models().unwrap(), std::slice::from_ref(&place.name));
    assert_eq!((place.active(), place.last_good()), (None, None), "nothing serves before it is activated");
    assert_eq!(listing(place.store.root()), [".lock", "door"]);
    assert_eq!(listing(&place.path("3")), ["manifest.json", "model.safetensors"]);
    place.check_sound();
}

#[test]
fn a_version_is_a_copy_with_its_digest_and_what_it_says_of_itself() {
    let place = Place::new();
    let origin = serde_json::json!({
        "version": "0.1.0", "teacher_sha256": "t", "data_sha256": "d", "config": {"seed": 1}, "widths_before": {},
    });
    let mut metadata = description().to_metadata();
    metadata.insert(PROVENANCE_KEY.into(), origin.to_string());
    metadata.insert(INT8_KEY.into(), "{}".into());
    let source = place.folder.path().join("student.safetensors");
    write_atomic(&source, &params(1.0), &metadata).unwrap();
    let version = place.store.publish(&place.name, &source).unwrap();

    let (path, manifest) =
        (place.store.path(&place.name, version), place.store.manifest(&place.name, version).unwrap());
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes, fs::read(&source).unwrap());
    assert_eq!((manifest.name.as_str(), manifest.version), ("door", version));
    assert_eq!((manifest.model_bytes, manifest.model_sha256), (bytes.len() as u64, sha256_file(&source).unwrap()));
    let cost = tiny_graph(3).cost();
    let expected = ModelSummary {
        arch: "tiny".into(),
        input: [1, 8, 8],
        classes: 3,
        params: cost.params,
        macs: cost.macs,
        channels: Some(ChannelGroups::new(&tiny_graph(3), Scope::Inner).total_channels() as u64),
        int8: true,
        provenance: Some(Origin { version: "0.1.0".into(), teacher_sha256: "t".into(), data_sha256: "d".into() }),
    };
    assert_eq!(manifest.model, expected);
    assert!(manifest.published_unix_s > 1_700_000_000);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0, "nobody writes into a version");
    fs::write(&source, "gone").unwrap();
    place.check_sound();
}

#[test]
fn a_number_is_never_given_again() {
    let place = Place::with_versions(3);
    place.publish();
    place.store.remove(&place.name, Version(4)).unwrap();
    assert_eq!(place.publish(), Version(5));
    fs::remove_dir_all(place.path("5")).unwrap();
    assert_eq!(place.publish(), Version(6));
    // The record is lost or damaged: what is there and what is active counts.
    fs::remove_file(place.path("last")).unwrap();
    assert_eq!(place.publish(), Version(7));
    place.store.activate(&place.name, Version(7)).unwrap();
    fs::remove_dir_all(place.path("7")).unwrap();
    fs::write(place.path("last"), [0xFF, 0]).unwrap();
    assert_eq!(place.publish(), Version(8));
    // Whatever else occupies a number.
    fs::write(place.path("9"), "").unwrap();
    fs::create_dir(place.path("10")).unwrap();
    assert_eq!(place.publish(), Version(11));
    fs::create_dir(place.path(&u64::MAX.to_string())).unwrap();
    let got = place.try_publish().unwrap_err().to_string();
    assert!(got.contains("door: expected a free number"), "{got}");
}

/// The reason why a model with these parts is refused; nothing may be left of it.
#[track_caller]
fn refused(tensors: &ParamTensors, metadata: &BTreeMap<String, String>) -> String {
    let place = Place::new();
    let source = place.folder.path().join("bad.safetensors");
    write_atomic(&source, tensors, metadata).unwrap();
    let error = place.store.publish(&place.name, &source).unwrap_err();
    assert_eq!(listing(place.store.root()), [".lock"], "{error}");
    match error {
        Error::Weights { path, reason } if path == source => reason,
        other => panic!("expected a weights error about the source, got {other}"),
    }
}

#[test]
fn what_is_no_whole_self_contained_model_is_refused_and_leaves_nothing() {
    let refuses = |change: &dyn Fn(&mut ModelDescription), expected: &str| {
        let mut changed = description();
        change(&mut changed);
        let got = refused(&params(1.0), &changed.to_metadata());
        assert!(got.contains(expected), "expected {expected:?} in {got:?}");
    };
    refuses(&|d| *d = ModelDescription::default(), "missing: graph, class_names, input_size, mean, std");
    refuses(&|d| d.graph = None, "missing: graph; `secateur export FILE --safetensors OUT` writes one");
    refuses(&|d| d.mean = None, "missing: mean");
    refuses(&|d| d.graph = Some(serde_json::json!({"nodes": 3})), "");
    refuses(&|d| d.input_size = Some([1, 9, 9]), "input_size: expected [1, 8, 8] as the graph has, got [1, 9, 9]");
    refuses(&|d| d.std = Some(vec![0.0]), "std: expected values above 0");
    refuses(&|d| d.graph = Some(tiny_graph(4).to_json()), "num_classes: expected 4 as the graph has, got 3");
    refuses(&|d| (d.num_classes, d.class_names) = (None, Some(vec!["a".into()])), "num_classes: expected 3");

    let whole = description().to_metadata();
    let mut tensors = params(1.0);
    tensors.remove("fc.bias").unwrap();
    assert!(refused(&tensors, &whole).contains("missing tensors (1 of 7): fc.bias"));
    assert!(refused(&params(f32::NAN), &whole).contains("expected finite values"));
    assert!(refused(&params(-1.0), &whole).contains("expected variances of at least 0"));
    let mut odd = whole;
    odd.insert(PROVENANCE_KEY.into(), "[]".into());
    assert!(refused(&params(1.0), &odd).contains("secateur.provenance"));
}

#[test]
fn what_is_no_weights_file_is_refused_before_it_is_copied() {
    let place = Place::new();
    let whole = fs::read(place.model(1.0)).unwrap();
    let cut = place.folder.path().join("cut.safetensors");
    for length in [0, 7, 100, whole.len() - 1] {
        fs::write(&cut, &whole[..length]).unwrap();
        let got = place.store.publish(&place.name, &cut).unwrap_err();
        assert!(matches!(&got, Error::Weights { path, .. } if *path == cut), "{length}: {got}");
    }
    let missing = place.folder.path().join("none.safetensors");
    assert!(
        matches!(place.store.publish(&place.name, &missing).unwrap_err(), Error::Io { path, .. } if path == missing)
    );
    for other in [place.folder.path(), Path::new("/dev/null")] {
        let got = place.store.publish(&place.name, other).unwrap_err().to_string();
        assert!(got.contains("expected a safetensors file"), "{got}");
    }
    // A description beside the file is not published with it.
    let mut bare = description();
    bare.graph = None;
    write_atomic(place.folder.path().join("bare.safetensors"), &params(1.0), &bare.to_metadata()).unwrap();
    fs::write(
        place.folder.path().join("config.json"),
        serde_json::json!({"graph": tiny_graph(3).to_json()}).to_string(),
    )
    .unwrap();
    let got = place.store.publish(&place.name, &place.folder.path().join("bare.safetensors")).unwrap_err();
    assert!(got.to_string().contains("missing: graph"), "{got}");
    assert_eq!(listing(place.store.root()), [".lock"]);
}

#[test]
fn a_store_is_made_where_it_is_missing_but_not_in_the_place_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b/c");
    Store::open(&deep).unwrap();
    assert!(deep.is_dir());
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for root in [file.clone(), file.join("below")] {
        let got = Store::open(&root).unwrap_err();
        assert!(matches!(&got, Error::Io { path, .. } if path.starts_with(&file)), "{got}");
    }
    let place = Place::new();
    fs::write(place.store.root().join("door"), "").unwrap();
    let got = place.try_publish().unwrap_err().to_string();
    assert!(got.contains("door: cannot create folder"), "{got}");
    assert_eq!(listing(place.store.root()), [".lock", "door"]);
}
