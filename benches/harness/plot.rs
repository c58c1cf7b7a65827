//! The ratios of a report, drawn.

use std::{error::Error, path::Path};

use plotters::prelude::*;

use super::{
    goal::AtMost,
    report::{CaseReport, Report, TableReport},
};

const WIDTH: u32 = 1000;
const ROW_HEIGHT: u32 = 26;
const HEAD_HEIGHT: u32 = 90;
/// The points' part of a panel's width; the remaining part is the legend's.
const POINTS: f64 = 0.65;
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x1b, 0x6c, 0xa8),
    RGBColor(0xc8, 0x55, 0x3d),
    RGBColor(0x3c, 0x8d, 0x53),
    RGBColor(0x8a, 0x5a, 0xa8),
    RGBColor(0xb8, 0x86, 0x0b),
    RGBColor(0x4a, 0x4a, 0x4a),
    RGBColor(0x1f, 0xa8, 0xa8),
    RGBColor(0xd8, 0x6f, 0xb0),
];

/// Draws one panel for each table, below each other.
pub(super) fn draw(report: &Report, file: &Path) -> Result<(), Box<dyn Error>> {
    let heights: Vec<u32> = report.tables.iter().map(height).collect();
    let root =
        SVGBackend::new(file, (WIDTH, heights.iter().sum::<u32>().max(1))).into_drawing_area();
    root.fill(&WHITE)?;
    let mut rest = root.clone();
    for (table, height) in report.tables.iter().zip(heights) {
        let (panel, below) = rest.split_vertically(height);
        draw_table(table, &panel)?;
        rest = below;
    }
    Ok(root.present()?)
}

fn height(table: &TableReport) -> u32 {
    HEAD_HEIGHT + ROW_HEIGHT * table.rows().len().max(table.cases.len()) as u32
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// A line for each row, a colour for each case: the median ratio, its quartiles, and the goal as a
/// bar, ideally to the right of the point.
fn draw_table(table: &TableReport, panel: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let rows = table.rows();
    let ratios = table.cases.iter().flat_map(|case| &case.rows).filter_map(|row| row.ratio);
    let (low, high) =
        ratios.fold((0.9, 2.0), |(low, high): (f64, f64), r| (low.min(r.low), high.max(r.high)));
    let low = low / 1.1;
    let end = low * (high / low).powf(1.0 / POINTS);
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("{}: ratio to the floor", table.name), ("sans-serif", 17))
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(250)
        .build_cartesian_2d((low..end).log_scale(), -0.5..rows.len() as f64 - 0.5)?;
    let row_at = |y: &f64| rows.len().checked_sub(1 + y.round() as usize).map(|at| rows[at]);
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(WHITE)
        .y_labels(rows.len())
        .y_label_formatter(&|y| row_at(y).unwrap_or_default().to_owned())
        .x_label_formatter(&|x| format!("{x}"))
        .draw()?;
    let bottom_to_top = [(1.0, -0.5), (1.0, rows.len() as f64 - 0.5)];
    chart.draw_series([PathElement::new(bottom_to_top, BLACK.mix(0.5))])?;
    for (at, case) in table.cases.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let offset = 0.6 * ((at as f64 + 0.5) / table.cases.len() as f64 - 0.5);
        let mut elements: Vec<DynElement<'static, _, _>> = Vec::new();
        for (line, name) in rows.iter().rev().enumerate() {
            let y = line as f64 - offset;
            let Some(ratio) = case.row(name).and_then(|row| row.ratio) else { continue };
            let spread = [(ratio.low, y), (ratio.high, y)];
            elements.push(PathElement::new(spread, colour.stroke_width(2)).into_dyn());
            elements.push(Circle::new((ratio.median, y), 3, colour.filled()).into_dyn());
            if let Some(goal) = goal_ratio(case, name) {
                let bar = [(goal, y - 0.2), (goal, y + 0.2)];
                elements.push(PathElement::new(bar, colour.stroke_width(2)).into_dyn());
            }
        }
        chart
            .draw_series(elements)?
            .label(&case.name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .position(SeriesLabelPosition::UpperRight)
        .draw()?;
    Ok(())
}

/// The goal of a row as a ratio to the reference of the case.
fn goal_ratio(case: &CaseReport, row: &str) -> Option<f64> {
    let goal = case.goals.iter().find(|goal| goal.row == row)?;
    let against = case.row(&goal.against)?;
    let floor = case.row(&case.reference)?.cost?.median;
    Some(match goal.at_most {
        AtMost::Times(times) => times * against.ratio?.median,
        AtMost::More(more) => against.ratio?.median + more / floor,
        AtMost::Value(value) => value / floor,
    })
}
