//! The report's plots, as SVG that stands in the page: the distance of each row from its target, the rounds of both
//! sides, and their latencies by quantile. Colours are the page's.

use std::fmt::Write as _;

use crate::report::{Report, Row, Side, number, quantity};

/// Width of every plot, in its own units.
const WIDTH: f64 = 860.0;

/// From this ratio on, a linear axis would hide the smaller side.
const LOG_FROM: f64 = 12.0;

/// How far the overview reaches on both sides of the target.
const FURTHEST: f64 = 10.0;

/// Text that may stand in HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A way from values to places along an axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    is_log: bool,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let place = |value: f64| if self.is_log { value.max(f64::MIN_POSITIVE).ln() } else { value };
        let share = (place(value) - place(self.from)) / (place(self.to) - place(self.from));
        self.start + share.clamp(0.0, 1.0) * (self.end - self.start)
    }

    /// Round values along it.
    fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let inside = |steps: &[f64]| -> Vec<f64> {
                let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
                let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
                all.filter(|tick| (self.from..=self.to).contains(tick)).collect()
            };
            let (fine, coarse) = (inside(&[1.0, 2.0, 5.0]), inside(&[1.0]));
            match (fine.len(), coarse.len()) {
                (3..=8, _) => return fine,
                (_, 3..) => return coarse,
                // Less than a decade: even steps say more.
                _ => {}
            }
        }
        let rough = (self.to - self.from) / 5.0;
        let decade = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|one| one * decade);
        let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        let first = (self.from / step).ceil() as i64;
        (first..).map(|count| count as f64 * step).take_while(|tick| *tick <= self.to * 1.0001).collect()
    }
}

/// A tick's label: `10 ms` and not `10.0 ms`.
fn label(tick: f64, unit: &str) -> String {
    let text = quantity(tick, unit);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// Where each row stands from its target: the target is the line, to the right is better.
pub(crate) fn overview(report: &Report) -> String {
    const LINE: f64 = 26.0;
    const LABELS: f64 = 430.0;
    let rows: Vec<_> = report.rows.iter().filter_map(|row| Some((row, row.bound.margin(row.measured)?))).collect();
    if rows.is_empty() {
        return String::new();
    }
    let height = LINE * rows.len() as f64 + 44.0;
    let axis = Axis { from: 1.0 / FURTHEST, to: FURTHEST, start: LABELS, end: WIDTH - 76.0, is_log: true };
    let mut svg = open(height, "How far each row is from its target");
    for (tick, label) in [(0.1, "10× short"), (0.5, "2×"), (1.0, "target"), (2.0, "2×"), (10.0, "10× better")] {
        let x = axis.at(tick);
        let class = if tick == 1.0 { "target" } else { "grid" };
        let _ = write!(svg, r#"<line class="{class}" x1="{x:.1}" x2="{x:.1}" y1="24" y2="{:.1}"/>"#, height - 14.0);
        text(&mut svg, x, 14.0, "middle", "dim", label);
    }
    for (place, (row, margin)) in rows.iter().enumerate() {
        let y = 30.0 + LINE * place as f64;
        let (zero, x) = (axis.at(1.0), axis.at(*margin));
        let class = if row.met == Some(true) { "met" } else { "missed" };
        let (left, width) = (zero.min(x), (zero - x).abs().max(2.0));
        let _ =
            write!(svg, r#"<rect class="{class}" x="{left:.1}" y="{y:.1}" width="{width:.1}" height="14" rx="3"/>"#);
        text(&mut svg, 0.0, y + 11.5, "start", "name", row.target);
        text(&mut svg, 50.0, y + 11.5, "start", "", &row.what);
        text(&mut svg, WIDTH, y + 11.5, "end", class, &quantity(row.measured, row.unit));
    }
    svg.push_str("</svg>");
    svg
}

/// Each round a dot, the median a bar, or a mark where the axis is logarithmic.
pub(crate) fn rounds(row: &Row) -> String {
    const LINE: f64 = 40.0;
    let sides: Vec<&Side> = [Some(&row.ours), row.theirs.as_ref()].into_iter().flatten().collect();
    let values = || sides.iter().flat_map(|side| side.rounds.iter().copied()).filter(|value| value.is_finite());
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if most <= 0.0 {
        return String::new();
    }
    let is_log = least > 0.0 && most / least >= LOG_FROM;
    let (from, to) = if is_log { (least / 1.3, most * 1.3) } else { (0.0_f64.min(least), most * 1.05) };
    let axis = Axis { from, to, start: 200.0, end: WIDTH - 100.0, is_log };
    let bottom = LINE * sides.len() as f64 + 6.0;
    let mut svg = open(bottom + 24.0, &format!("Rounds: {}", row.what));
    for tick in axis.ticks() {
        let x = axis.at(tick);
        let _ = write!(svg, r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="4" y2="{bottom:.1}"/>"#);
        text(&mut svg, x, bottom + 16.0, "middle", "dim", &label(tick, row.ours.unit));
    }
    for (place, side) in sides.iter().enumerate() {
        let class = if place == 0 { "ours" } else { "theirs" };
        let y = 6.0 + LINE * place as f64 + LINE / 2.0;
        let middle = axis.at(side.median);
        // A bar has to begin at zero, which a logarithmic axis does not have: there a mark stands for the median.
        let (left, width) = if is_log { (middle - 2.0, 4.0) } else { (axis.start, (middle - axis.start).max(1.0)) };
        let _ = write!(
            svg,
            r#"<rect class="{class} bar" x="{left:.1}" y="{:.1}" width="{width:.1}" height="16" rx="2"/>"#,
            y - 8.0
        );
        for value in side.rounds.iter().filter(|value| value.is_finite()) {
            let _ = write!(svg, r#"<circle class="{class}" cx="{:.1}" cy="{y:.1}" r="4"/>"#, axis.at(*value));
        }
        text(&mut svg, axis.start - 12.0, y + 4.0, "end", "", &side.name);
        text(&mut svg, WIDTH, y + 4.0, "end", class, &quantity(side.median, side.unit));
    }
    svg.push_str("</svg>");
    svg
}

/// Latency by quantile, on a logarithmic scale; nothing where no side has any.
pub(crate) fn quantiles(row: &Row) -> String {
    const HEIGHT: f64 = 200.0;
    let sides = [("ours", Some(&row.ours)), ("theirs", row.theirs.as_ref())];
    let sides: Vec<_> = sides
        .into_iter()
        .filter_map(|(class, side)| side.filter(|side| side.quantiles.len() > 2).map(|side| (class, side)))
        .collect();
    let values = || sides.iter().flat_map(|(_, side)| &side.quantiles).map(|quantile| quantile.us);
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if sides.is_empty() || least <= 0.0 {
        return String::new();
    }
    let up = Axis { from: least / 1.2, to: most * 1.2, start: HEIGHT - 26.0, end: 8.0, is_log: true };
    let points = sides.iter().map(|(_, side)| &side.quantiles).max_by_key(|all| all.len()).map_or(&[][..], |all| all);
    // Every kept quantile is a step: what happens at the end is what a reader looks for.
    let across = |quantile: f64| {
        let place = points.iter().position(|one| one.quantile >= quantile).unwrap_or(0) as f64;
        200.0 + place * (WIDTH - 300.0) / (points.len() - 1) as f64
    };
    let mut svg = open(HEIGHT, &format!("Latencies: {}", row.what));
    for tick in up.ticks() {
        let y = up.at(tick);
        let _ = write!(svg, r#"<line class="grid" x1="200" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/>"#, WIDTH - 100.0);
        text(&mut svg, 188.0, y + 4.0, "end", "dim", &label(tick, "µs"));
    }
    for point in points {
        let label = format!("p{}", number(point.quantile * 100.0).trim_end_matches('0').trim_end_matches('.'));
        text(&mut svg, across(point.quantile), HEIGHT - 8.0, "middle", "dim", &label);
    }
    for (class, side) in &sides {
        let places: Vec<_> = side.quantiles.iter().map(|one| (across(one.quantile), up.at(one.us))).collect();
        let line: Vec<_> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = write!(svg, r#"<polyline class="{class}" points="{}"/>"#, line.join(" "));
        for (x, y) in &places {
            let _ = write!(svg, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3"/>"#);
        }
    }
    svg.push_str("</svg>");
    svg
}

fn open(height: f64, label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#, escape(label))
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, words: &str) {
    let words = escape(words);
    let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{words}</text>"#);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(from: f64, to: f64, is_log: bool) -> Axis {
        Axis { from, to, start: 0.0, end: 100.0, is_log }
    }

    #[test]
    fn places() {
        let check = |axis: Axis, value, expected: f64| assert!((axis.at(value) - expected).abs() < 1e-6, "{axis:?}");
        check(axis(0.0, 10.0, false), 5.0, 50.0);
        check(axis(0.0, 10.0, false), 20.0, 100.0);
        check(axis(0.1, 10.0, true), 1.0, 50.0);
        check(axis(0.1, 10.0, true), 0.0, 0.0);
    }

    #[test]
    fn ticks() {
        assert_eq!(axis(0.0, 9.0, false).ticks(), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(axis(1.0, 20.0, true).ticks(), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(axis(1.0, 10_000.0, true).ticks().len(), 5);
        assert_eq!(axis(60.0, 140.0, true).ticks(), [60.0, 80.0, 100.0, 120.0, 140.0]);
        assert_eq!(label(10_000.0, "µs"), "10 ms");
        assert_eq!(label(500.0, "calls/s"), "500 calls/s");
    }
}
