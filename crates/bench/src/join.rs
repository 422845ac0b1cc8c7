//! Results of several measurements in one document: parts of one run, and what `bench/run` wrote, whose
//! rows have no samples.

use serde_json::Value;

use crate::model::{Better, Case, Group, Report, Summary};

/// One report of several, of the same binary on the same machine.
pub fn merge(reports: Vec<Report>) -> Result<Report, String> {
    let mut all = reports.into_iter();
    let mut merged = all.next().ok_or("nothing to merge")?;
    for report in all {
        if report.machine.id != merged.machine.id || report.tool.sha256 != merged.tool.sha256 {
            return Err(format!(
                "{} and {} are of different machines or binaries",
                merged.name, report.name
            ));
        }
        for peer in report.peers {
            if !merged.peers.iter().any(|p| p.name == peer.name) {
                merged.peers.push(peer);
            }
        }
        merged.groups.extend(report.groups);
        merged.timelines.extend(report.timelines);
        merged.curves.extend(report.curves);
    }
    merged.name = "merged".into();
    Ok(merged)
}

/// Groups of what `bench/run` wrote, as the same user (`root` or `user`).
pub fn tables(text: &str, user: &str) -> Result<Vec<Group>, String> {
    let all: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let runs = all["runs"].as_array().ok_or("no runs: not a result of bench/run")?;
    let same = |run: &&Value| run["user"].as_str().is_some_and(|u| u.contains(user));
    let run = runs.iter().find(same).ok_or_else(|| format!("no run as {user}"))?;
    let groups = run["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(groups.iter().filter_map(group).collect())
}

fn group(old: &Value) -> Option<Group> {
    let title = old["group"].as_str()?.to_owned();
    let rows = old["rows"].as_array()?;
    let unit = old["unit"].as_str().or_else(|| rows.iter().find_map(|r| r["unit"].as_str()))?;
    let cases: Vec<Case> = rows.iter().filter_map(|row| case(row, unit, &old["rounds"])).collect();
    let baseline = cases.first().filter(|_| cases.len() > 1).map(|c| c.name.clone());
    let better = if unit.contains('/') { Better::Higher } else { Better::Lower };
    let (name, unit) = (format!("tables/{title}"), unit.to_owned());
    Some(Group { name, title, unit, better, baseline, cases })
}

fn case(row: &Value, unit: &str, rounds: &Value) -> Option<Case> {
    let name = row["case"].as_str()?;
    if let Some(why) = row["absent"].as_str() {
        return Some(Case::absent(name, "", why));
    }
    if row["unit"].as_str().is_some_and(|own| own != unit) {
        return None;
    }
    let one = ["value", "pss_kib"].iter().find_map(|key| row[*key].as_f64());
    let at = |key: &str| row[key].as_f64().or(one);
    let (p50, min) = (at("p50")?, at("min")?);
    let p90 = at("p90").unwrap_or(p50);
    let p99 = at("p99").unwrap_or(p90);
    let samples = rounds.as_u64().unwrap_or(1) as usize;
    // What was not written down is taken as what is nearest to it.
    let summary = Summary {
        samples,
        min,
        p25: p50,
        p50,
        p75: p50,
        p90,
        p95: p90,
        p99,
        max: p99,
        mean: p50,
        deviation: 0.0,
        mad: 0.0,
        low: p50,
        high: p50,
    };
    let notes = vec!["a summary only".into()];
    let (samples, summary) = (Vec::new(), Some(summary));
    Some(Case { name: name.into(), what: String::new(), absent: None, samples, summary, notes })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    const OLD: &str = r#"{"runs": [{"user": "ordinary user", "groups": []}, {"user": "root", "groups": [
        {"group": "start", "rounds": 30, "unit": "us", "rows": [
            {"case": "/bin/true", "min": 625, "p50": 719, "p90": 922, "p99": 1109},
            {"case": "ringfence", "min": 4302, "p50": 5295, "p90": 6192, "p99": 6358},
            {"case": "other", "absent": "not here"}]},
        {"group": "memory", "unit": "KiB", "rows": [{"case": "init", "pss_kib": 860}]},
        {"group": "throughput", "rows": [{"case": "direct", "value": 27.9, "unit": "Gbit/s"}]}]}]}"#;

    #[test]
    fn tables_of_the_other_bench_join() {
        let groups = tables(OLD, "root").unwrap();
        assert_eq!(groups.len(), 3);
        assert!((groups[0].factor(&groups[0].cases[1]).unwrap() - 7.36).abs() < 0.01);
        assert!(groups[0].cases[2].absent.is_some());
        assert_eq!(groups[2].better, Better::Higher);
        assert!(tables(OLD, "user").unwrap().is_empty());
        assert!(tables("{}", "root").is_err());
    }
}
