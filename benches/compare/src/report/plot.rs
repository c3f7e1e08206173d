//! Bars as SVG.

use std::fmt::Write;

use super::stats::{Spread, grouped};

/// Bars that can be compared with each other.
#[derive(Debug)]
pub struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
}

#[derive(Debug)]
pub struct Bar {
    pub label: String,
    pub ours: bool,
    /// Drawn one behind the other; the spread of the whole.
    pub parts: Vec<f64>,
    pub whole: Spread,
}

const LABEL: f64 = 230.0;
const BAR: f64 = 330.0;
const VALUE: f64 = 90.0;
const ROW: f64 = 22.0;
const HEAD: f64 = 34.0;

/// A picture of `panels`, one below the other.
pub fn picture(title: &str, unit: &str, panels: &[Panel]) -> String {
    let width = LABEL + BAR + VALUE;
    let height = panels
        .iter()
        .map(|panel| HEAD + ROW * panel.bars.len() as f64)
        .sum::<f64>()
        + 44.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <title>{0}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{0}</text>\n\
         <text x=\"{1:.0}\" y=\"24\" text-anchor=\"end\" fill=\"#666\">{unit}</text>\n",
        escaped(title),
        width - 8.0
    );
    let mut top = 36.0;
    for panel in panels {
        draw(&mut out, panel, top);
        top += HEAD + ROW * panel.bars.len() as f64;
    }
    out + "</svg>\n"
}

fn draw(out: &mut String, panel: &Panel, top: f64) {
    let most = panel
        .bars
        .iter()
        .map(|bar| bar.whole.most)
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = BAR / most;
    let _ = writeln!(
        out,
        "<text x=\"8\" y=\"{:.0}\" font-weight=\"bold\">{}</text>",
        top + 22.0,
        escaped(&panel.title)
    );
    for (number, bar) in panel.bars.iter().enumerate() {
        let y = top + HEAD + ROW * number as f64;
        let middle = y + 8.0;
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            LABEL - 8.0,
            y + 12.0,
            escaped(&bar.label)
        );
        let colours = if bar.ours {
            ["#1f6f8b", "#99c1cf"]
        } else {
            ["#8a8f98", "#cdd0d4"]
        };
        let mut x = LABEL;
        for (part, colour) in bar.parts.iter().zip(colours) {
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"16\" fill=\"{colour}\"/>",
                part * scale
            );
            x += part * scale;
        }
        let (low, high) = (
            LABEL + bar.whole.least * scale,
            LABEL + bar.whole.most * scale,
        );
        let _ = writeln!(
            out,
            "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {0:.1}v8M{high:.1} {0:.1}v8\" stroke=\"#222\" fill=\"none\"/>",
            middle - 4.0
        );
        let decimals = if bar.whole.median < 100.0 { 1 } else { 0 };
        let value = grouped(bar.whole.median, decimals);
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.0}\">{value}</text>",
            high.max(x) + 6.0,
            y + 12.0
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('`', "")
}
