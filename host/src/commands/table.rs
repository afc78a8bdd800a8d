//! Plain tables for terminals.

/// Renders a table. Each column is as wide as its widest cell, and columns are two spaces apart.
pub fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = header.iter().map(|name| (*name).to_owned()).collect();
    let rows = rows.iter().map(|row| row.to_vec());
    render_columns(&std::iter::once(header).chain(rows).collect::<Vec<_>>())
}

/// Renders a table with a number of columns that is known only at run time. The first row is the
/// header. All rows must have the same length.
pub fn render_columns(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let padded: Vec<String> = cells
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [
            ["a".to_owned(), "long".to_owned()],
            ["bbb".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            super::render(["n", "v"], &rows),
            "n    v\na    long\nbbb  x\n"
        );
    }
}
