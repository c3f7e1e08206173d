//! What the kernel knows of a process.

use std::{fs, process::Command};

use crate::Failure;

/// A command for `program` that ends with this process, bound to one processor if given.
pub fn command(program: &str, processor: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(processor) = processor {
        command.args(["taskset", "-c", processor]);
    }
    command.arg(program);
    command
}

/// Processor time that the threads of `pid` have taken, in nanoseconds; 0 if it is gone.
pub fn cpu_nanos(pid: u32) -> u64 {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let of_thread = |path: std::path::PathBuf| {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    threads
        .flatten()
        .filter_map(|thread| of_thread(thread.path()))
        .sum()
}

/// The children of `pid`.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) else {
        return Vec::new();
    };
    text.split_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

/// The parent of `pid`.
pub fn parent(pid: u32) -> Result<u32, Failure> {
    Ok(status(pid, "PPid")?.parse()?)
}

/// The memory that `pid` has in use now, in KiB.
pub fn memory_kib(pid: u32) -> Result<u64, Failure> {
    Ok(status(pid, "VmRSS")?.parse()?)
}

/// The most memory that `pid` has had in use, in KiB.
pub fn peak_kib(pid: u32) -> Result<u64, Failure> {
    Ok(status(pid, "VmHWM")?.parse()?)
}

/// Has [`peak_kib`] begin anew.
pub fn reset_peak(pid: u32) -> Result<(), Failure> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// A line of `/proc/PID/status`, without its unit.
fn status(pid: u32, name: &str) -> Result<String, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = value.and_then(|value| value.split_whitespace().next());
    Ok(value
        .ok_or(format!("no {name} of process {pid}"))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_that_works_takes_time_and_memory() {
        let pid = std::process::id();
        let before = super::cpu_nanos(pid);
        let mut sum = 0_u64;
        while super::cpu_nanos(pid) < before + 1_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        let memory = super::memory_kib(pid).unwrap();
        assert!(super::peak_kib(pid).unwrap() >= memory);
        assert!(super::children(super::parent(pid).unwrap()).contains(&pid));
    }
}
