//! What a configuration of the daemon asks of the board.

use std::path::{Path, PathBuf};

use super::finding::Finding;
use super::free_bytes;
use crate::board::{Board, available_bytes};
use crate::config::Config;
use crate::daemon::DaemonConfig;
use crate::serve::{ServeConfig, check_files};
use crate::weights::resolve;

/// Folders that the server or the daemon of this configuration writes to.
pub(super) fn folders(config: &Config) -> Vec<PathBuf> {
    let Some(settings) = config.unattended() else {
        return config.serve.store.iter().map(|store| store.0.clone()).collect();
    };
    let store = settings.store(&config.serve);
    let DaemonConfig { daemon, intake, .. } = settings;
    let inbox = Some(intake.inbox).filter(|inbox| !inbox.as_os_str().is_empty());
    let inbox = inbox.unwrap_or_else(|| daemon.folder.join("inbox"));
    let own = ["reservoir", "quarantine", "runs"].map(|name| daemon.folder.join(name));
    [daemon.folder, inbox, store].into_iter().chain(own).collect()
}

/// What is found of the files and sensors that it names.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let mut found = vec![token(config)];
    if let Some(daemon) = config.unattended() {
        found.extend([teacher(&daemon, &config.serve), disk(&daemon), sensors(&daemon)]);
    }
    found
}

fn token(config: &Config) -> Finding {
    let elsewhere = config.serve.listen.is_some_and(|address| !address.ip().is_loopback());
    match (check_files(&config.serve), &config.serve.token_file) {
        (Err(error), _) => Finding::good("token", error.to_string()).problem("the server does not start with this"),
        (Ok(()), Some(path)) => Finding::good("token", format!("{path}: its owner's alone")),
        (Ok(()), None) if elsewhere => Finding::good("token", "none, and other hosts can ask")
            .advise("anybody there may see what is served: set serve.token_file"),
        (Ok(()), None) => Finding::good("token", "none, and this device alone can ask"),
    }
}

fn teacher(config: &DaemonConfig, serve: &ServeConfig) -> Finding {
    let path = &config.daemon.teacher;
    if !config.names_teacher() {
        let (name, store) = (&config.daemon.name, config.store(serve));
        return match config.has_model(serve) {
            true => Finding::good("teacher", "none named: the one in the store stays"),
            false => Finding::good("teacher", format!("none named, and {} has no model {name}", store.display()))
                .problem("the daemon does not start with this: name the teacher's file in daemon.teacher"),
        };
    }
    match resolve(path).and_then(|(file, _)| std::fs::File::open(&file).map_err(|e| crate::Error::io("read", file, e)))
    {
        Ok(_) => Finding::good("teacher", format!("{}: can be read", path.display())),
        Err(error) => Finding::good("teacher", error.to_string()).problem("name another one in daemon.teacher"),
    }
}

fn disk(config: &DaemonConfig) -> Finding {
    let (folder, least) = (&config.daemon.folder, config.guard.min_disk_bytes);
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let megabytes = |bytes: u64| bytes / 1_000_000;
    match free_bytes(existing) {
        None => Finding::good("disk", "not told"),
        Some(free) => {
            let (free_mb, least_mb) = (megabytes(free), megabytes(least));
            let found = Finding::good("disk", format!("{free_mb} MB free, adaptations leave {least_mb} MB"));
            match free < least {
                true => found.problem("adaptations will wait: make room, or lower guard.min_disk_bytes"),
                false => found,
            }
        }
    }
}

/// Which guards have something to go by.
fn sensors(config: &DaemonConfig) -> Finding {
    let root = &config.daemon.board_root;
    let board = Board::read_under(root);
    let told = [
        ("temperature", board.celsius.is_some()),
        ("throttling", board.throttled.is_some()),
        ("load", board.load.is_some()),
        ("memory", available_bytes(root).is_some()),
    ];
    let names = |found: bool| told.iter().filter(|t| t.1 == found).map(|t| t.0).collect::<Vec<_>>().join(", ");
    match (names(true), names(false)) {
        (all, none) if none.is_empty() => Finding::good("guards", format!("the board tells {all}")),
        (some, missing) => Finding::good("guards", format!("the board tells {some}; not {missing}"))
            .advise("what is not told holds no adaptation back; with few adapt.threads the board stays cooler"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;
    use std::fs;

    fn config(text: &str) -> Config {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("secateur.toml");
        fs::write(&file, text).unwrap();
        Config::load(Some(&file), [], []).unwrap()
    }

    fn level(check: &str, text: &str) -> Level {
        let findings = findings(&config(text));
        findings.iter().find(|f| f.check == check).unwrap_or_else(|| panic!("no {check} in {findings:?}")).level
    }

    #[test]
    fn a_server_has_its_store_and_a_daemon_all_its_folders() {
        let serving = config("[serve]\nstore = \"a\"");
        assert_eq!(folders(&serving), [PathBuf::from("a")]);
        assert_eq!(findings(&serving).len(), 1);
        let daemon = config("[daemon]\nfolder = \"d\"\n[intake]\ninbox = \"i\"");
        let expected = ["d", "i", "d/models", "d/reservoir", "d/quarantine", "d/runs"];
        assert_eq!(folders(&daemon), expected.map(PathBuf::from));
    }

    #[test]
    fn what_is_missing_is_told() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).display().to_string();
        fs::write(path("token"), "0123456789abcdef").unwrap();
        assert_eq!(
            level("token", &format!("[serve]\ntoken_file = {:?}", path("token"))),
            Level::Problem,
            "others read it"
        );
        assert_eq!(level("token", "[serve]\nlisten = \"0.0.0.0:8000\""), Level::Advice);
        assert_eq!(level("token", ""), Level::Good);
        assert_eq!(level("teacher", &format!("[daemon]\nteacher = {:?}", path("none"))), Level::Problem);
        let daemon = format!("[daemon]\nname = \"m\"\nfolder = {:?}", path("d"));
        assert_eq!(level("teacher", &daemon), Level::Problem);
        fs::create_dir_all(place.path().join("d/models/m")).unwrap();
        assert_eq!(level("teacher", &daemon), Level::Good);
        assert_eq!(level("disk", "[guard]\nmin_disk_bytes = 9000000000000000000"), Level::Problem);
        assert_eq!(level("guards", &format!("[daemon]\nboard_root = {:?}", path("nowhere"))), Level::Advice);
    }
}
