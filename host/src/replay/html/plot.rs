//! Histograms as inline SVG.

use super::escaped;

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 130.0;
const BINS: usize = 25;
/// Height in pixels of the title above and of the numbers below.
const TOP: f64 = 22.0;
const BOTTOM: f64 = 18.0;

#[derive(Debug, Clone, Copy)]
pub struct Axis {
    min: f64,
    max: f64,
}

impl Axis {
    pub fn between(min: f64, max: f64) -> Self {
        // Avoids division by zero for an empty range.
        let max = if max > min { max } else { min + 1.0 };
        Self { min, max }
    }

    pub fn share() -> Self {
        Self::between(0.0, 1.0)
    }

    /// Returns the bin of a value. Values outside the range count in the last bin on their side.
    fn bin(self, value: f64) -> usize {
        let share = (value - self.min) / (self.max - self.min);
        ((share * BINS as f64) as usize).min(BINS - 1)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Series<'a> {
    /// Its class in the style sheet, which sets its colour, and its name in the tooltip.
    pub name: &'static str,
    pub values: &'a [f64],
}

pub fn histogram(title: &str, axis: Axis, series: &[Series<'_>]) -> String {
    let counts: Vec<[u64; BINS]> = series.iter().map(|s| count(axis, s.values)).collect();
    let highest = counts.iter().flatten().copied().max().unwrap_or(0).max(1);
    let bars: String = series
        .iter()
        .zip(&counts)
        .map(|(series, counts)| bars(axis, series.name, counts, highest))
        .collect();
    let base = HEIGHT - BOTTOM;
    format!(
        "<svg width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\"><text x=\"0\" y=\"12\">{}</text>{bars}<line class=\"axis\" x1=\"0\" y1=\"{base}\" x2=\"{WIDTH}\" y2=\"{base}\"/><text x=\"0\" y=\"{HEIGHT}\">{}</text><text x=\"{WIDTH}\" y=\"{HEIGHT}\" text-anchor=\"end\">{}</text></svg>",
        escaped(title),
        number(axis.min),
        number(axis.max),
    )
}

fn count(axis: Axis, values: &[f64]) -> [u64; BINS] {
    let mut counts = [0; BINS];
    for &value in values {
        counts[axis.bin(value)] += 1;
    }
    counts
}

fn bars(axis: Axis, name: &str, counts: &[u64; BINS], highest: u64) -> String {
    let width = WIDTH / BINS as f64;
    let step = (axis.max - axis.min) / BINS as f64;
    let bar = |(bin, &count): (usize, &u64)| {
        let height = (HEIGHT - TOP - BOTTOM) * count as f64 / highest as f64;
        let from = axis.min + step * bin as f64;
        format!(
            "<rect class=\"{name}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{name}: {count} from {} to {}</title></rect>",
            width * bin as f64,
            HEIGHT - BOTTOM - height,
            width - 1.0,
            number(from),
            number(from + step),
        )
    };
    let filled = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    filled.map(bar).collect()
}

fn number(value: f64) -> String {
    if value.abs() >= 10.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_counted_in_a_bin_even_outside_the_range() {
        let counts = count(Axis::share(), &[0.0, 1.0, 0.5, 7.0, -3.0, f64::NAN]);
        assert_eq!(counts.iter().sum::<u64>(), 6);
        assert_eq!((counts[0], counts[BINS / 2], counts[BINS - 1]), (3, 1, 2));
    }

    #[test]
    fn an_empty_range_is_drawn_without_nan() {
        let svg = histogram(
            "a < b",
            Axis::between(5.0, 5.0),
            &[Series {
                name: "after",
                values: &[5.0, 5.0],
            }],
        );
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN"), "{svg}");
    }
}
