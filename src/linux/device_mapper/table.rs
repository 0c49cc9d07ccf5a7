//! Tables: as we give them and as the kernel tells them.

/// Bytes in a sector, the unit of every table.
pub(crate) const SECTOR: u64 = 512;

/// One line of a table or of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// Such as `linear`, `thin-pool` or `thin`.
    pub kind: &'static str,
    /// What follows in the line.
    pub parameters: String,
}

/// A line that the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// First sector.
    pub start: u64,
    /// Sectors.
    pub length: u64,
    /// The target's kind.
    pub kind: String,
    /// What follows.
    pub parameters: String,
}

/// Whether the kernel's lines are this table; how they are spaced does not matter.
pub(super) fn same_table(lines: &[Line], table: &[Target]) -> bool {
    let same = |(line, target): (&Line, &Target)| {
        let place = (line.start, line.length, line.kind.as_str());
        place == (target.start, target.length, target.kind)
            && line.parameters.split_whitespace().eq(target.parameters.split_whitespace())
    };
    lines.len() == table.len() && lines.iter().zip(table).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(parameters: &str) -> Line {
        Line { start: 0, length: 8, kind: "thin".to_owned(), parameters: parameters.to_owned() }
    }

    #[test]
    fn rule_07_a_device_with_another_table_is_another_device() {
        let table =
            [Target { start: 0, length: 8, kind: "thin", parameters: "253:2 7".to_owned() }];
        assert!(same_table(&[line("253:2 7")], &table));
        for other in ["253:2 8", "253:3 7", "253:2", "253:2 7 253:9"] {
            assert!(!same_table(&[line(other)], &table), "{other}");
        }
        assert!(!same_table(&[], &table));
        assert!(!same_table(&[Line { length: 16, ..line("253:2 7") }], &table));
    }
}
