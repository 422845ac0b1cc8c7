//! What the kernel says of processes and of itself.

/// Of the kernel's own memory, what grows with processes and namespaces.
pub const KERNEL: [&str; 4] = ["Slab:", "KernelStack:", "PageTables:", "Percpu:"];

/// What the kernel says of itself, in KiB.
pub fn kernel_by_kind() -> [u64; 4] {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name));
        line.and_then(|l| l.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    KERNEL.map(of)
}

pub fn kernel() -> u64 {
    kernel_by_kind().iter().sum()
}

/// Resident memory in KiB.
pub fn rss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// By every process's parent, since any thread may have made a child; the dead do not count.
pub fn children(pid: u32) -> Vec<u32> {
    let parent = format!("PPid:\t{pid}");
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok())
        .filter(|p: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{p}/status")).unwrap_or_default();
            let is = |line: &str| status.lines().any(|l| l.starts_with(line));
            status.lines().any(|l| l == parent) && !is("State:\tZ")
        })
        .collect()
}

/// What a process has in memory, its part of what is shared, in KiB.
pub fn pss(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("Pss:")?.split_ascii_whitespace().next()?.parse().ok())
}
