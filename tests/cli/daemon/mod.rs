//! The daemon, with real signals, kills and disks.

mod disk;
mod guards;
mod intake;
mod kills;
mod service;
mod whole;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::program;
use super::serve::server::{Answer, Serving};
use super::shapes::NAMES;
use super::workplace::{PER_CLASS, SHORT, Workplace};

/// All images of the workplace.
const IMAGES: usize = NAMES.len() * PER_CLASS;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Settings that make everything quick, and independent of what else this machine does.
const QUICK: [(&str, &str, &str); 24] = [
    ("serve", "listen", "\"127.0.0.1:0\""),
    ("serve", "threads", "1"),
    ("serve", "follow_ms", "50"),
    ("daemon", "folder", "\"daemon\""),
    ("daemon", "teacher", "\"teacher.safetensors\""),
    ("daemon", "name", "\"shapes\""),
    ("daemon", "board_root", "\"board\""),
    ("intake", "settle_s", "0.2"),
    ("intake", "rescan_s", "0.5"),
    ("intake", "duplicate_bits", "0"),
    ("trigger", "min_images", "30"),
    ("trigger", "new_images", "60"),
    ("adapt", "threads", "1"),
    ("adapt", "scheduling", "\"normal\""),
    ("adapt", "checkpoint_every_s", "0"),
    ("adapt", "backoff_first_s", "0"),
    ("adapt", "backoff_most_s", "3600"),
    ("guard", "every_s", "0.1"),
    ("guard", "max_load", "0.0"),
    ("guard", "min_memory_bytes", "0"),
    ("guard", "min_disk_bytes", "0"),
    ("guard", "max_slowdown", "0.0"),
    ("guard", "min_pause_s", "0.1"),
    ("watch", "answers", "8"),
];

/// A workplace with a configuration and an inbox.
struct Board {
    place: Workplace,
}

impl Board {
    /// With `changes` to the quick settings: section, key, value as TOML.
    fn new(changes: &[(&str, &str, &str)]) -> Self {
        let board = Self { place: Workplace::new() };
        board.configure(changes);
        fs::create_dir_all(board.path("daemon/inbox")).unwrap();
        board
    }

    fn configure(&self, changes: &[(&str, &str, &str)]) {
        let steps = format!("\"{SHORT}\"");
        let mut settings = QUICK.to_vec();
        settings.push(("adapt", "arguments", &steps));
        for change in changes {
            settings.retain(|(section, key, _)| (*section, *key) != (change.0, change.1));
            settings.push(*change);
        }
        settings.sort_unstable();
        let mut text = String::new();
        for (index, (section, key, value)) in settings.iter().enumerate() {
            if index == 0 || settings[index - 1].0 != *section {
                text.push_str(&format!("[{section}]\n"));
            }
            text.push_str(&format!("{key} = {value}\n"));
        }
        self.place.write("config.toml", text);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// Puts image `index` of the workplace, over all classes, into the inbox.
    fn bring(&self, index: usize) {
        let (class, number) = (NAMES[index % NAMES.len()], index / NAMES.len());
        let extension = ["png", "jpg"][number % 2];
        let name = format!("images/{class}/{number:02}.{extension}");
        self.place.write(&format!("daemon/inbox/{index:03}.{extension}"), self.place.bytes(&name));
    }

    fn bring_all(&self) {
        (0..IMAGES).for_each(|index| self.bring(index));
    }

    /// Starts the daemon and waits until it listens.
    #[track_caller]
    fn start(&self) -> Serving {
        let arguments = "daemon --config config.toml";
        Serving::spawn(program::command(self.place.folder(), arguments), arguments.to_string())
    }

    /// The files in a folder of the daemon.
    fn files(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path("daemon").join(folder)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The active version, by the store's own file.
    fn active(&self) -> u64 {
        let pointer: Value = serde_json::from_slice(&self.place.bytes("daemon/models/shapes/active")).unwrap();
        pointer["version"].as_u64().unwrap()
    }

    /// Digest of a version.
    fn digest(&self, version: u64) -> String {
        let manifest = self.place.bytes(&format!("daemon/models/shapes/{version}/manifest.json"));
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        manifest["model_sha256"].as_str().unwrap().to_string()
    }

    /// Publishes a file into the daemon's store and activates it.
    fn force(&self, file: &str) {
        self.place.run(&format!("export {file} --safetensors whole.safetensors")).ends_with(&[0]);
        self.place
            .run("models publish --store daemon/models --activate --name shapes whole.safetensors")
            .ends_with(&[0]);
    }
}

/// Waits until `condition` holds.
#[track_caller]
fn wait_until(server: &Serving, what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The daemon's part of the status.
#[track_caller]
fn status(server: &Serving) -> Value {
    server.get("/v1/status").good()["adaptation"].take()
}

/// Asks for the class of an image of each shape, `rounds` times.
#[track_caller]
fn classify(board: &Board, server: &Serving, rounds: usize) -> Vec<Answer> {
    let mut client = server.connect();
    let names = NAMES.iter().cycle().take(NAMES.len() * rounds);
    let answers = names.enumerate().map(|(index, class)| {
        let bytes = board.place.bytes(&format!("images/{class}/{:02}.png", 2 * (index / NAMES.len() % 7)));
        client.ask("POST /classify", &[], &bytes)
    });
    answers.collect()
}

/// How many of the answers are right.
#[track_caller]
fn right(answers: &[Answer]) -> usize {
    let names = NAMES.iter().cycle();
    answers.iter().zip(names).filter(|(answer, name)| answer.good()["classes"][0]["class"] == **name).count()
}
