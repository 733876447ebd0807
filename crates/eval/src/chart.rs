//! Scatter and line charts as SVG.

use std::fmt::Write;

/// Chart with named series.
#[derive(Debug)]
pub(crate) struct Chart {
    /// Title above the chart.
    pub(crate) title: String,
    /// Horizontal axis.
    pub(crate) x: Axis,
    /// Vertical axis.
    pub(crate) y: Axis,
    /// Series in the order of their colours.
    pub(crate) series: Vec<Series>,
}

/// Axis of the chart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    /// Quantity with its unit.
    pub(crate) label: &'static str,
    /// Scale of its values.
    pub(crate) scale: Scale,
}

/// Scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Linear from 0.
    Linear,
    /// Powers of ten. Values not above 0 are drawn at the lower end.
    Log,
}

/// Points of one colour.
#[derive(Debug)]
pub(crate) struct Series {
    /// Name in the legend.
    pub(crate) name: String,
    /// `(x, y)`, joined by a line in their order if `is_line`.
    pub(crate) points: Vec<(f64, f64)>,
    /// True if the points are joined.
    pub(crate) is_line: bool,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 590.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 430.0;

/// Okabe and Ito's colours, which colour-blind readers can distinguish (Wong 2011); then the same darker.
const COLORS: [&str; 14] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#004a73", "#8a3d00", "#00664b", "#854e6d",
    "#966800", "#387597", "#777777",
];

/// Axis with its value range and drawn ends.
struct Ruler {
    low: f64,
    high: f64,
    scale: Scale,
    /// Coordinates of its ends.
    from: f64,
    to: f64,
}

impl Chart {
    /// Renders the chart as an SVG document.
    pub(crate) fn to_svg(&self) -> String {
        let x = Ruler::new(self.x.scale, self.points().map(|point| point.0), LEFT, RIGHT);
        let y = Ruler::new(self.y.scale, self.points().map(|point| point.1), BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        text(&mut svg, (LEFT, TOP - 16.0), "start", &self.title);
        for tick in x.ticks() {
            line(&mut svg, (x.at(tick), BOTTOM), (x.at(tick), TOP), "#dddddd");
            text(&mut svg, (x.at(tick), BOTTOM + 16.0), "middle", &number(tick));
        }
        for tick in y.ticks() {
            line(&mut svg, (LEFT, y.at(tick)), (RIGHT, y.at(tick)), "#dddddd");
            text(&mut svg, (LEFT - 6.0, y.at(tick) + 4.0), "end", &number(tick));
        }
        text(&mut svg, ((LEFT + RIGHT) / 2.0, BOTTOM + 36.0), "middle", self.x.label);
        text(&mut svg, (6.0, TOP - 2.0), "start", self.y.label);
        for (index, series) in self.series.iter().enumerate() {
            series.draw(&mut svg, index, &x, &y);
        }
        svg += "</svg>\n";
        svg
    }

    fn points(&self) -> impl Iterator<Item = (f64, f64)> {
        self.series.iter().flat_map(|series| series.points.iter().copied())
    }
}

impl Series {
    fn draw(&self, svg: &mut String, index: usize, x: &Ruler, y: &Ruler) {
        let color = COLORS[index % COLORS.len()];
        let places: Vec<_> = self.points.iter().map(|&(px, py)| (x.at(px), y.at(py))).collect();
        if self.is_line {
            places.windows(2).for_each(|pair| line(svg, pair[0], pair[1], color));
        }
        for (cx, cy) in &places {
            push(svg, format_args!("<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" fill=\"{color}\" fill-opacity=\"0.8\"/>\n"));
        }
        let legend_y = TOP + 10.0 + 18.0 * index as f64;
        push(svg, format_args!("<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{color}\"/>\n", RIGHT + 16.0, legend_y - 4.0));
        text(svg, (RIGHT + 26.0, legend_y), "start", &self.name);
    }
}

impl Ruler {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let values: Vec<_> = values.filter(|value| value.is_finite() && (scale == Scale::Linear || *value > 0.0)).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let (low, high) = match scale {
            _ if values.is_empty() || most == 0.0 => (if scale == Scale::Log { 0.1 } else { 0.0 }, 1.0),
            Scale::Linear => (0.0, most * 1.05),
            Scale::Log => {
                let low = 10f64.powf(least.log10().floor());
                (low, 10f64.powf((most / 1.000_001).log10().ceil()).max(low * 10.0))
            }
        };
        Self { low, high, scale, from, to }
    }

    /// Returns the coordinate of `value`.
    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share * (self.to - self.from)
    }

    /// Returns round values between its ends.
    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Log => {
                let (first, last) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
                (first..=last).map(|power| 10f64.powi(power)).collect()
            }
            Scale::Linear => {
                let step = round_step(self.high / 6.0);
                (0..).map(|i| step * f64::from(i)).take_while(|tick| *tick <= self.high).collect()
            }
        }
    }
}

/// Returns the least of 1, 2 and 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().map(|times| times * power).find(|step| *step >= least * 0.999_999);
    step.unwrap_or(10.0 * power)
}

/// Formats without the digits that rounding errors leave.
fn number(value: f64) -> String {
    match value == 0.0 || value.abs() >= 1e-3 {
        true => format!("{}", (value * 1e6).round() / 1e6),
        false => format!("{value:.0e}"),
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), color: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    push(svg, format_args!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\"/>\n"));
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    push(svg, format_args!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{text}</text>\n", at.0, at.1));
}

fn push(svg: &mut String, part: std::fmt::Arguments<'_>) {
    svg.write_fmt(part).expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_ticks(scale: Scale, values: &[f64], expected: &str) {
        let ruler = Ruler::new(scale, values.iter().copied(), 0.0, 100.0);
        assert_eq!(ruler.ticks().into_iter().map(number).collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn ticks_are_round() {
        check_ticks(Scale::Linear, &[0.07, 0.51], "0 0.1 0.2 0.3 0.4 0.5");
        check_ticks(Scale::Linear, &[9.4], "0 2 4 6 8");
        check_ticks(Scale::Log, &[0.0, 3e-5, 0.2], "1e-5 1e-4 0.001 0.01 0.1 1");
    }

    #[test]
    fn nothing_and_zero_have_an_axis_too() {
        check_ticks(Scale::Linear, &[], "0 0.2 0.4 0.6 0.8 1");
        check_ticks(Scale::Log, &[0.0], "0.1 1");
    }

    #[test]
    fn places_follow_the_scale() {
        let place = |scale, value| Ruler::new(scale, [0.1, 10.0].into_iter(), 0.0, 100.0).at(value);
        assert!((place(Scale::Log, 1.0) - 50.0).abs() < 1e-9);
        assert_eq!((place(Scale::Log, 0.0), place(Scale::Linear, 0.0)), (0.0, 0.0));
        assert!((place(Scale::Linear, 10.5) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn a_chart_draws_each_point_and_names_each_series() {
        let series = |name: &str, is_line| Series { name: name.to_owned(), points: vec![(0.1, 0.01), (0.2, 0.001)], is_line };
        let axis = |label, scale| Axis { label, scale };
        let chart = Chart {
            title: "a < b".to_owned(),
            x: axis("work", Scale::Linear),
            y: axis("KL", Scale::Log),
            series: vec![series("dhd", true), series("epic", false)],
        };
        let svg = chart.to_svg();
        assert_eq!(svg.matches("<circle").count(), 4 + 2);
        assert_eq!(svg.matches("stroke=\"#0072b2\"").count(), 1, "one line joins two points");
        assert!(svg.contains(">dhd<") && svg.contains("a &lt; b") && svg.trim_end().ends_with("</svg>"));
    }
}
