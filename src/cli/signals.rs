//! Ctrl-C and SIGTERM: the first asks the run to stop after its step, a second ends the process at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::{Error, Result};

/// A flag that is set by SIGINT or SIGTERM.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the shutdown acts only once the flag was already set by an earlier signal.
        flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))
            .and_then(|_| flag::register(signal, Arc::clone(&stop)))
            .map_err(|e| Error::Config(format!("signal {signal} cannot be handled: {e}")))?;
    }
    let mut signals =
        Signals::new([SIGINT, SIGTERM]).map_err(|e| Error::Config(format!("signals cannot be watched: {e}")))?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            log::warn!("stopping after the work in progress; a second signal ends the program at once, unsaved");
        }
    });
    Ok(stop)
}
