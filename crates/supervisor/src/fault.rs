//! Where a test may have the daemon killed: at the step that `RINGFENCE_FAULT` names, the second time it comes
//! there with `name:2`. A release build has none of it.

#[cfg(not(debug_assertions))]
pub(crate) fn point(_: &str) {}

#[cfg(debug_assertions)]
pub(crate) fn point(step: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};
    static ARMED: OnceLock<Option<(String, usize)>> = OnceLock::new();
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var("RINGFENCE_FAULT").ok()?;
        let (step, time) = text.split_once(':').unwrap_or((&text, "1"));
        Some((step.to_owned(), time.parse().ok()?))
    });
    if let Some((at, time)) = armed
        && at == step
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *time
    {
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}
