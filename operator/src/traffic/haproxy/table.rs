//! The tables in HAProxy's answers: a line `# name name …`, then a line a row, with one separator.

use std::collections::HashMap;

/// One row, by column.
pub(super) type Row<'a> = HashMap<&'a str, &'a str>;

/// The rows of the table whose first column is called `first`; `None` if there is no such table.
pub(super) fn rows<'a>(answer: &'a str, first: &str, separator: char) -> Option<Vec<Row<'a>>> {
    let mut lines = answer.lines();
    let names: Vec<&str> = lines.find_map(|line| {
        let names: Vec<&str> = line.strip_prefix("# ")?.split(separator).collect();
        (names.first() == Some(&first)).then_some(names)
    })?;
    let rows = lines
        .take_while(|line| !line.trim().is_empty())
        .map(|line| names.iter().copied().zip(line.split(separator)).collect());
    Some(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_is_asked_for_is_read_to_its_end() {
        let answer = "# a,b\n1,2\n3,4\n\n1\n# c d\n5 6\n\n";
        let read = rows(answer, "a", ',').unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1]["b"], "4");
        assert_eq!(rows(answer, "c", ' ').unwrap()[0]["d"], "6");
        assert!(rows("No such proxy.\n", "a", ',').is_none());
    }
}
