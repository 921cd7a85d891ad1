//! Starting a process that weighs little.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::board::end_with_parent;
use crate::daemon::config::Scheduling;

/// This very program, even if its file has been replaced since it was started.
const SELF: &str = "/proc/self/exe";
/// The first to go when memory runs out.
const OOM_SCORE: &[u8] = b"1000";
/// `ioprio_set`: one process, and the class that is served when nobody else wants the disk.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
const IOPRIO_IDLE: libc::c_int = 3 << 13;

/// Starts this program with `arguments`; its output goes to `log`. It dies with the thread that calls this, which must be
/// one that lives as long as the process.
///
/// # Errors
/// Those of starting a process.
pub(super) fn spawn(arguments: &[impl AsRef<OsStr>], log: File, scheduling: Scheduling) -> io::Result<Child> {
    let parent = std::process::id();
    let mut command = Command::new(SELF);
    command.arg0("secateur").args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // A Ctrl-C is for the daemon, which decides what it means for its child.
    command.process_group(0);
    // SAFETY: between fork and exec only system calls, on values made before.
    unsafe { command.pre_exec(move || prepare(parent, scheduling)) };
    command.spawn()
}

/// In the new process. What a system does not know is left as it is, but for the bond with the parent.
fn prepare(parent: u32, scheduling: Scheduling) -> io::Result<()> {
    end_with_parent(parent)?;
    // SAFETY: numbers, and pointers to values that live through the calls.
    unsafe {
        let policy = match scheduling {
            Scheduling::Idle => Some(libc::SCHED_IDLE),
            Scheduling::Batch => Some(libc::SCHED_BATCH),
            Scheduling::Normal => None,
        };
        if let Some(policy) = policy {
            let parameters: libc::sched_param = std::mem::zeroed();
            libc::sched_setscheduler(0, policy, &raw const parameters);
            libc::setpriority(libc::PRIO_PROCESS, 0, 19);
        }
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE);
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, OOM_SCORE.as_ptr().cast(), OOM_SCORE.len());
            libc::close(file);
        }
    }
    Ok(())
}
