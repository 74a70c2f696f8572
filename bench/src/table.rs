//! Aligned Markdown tables, and medians.

/// Prints a table on stdout. The first two columns are text (left-aligned), the others numbers (right-aligned).
pub fn print(heads: &[&str], rows: &[Vec<String>]) {
    let widths: Vec<usize> = heads
        .iter()
        .enumerate()
        .map(|(column, head)| {
            rows.iter().map(|row| row[column].chars().count()).fold(head.chars().count().max(3), usize::max)
        })
        .collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 | 1 => format!(" {cell:<width$} "),
            _ => format!(" {cell:>width$} "),
        });
        println!("|{}|", padded.collect::<Vec<_>>().join("|"));
    };
    line(&heads.iter().map(|&head| head.to_owned()).collect::<Vec<_>>());
    let rule = |(column, width): (usize, &usize)| match column {
        0 | 1 => format!(" {} ", "-".repeat(*width)),
        _ => format!(" {}: ", "-".repeat(width - 1)),
    };
    println!("|{}|", widths.iter().enumerate().map(rule).collect::<Vec<_>>().join("|"));
    rows.iter().for_each(|row| line(row));
}

/// Returns the median: the middle value, or the mean of the two middle values; NaN when there are no values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
