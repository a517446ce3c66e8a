//! Charts: converts numbers to coordinates, which the template `chart.html` draws as SVG.

use serde::Serialize;

/// Width of every chart, in SVG units. Charts are small so that their text stays readable on a phone; wide screens show
/// several side by side.
const WIDTH: f64 = 340.0;
/// Margins: above the plot, below it (for the ticks and the label), and to its right.
const MARGINS: [f64; 3] = [18.0, 37.0, 20.0];
/// Left margins: for numbers, and for names of rows.
const LEFT: [f64; 2] = [46.0, 116.0];
/// Heights: of a plot of numbers, and of one row in a plot of rows.
const HEIGHTS: [f64; 2] = [170.0, 22.0];

/// CSS class of a mark, which determines its appearance.
pub type Class = &'static str;

/// One chart.
#[derive(Debug, Clone, Serialize)]
pub struct Chart {
    title: String,
    /// Description in words, for screen readers.
    description: String,
    width: f64,
    height: f64,
    /// Left, top, right and bottom edges of the plot.
    plot: [f64; 4],
    x: Axis,
    y: Axis,
    marks: Vec<Mark>,
}

/// One axis with its ticks.
#[derive(Debug, Clone, Serialize)]
struct Axis {
    label: String,
    ticks: Vec<Tick>,
    #[serde(skip)]
    scale: Scale,
}

#[derive(Debug, Clone, Serialize)]
struct Tick {
    at: f64,
    text: String,
}

/// A point of a chart, either in the numbers of its axes or in SVG coordinates.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Position along the x axis.
    pub x: f64,
    /// Position along the y axis.
    pub y: f64,
}

/// A mark in the plot.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "shape", rename_all = "lowercase")]
enum Mark {
    /// A polyline; `points` in the syntax of SVG.
    Line { class: Class, points: String },
    /// A dot with a tooltip.
    Dot { class: Class, x: f64, y: f64, tip: String },
    /// A text label beside a point.
    Label { class: Class, x: f64, y: f64, text: String },
}

/// Maps numbers to coordinates.
#[derive(Debug, Clone, Copy, Default)]
struct Scale {
    from: f64,
    until: f64,
    low: f64,
    high: f64,
}

impl Scale {
    /// Returns the coordinate of `value`, or `None` if it is NaN or outside the axis.
    fn at(&self, value: f64) -> Option<f64> {
        let share = (value - self.from) / (self.until - self.from);
        (-0.01..=1.01).contains(&share).then(|| tenth(self.low + share * (self.high - self.low)))
    }
}

/// The range and ticks of an axis.
#[derive(Debug, Clone)]
pub struct Numbers {
    label: String,
    from: f64,
    until: f64,
    step: f64,
    percent: bool,
}

impl Numbers {
    /// Creates an axis that covers all finite `values` and begins and ends at round numbers.
    pub fn over(label: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let all = values.into_iter().filter(|v| v.is_finite() && v.abs() < 1e15);
        let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        let (low, high) = match high - low {
            span if span < 0.0 => (0.0, 1.0),
            span if span < 1e-12 * high.abs().max(1e-9) => {
                (low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0))
            }
            _ => (low, high),
        };
        let step = round_step((high - low) / 5.0);
        let (from, until) = ((low / step).floor() * step, (high / step).ceil() * step);
        Self { label: label.into(), from, until, step, percent: false }
    }

    /// Labels the ticks in percent.
    pub fn percent(self) -> Self {
        Self { percent: true, ..self }
    }

    /// Creates an axis of whole numbers from 0 to `last`.
    pub fn layers(last: usize) -> Self {
        let until = last.max(1) as f64;
        let step = round_step(until / 6.0).max(1.0);
        Self { label: "layer".into(), from: 0.0, until, step, percent: false }
    }

    fn axis(self, low: f64, high: f64) -> Axis {
        let scale = Scale { from: self.from, until: self.until, low, high };
        let digits = |step: f64| (-step.log10().floor()).clamp(0.0, 9.0) as usize;
        let text = |value: f64| match self.percent {
            // Adding 0.0 turns -0.0 into 0.0.
            true => format!("{:.*} %", digits(100.0 * self.step), 100.0 * value + 0.0),
            false => format!("{:.*}", digits(self.step), value + 0.0),
        };
        let count = ((self.until - self.from) / self.step + 1e-6).floor() as usize;
        let values = (0..=count.min(50)).map(|i| {
            let value = self.from + i as f64 * self.step;
            if value.abs() < 1e-9 * self.step { 0.0 } else { value }
        });
        let ticks = values.filter_map(|v| Some(Tick { at: scale.at(v)?, text: text(v) }));
        Axis { label: self.label, ticks: ticks.collect(), scale }
    }
}

/// Returns the smallest of 1, 2 and 5 times a power of ten that is at least `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= least * (1.0 - 1e-9)).unwrap_or(10.0);
    factor * power
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Chart {
    /// Creates an empty chart of numbers against numbers.
    pub fn new(title: &str, description: String, x: Numbers, y: Numbers) -> Self {
        let [top, _, right] = MARGINS;
        let plot = [LEFT[0], top, WIDTH - right, top + HEIGHTS[0]];
        let (x, y) = (x.axis(plot[0], plot[2]), y.axis(plot[3], plot[1]));
        Self::empty(title, description, plot, x, y)
    }

    /// Creates an empty chart of numbers in named rows, the first at the top.
    pub fn of_rows(title: &str, description: String, x: Numbers, rows: &[&str]) -> Self {
        let [top, _, right] = MARGINS;
        let [_, row] = HEIGHTS;
        let plot = [LEFT[1], top, WIDTH - right, top + row * rows.len() as f64];
        let x = x.axis(plot[0], plot[2]);
        let last = rows.len().saturating_sub(1) as f64;
        let scale = Scale {
            from: 0.0,
            until: last.max(1.0),
            low: top + row / 2.0,
            high: top + row * (last.max(1.0) + 0.5),
        };
        let tick = |(i, name): (usize, &&str)| Some(Tick { at: scale.at(i as f64)?, text: (*name).into() });
        let y =
            Axis { label: String::new(), ticks: rows.iter().enumerate().filter_map(tick).collect(), scale };
        Self::empty(title, description, plot, x, y)
    }

    fn empty(title: &str, description: String, plot: [f64; 4], x: Axis, y: Axis) -> Self {
        let [_, below, _] = MARGINS;
        let (title, height) = (title.into(), plot[3] + below);
        Self { title, description, width: WIDTH, height, plot, x, y, marks: Vec::new() }
    }

    /// Draws a line through `points`, interrupted where a point is outside the plot.
    pub fn line(&mut self, class: Class, points: impl IntoIterator<Item = Point>) {
        let placed: Vec<Option<Point>> = points.into_iter().map(|point| self.place(point)).collect();
        for run in placed.split(Option::is_none).filter(|run| run.len() > 1) {
            let points: Vec<String> = run.iter().flatten().map(|p| format!("{},{}", p.x, p.y)).collect();
            self.marks.push(Mark::Line { class, points: points.join(" ") });
        }
    }

    /// Draws a vertical line through the plot at `x`.
    pub fn upright(&mut self, class: Class, x: f64) {
        if let Some(x) = self.x.scale.at(x) {
            let points = format!("{x},{} {x},{}", self.plot[3], self.plot[1]);
            self.marks.push(Mark::Line { class, points });
        }
    }

    /// Draws a short vertical line across a point.
    pub fn cross(&mut self, class: Class, point: Point) {
        if let Some(Point { x, y }) = self.place(point) {
            let points = format!("{x},{} {x},{}", y - 8.0, y + 8.0);
            self.marks.push(Mark::Line { class, points });
        }
    }

    /// Draws a horizontal line through the plot at `y`.
    pub fn level(&mut self, class: Class, y: f64) {
        if let Some(y) = self.y.scale.at(y) {
            let points = format!("{},{y} {},{y}", self.plot[0], self.plot[2]);
            self.marks.push(Mark::Line { class, points });
        }
    }

    /// Draws a dot with the tooltip `tip`.
    pub fn dot(&mut self, class: Class, point: Point, tip: String) {
        if let Some(Point { x, y }) = self.place(point) {
            self.marks.push(Mark::Dot { class, x, y, tip });
        }
    }

    /// Draws a text label above and to the right of a point.
    pub fn label(&mut self, class: Class, point: Point, text: String) {
        if let Some(Point { x, y }) = self.place(point) {
            self.marks.push(Mark::Label { class, x, y, text });
        }
    }

    /// Returns the SVG coordinates of `point`, or `None` if it is outside the plot.
    fn place(&self, point: Point) -> Option<Point> {
        Some(Point { x: self.x.scale.at(point.x)?, y: self.y.scale.at(point.y)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(numbers: Numbers) -> Vec<String> {
        numbers.axis(0.0, 100.0).ticks.into_iter().map(|tick| tick.text).collect()
    }

    #[test]
    fn ticks_are_round_and_hold_all_values() {
        assert_eq!(ticks(Numbers::over("", [0.0, 0.043])), ["0.00", "0.01", "0.02", "0.03", "0.04", "0.05"]);
        assert_eq!(
            ticks(Numbers::over("", [0.0, 1.0]).percent()),
            ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]
        );
        assert_eq!(ticks(Numbers::over("", [-7.0, 12.0])), ["-10", "-5", "0", "5", "10", "15"]);
        assert_eq!(ticks(Numbers::layers(23)), ["0", "5", "10", "15", "20"]);
        assert_eq!(ticks(Numbers::layers(0)), ["0", "1"]);
    }

    #[test]
    fn no_number_breaks_a_chart() {
        let strange = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 5e-324, 0.0, -3.0];
        for a in strange {
            for b in strange {
                let axis = Numbers::over("", [a, b]).axis(0.0, 100.0);
                assert!(!axis.ticks.is_empty() && axis.ticks.len() <= 51, "{a} {b}: {axis:?}");
                assert!(axis.ticks.iter().all(|t| (-1.0..=101.0).contains(&t.at)), "{a} {b}: {axis:?}");
            }
        }
        let mut chart = Chart::new("", String::new(), Numbers::layers(3), Numbers::over("", [0.0, 1.0]));
        let points = [(0.0, 0.0), (1.0, 1.0), (2.0, f64::NAN), (2.5, 0.5), (3.0, 0.5)];
        chart.line("own", points.map(|(x, y)| Point { x, y }));
        chart.dot("own", Point { x: 1.0, y: f64::INFINITY }, String::new());
        let [Mark::Line { points: first, .. }, Mark::Line { .. }] = &chart.marks[..] else {
            panic!("two runs, no dot: {:?}", chart.marks)
        };
        assert_eq!(first, "46,188 137.3,18");
    }
}
