//! What `ringfence run --trace-startup FILE` wrote, as a timeline.

use std::path::Path;

use serde::Deserialize;

use crate::model::{Step, Timeline};

#[derive(Deserialize)]
struct Written {
    steps: Vec<Step>,
}

/// Reads one.
pub fn read(path: &Path, what: &str) -> Result<Timeline, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("{shown}: {}", e.kind()))?;
    let written: Written = serde_json::from_str(&text).map_err(|e| format!("{shown}: {e}"))?;
    Ok(Timeline { name: "a cold start".into(), what: what.into(), steps: written.steps })
}
