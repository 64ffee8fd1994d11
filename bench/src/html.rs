//! A run as a page that needs nothing but itself: no script, no font, no picture from elsewhere.

use std::fmt::Write as _;

use crate::plot::{self, escape};
use crate::report::{Bound, Report, Row, number, quantity, verdict};

const STYLE: &str = include_str!("../report.css");

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Dart Cloud benchmarks, {}</title><style>{STYLE}</style></head><body><main>",
        escape(&report.started_at)
    );
    head(&mut page, report);
    let _ = write!(page, "<section><h2>Distance from the targets</h2>{}</section>", plot::overview(report));
    summary(&mut page, report);
    for row in &report.rows {
        detail(&mut page, row);
    }
    page.push_str("</main></body></html>\n");
    page
}

fn head(page: &mut String, report: &Report) {
    let machine = &report.machine;
    let count = |met| report.rows.iter().filter(|row| row.met == met).count();
    let _ = write!(
        page,
        "<header><h1>Dart Cloud benchmarks</h1>\
         <p>{} · version {} <code>{}</code> · {} rounds of each side in turn · {} s</p>\
         <p>{} · {}, {} cores, {} MB · {}, Linux {} · Docker Engine {}</p>\
         <p>Where cores are divided: server on {}, load on {}.</p>",
        escape(&report.started_at),
        report.version,
        escape(&report.commit),
        report.rounds,
        report.seconds,
        escape(&machine.name),
        escape(&machine.processor),
        machine.cores,
        machine.memory_mb,
        escape(&machine.system),
        escape(&machine.kernel),
        escape(&machine.engine),
        report.cores.server,
        report.cores.load,
    );
    if report.quick {
        page.push_str("<p class=\"warning\">A quick run: it shows that everything runs; its figures are rough.</p>");
    }
    if machine.load_average > 0.5 {
        let load = machine.load_average;
        let _ =
            write!(page, "<p class=\"warning\">Others kept the machine busy: load average {load} at the start.</p>");
    }
    let _ = write!(
        page,
        "<div class=\"tiles\"><div><b class=\"met\">{}</b>met</div><div><b class=\"missed\">{}</b>not met</div>\
         <div><b>{}</b>shown</div><div><b>{}</b>not measured</div></div></header>",
        count(Some(true)),
        count(Some(false)),
        count(None),
        report.failures.len(),
    );
}

fn summary(page: &mut String, report: &Report) {
    page.push_str(
        "<section><h2>All rows</h2><table><thead><tr><th></th><th>what</th><th>target</th><th>measured</th><th></th>\
         <th>ours</th><th>theirs</th><th>CPU µs/req</th></tr></thead><tbody>",
    );
    for row in &report.rows {
        let theirs = row.theirs.as_ref();
        let cpu = |cpu: Option<f64>| cpu.map_or_else(|| "–".to_owned(), number);
        let cpus = match (row.ours.cpu_us, theirs.and_then(|side| side.cpu_us)) {
            (None, None) => "–".to_owned(),
            (ours, theirs) => format!("{} / {}", cpu(ours), cpu(theirs)),
        };
        let _ = write!(
            page,
            "<tr><td><b>{}</b></td><td>{}</td><td class=\"n\">{}</td><td class=\"n\"><b>{}</b></td><td>{}</td>\
             <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{cpus}</td></tr>",
            row.target,
            escape(&row.what),
            row.bound.text(),
            quantity(row.measured, row.unit),
            chip(row),
            quantity(row.ours.median, row.ours.unit),
            theirs.map_or_else(|| "–".to_owned(), |side| quantity(side.median, side.unit)),
        );
    }
    for failure in &report.failures {
        let reason = escape(&failure.reason);
        let _ =
            write!(page, "<tr><td><b>{}</b></td><td colspan=\"7\">not measured: {reason}</td></tr>", failure.target);
    }
    page.push_str("</tbody></table></section>");
}

fn detail(page: &mut String, row: &Row) {
    let target = match row.bound {
        Bound::Shown => String::new(),
        bound => format!("target {}", bound.text()),
    };
    let _ = write!(
        page,
        "<section><h2><span class=\"name\">{}</span> {} {}</h2><p class=\"measured\"><b>{}</b> {target}</p>\
         <p>{}</p>{}{}",
        row.target,
        escape(&row.what),
        chip(row),
        quantity(row.measured, row.unit),
        escape(&row.compared),
        plot::rounds(row),
        curve(row),
    );
    for note in &row.notes {
        let _ = write!(page, "<p class=\"note\">{}</p>", escape(note));
    }
    page.push_str("</section>");
}

/// The latencies by quantile, under a line that says so.
fn curve(row: &Row) -> String {
    let plot = plot::quantiles(row);
    if plot.is_empty() { plot } else { format!("<p class=\"note\">Latency by quantile, all rounds together</p>{plot}") }
}

fn chip(row: &Row) -> String {
    let class = match row.met {
        Some(true) => "met",
        Some(false) => "missed",
        None => "shown",
    };
    format!("<span class=\"chip {class}\">{}</span>", verdict(row.met).to_lowercase())
}
