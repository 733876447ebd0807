//! Charts of a report: divergence against work, against time, and against the deviation that a policy predicted.

use std::path::Path;

use anyhow::Context;

use super::chart::{Axis, Chart, Scale, Series};
use super::report::EvalReport;
use super::summary::{Level, ResultRow};

const KL: Axis = Axis { label: "mean KL(full || reuse), nat", scale: Scale::Log };
const WORK: Axis = Axis { label: "share of (token, layer) pairs computed", scale: Scale::Linear };
const SPEED: Axis = Axis { label: "times sooner to the first token than without cache", scale: Scale::Linear };
const FORETOLD: Axis = Axis { label: "deviation left after repair, as estimated", scale: Scale::Log };

/// Writes `kl_by_work.svg` and `kl_by_ttft.svg`, the same for each file, and `kl_by_deviation.svg` if a policy measured any.
///
/// # Errors
/// If the folder or a file in it cannot be written.
pub fn write(report: &EvalReport, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    for (name, chart) in charts(report) {
        let path = folder.join(name);
        std::fs::write(&path, chart.to_svg()).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Returns file names with their charts.
fn charts(report: &EvalReport) -> Vec<(String, Chart)> {
    let mut charts = Vec::new();
    let files = report.results.iter().filter(|row| row.level == Level::File).map(|row| row.workload.as_str());
    let mut files: Vec<_> = files.collect();
    files.dedup();
    for (level, name) in std::iter::once((Level::All, "all")).chain(files.into_iter().map(|file| (Level::File, file))) {
        let rows: Vec<_> = report.results.iter().filter(|row| row.level == level && row.workload == name).collect();
        let suffix = if level == Level::All { String::new() } else { format!(".{}", name.trim_end_matches(".jsonl")) };
        let title = |what: &str| format!("{}, {name}: {what}", report.setup.model);
        let by_work = by_policy(&rows, |row| Some((row.work?, row.kl_mean?)));
        charts.push((
            format!("kl_by_work{suffix}.svg"),
            Chart { title: title("what divergence costs"), x: WORK, y: KL, series: by_work },
        ));
        let by_ttft = by_policy(&rows, |row| Some((row.ttft_ratio?, row.kl_mean?)));
        charts
            .push((format!("kl_by_ttft{suffix}.svg"), Chart { title: title("what it buys"), x: SPEED, y: KL, series: by_ttft }));
    }
    charts.extend(by_deviation(report).map(|chart| ("kl_by_deviation.svg".to_owned(), chart)));
    charts
}

/// Makes one series for each policy; its shares are joined in their order.
fn by_policy(rows: &[&ResultRow], point: fn(&ResultRow) -> Option<(f64, f64)>) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for row in rows {
        let Some(point) = point(row) else { continue };
        match series.iter_mut().find(|series| series.name == row.policy) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name: row.policy.clone(), points: vec![point], is_line: true }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    series
}

/// Plots each hit of each policy that measured a deviation; `None` if none did.
fn by_deviation(report: &EvalReport) -> Option<Chart> {
    let mut series = Vec::new();
    for policy in report.policies() {
        let hits = report.requests.iter().filter(|request| request.is_hit && request.policy_label() == policy);
        let points: Vec<_> = hits.filter_map(|hit| Some((hit.deviation?, hit.mean_kl()))).collect();
        if !points.is_empty() {
            series.push(Series { name: policy, points, is_line: false });
        }
    }
    let title = format!("{}: foretold and true error of each request", report.setup.model);
    (!series.is_empty()).then_some(Chart { title, x: FORETOLD, y: KL, series })
}

#[cfg(test)]
mod tests {
    use super::super::measured::Measured;
    use super::*;

    fn request(policy: &str, r: Option<f32>, work: f64, deviation: Option<f64>) -> Measured {
        Measured {
            file: "w1.jsonl".to_owned(),
            policy: policy.to_owned(),
            r,
            is_hit: true,
            work,
            deviation,
            kl: vec![0.01 / work],
            ttft_ms: 1.0,
            full_ttft_ms: 2.0,
            ..Measured::default()
        }
    }

    #[test]
    fn shares_of_one_rule_are_one_line() {
        let requests =
            vec![request("dhd", Some(0.3), 0.5, None), request("epic", None, 0.2, None), request("dhd", Some(0.1), 0.3, None)];
        let charts = charts(&EvalReport::of_requests(requests));
        let names: Vec<_> = charts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["kl_by_work.svg", "kl_by_ttft.svg", "kl_by_work.w1.svg", "kl_by_ttft.w1.svg"]);
        let series: Vec<_> = charts[0].1.series.iter().map(|series| (series.name.as_str(), series.points.len())).collect();
        assert_eq!(series, [("dhd", 2), ("epic", 1)]);
        assert!(charts[0].1.series[0].points[0].0 < charts[0].1.series[0].points[1].0);
    }

    #[test]
    fn what_was_foretold_is_drawn_if_it_was() {
        let requests = vec![request("dhd", Some(0.3), 0.5, Some(0.2)), request("epic", None, 0.2, None)];
        let folder = tempfile::tempdir().unwrap();
        write(&EvalReport::of_requests(requests), folder.path()).unwrap();
        let svg = std::fs::read_to_string(folder.path().join("kl_by_deviation.svg")).unwrap();
        assert!(svg.contains(">dhd@0.3<") && !svg.contains(">epic<"));
    }
}
