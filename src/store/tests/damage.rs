//! Damaged versions are found and left out; what is somebody else's is left alone.

use super::*;

/// A way to damage version 2 and the part of the error that says so.
type Damage = (&'static str, fn(&Place), &'static str);

/// What is found without reading the model.
const VISIBLE: [Damage; 12] = [
    ("no manifest", |p| fs::remove_file(p.path("2/manifest.json")).unwrap(), "2/manifest.json: missing"),
    ("an empty one", |p| fs::write(p.path("2/manifest.json"), "").unwrap(), "2/manifest.json: not a manifest"),
    ("half of it", |p| cut(&p.path("2/manifest.json")), "2/manifest.json: not a manifest"),
    ("a folder instead", |p| into_folder(&p.path("2/manifest.json")), "2/manifest.json: expected a plain file"),
    ("another model's", |p| edit(p, "\"door\"", "\"window\""), "2/manifest.json: name: expected door, got window"),
    ("another version's", |p| edit(p, "\"version\": 2", "\"version\": 1"), "version: expected 2, got 1"),
    ("a later layout", |p| edit(p, "\"format\": 1", "\"format\": 2"), "2/manifest.json: format: expected 1, got 2"),
    ("an impossible name", |p| edit(p, "\"door\"", "\"../door\""), "2/manifest.json: not a manifest: model name"),
    ("no model", |p| fs::remove_file(p.path("2/model.safetensors")).unwrap(), "2/model.safetensors: missing"),
    ("half of it", |p| cut(&p.path("2/model.safetensors")), "bytes, got"),
    ("a folder instead", |p| into_folder(&p.path("2/model.safetensors")), "2/model.safetensors: expected a plain file"),
    ("a link instead", into_link, "2/model.safetensors: expected a plain file"),
];

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    overwrite(path, &bytes[..bytes.len() / 2]);
}

fn into_folder(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
}

fn into_link(place: &Place) {
    let path = place.path("2/model.safetensors");
    fs::rename(&path, place.folder.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.folder.path().join("elsewhere"), path).unwrap();
}

fn edit(place: &Place, from: &str, to: &str) {
    let path = place.path("2/manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn a_damaged_version_is_left_out_named_and_can_be_removed() {
    for (what, damage, expected) in VISIBLE {
        let place = Place::with_versions(3);
        damage(&place);
        assert_eq!(place.versions(), [1, 3], "{what}");
        assert_eq!(place.store.numbers(&place.name).unwrap().len(), 3, "{what}");
        for got in [
            place.store.manifest(&place.name, Version(2)).map(drop),
            place.store.verify(&place.name, Version(2)),
            place.store.activate(&place.name, Version(2)),
        ] {
            let got = got.unwrap_err();
            let right = matches!(&got, Error::Damaged { .. }) && got.to_string().contains(expected);
            assert!(right, "{what}: expected {expected:?} in {got}");
        }
        assert_eq!(place.publish(), Version(4));
        place.store.remove(&place.name, Version(2)).unwrap();
        assert_eq!(listing(place.store.root()), [".lock", "door"], "{what}");
        assert_eq!(place.versions(), [1, 3, 4]);
        place.check_sound();
    }
}

#[test]
fn every_changed_byte_of_a_model_is_found() {
    let place = Place::with_versions(1);
    let path = place.path("1/model.safetensors");
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        overwrite(&path, &bytes);
        let got = place.store.verify(&place.name, Version(1)).unwrap_err().to_string();
        assert!(got.contains("1/model.safetensors: expected SHA-256"), "byte {at}: {got}");
    }
    overwrite(&path, &whole);
    place.check_sound();
}

#[test]
fn foreign_files_and_folders_are_no_models_and_are_left_alone() {
    let place = Place::with_versions(2);
    let root = place.store.root();
    for folder in ["lost+found", ".git", "empty", "photos/2023", "door/7", "door/notes", "door/3.old", "door/03"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for file in ["README", "readme.txt", ".hidden", "photos/2023/a.jpg", "door/8", "door/.active.swp", "door/2/notes"] {
        fs::write(root.join(file), "mine").unwrap();
    }
    std::os::unix::fs::symlink(place.path("1"), place.path("9")).unwrap();
    let before = (listing(root), listing(&place.path("")), listing(&place.path("2")));
    let store = place.reopened();
    assert_eq!(store.models().unwrap(), std::slice::from_ref(&place.name));
    assert_eq!(place.versions(), [1, 2]);
    for number in [7, 8, 9] {
        let got = store.remove(&place.name, Version(number)).unwrap_err().to_string();
        assert!(got.contains(&format!("no version {number}, there are: 1, 2")), "{got}");
    }
    assert_eq!((listing(root), listing(&place.path("")), listing(&place.path("2"))), before);
    place.check_sound();
    assert_eq!(place.publish(), Version(10));
}
