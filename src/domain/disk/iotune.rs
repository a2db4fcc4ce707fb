//! `<iotune>`: limits on a disk's throughput.

use crate::xml::{Diagnostics, Element, Span};

/// A limit on all operations, or one on reads and one on writes. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// On the sum.
    pub total: u64,
    /// On reads.
    pub read: u64,
    /// On writes.
    pub write: u64,
}

impl Limits {
    fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// `<iotune>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IoTune {
    /// Where it stands.
    pub span: Span,
    /// Bytes a second.
    pub bytes: Limits,
    /// Operations a second.
    pub iops: Limits,
    /// Bytes a second in a burst.
    pub bytes_max: Limits,
    /// Operations a second in a burst.
    pub iops_max: Limits,
    /// Seconds that a burst of bytes may last.
    pub bytes_max_length: Limits,
    /// Seconds that a burst of operations may last.
    pub iops_max_length: Limits,
    /// Longer operations count as several: bytes of one.
    pub size_iops: u64,
    /// Disks of the same group share the limits.
    pub group: Option<String>,
}

/// The largest limit that QEMU takes.
const MAX: u64 = 1_000_000_000_000_000;

impl IoTune {
    pub(super) fn from_xml(disk: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let e = disk.only_child("iotune", diagnostics)?;
        let mut found = Self { span: e.span, ..Self::default() };
        for (suffix, bytes, iops) in [
            ("", &mut found.bytes, &mut found.iops),
            ("_max", &mut found.bytes_max, &mut found.iops_max),
            ("_max_length", &mut found.bytes_max_length, &mut found.iops_max_length),
        ] {
            for (unit, limits) in [("bytes", bytes), ("iops", iops)] {
                *limits = read(e, unit, suffix, diagnostics);
            }
        }
        found.size_iops = number(e, "size_iops_sec", diagnostics);
        found.group = e.child_text("group_name").map(str::to_owned);
        found.check(diagnostics);
        (!found.is_unlimited()).then_some(found)
    }

    fn is_unlimited(&self) -> bool {
        [self.bytes, self.iops, self.bytes_max, self.iops_max].iter().all(|l| l.is_empty())
    }

    fn check(&self, diagnostics: &mut Diagnostics) {
        let pairs = [
            ("bytes", self.bytes, self.bytes_max, self.bytes_max_length),
            ("iops", self.iops, self.iops_max, self.iops_max_length),
        ];
        for (unit, limits, burst, length) in pairs {
            for (what, l) in [("a limit", limits), ("a burst", burst)] {
                if l.total != 0 && (l.read != 0 || l.write != 0) {
                    diagnostics.error(
                        self.span,
                        format!("{what} on the {unit} of all operations excludes one on reads or writes"),
                    );
                }
            }
            for (way, limit, burst, length) in [
                ("total", limits.total, burst.total, length.total),
                ("read", limits.read, burst.read, length.read),
                ("write", limits.write, burst.write, length.write),
            ] {
                if burst != 0 && limit == 0 {
                    diagnostics.error(self.span, format!("{way}_{unit}_sec_max needs {way}_{unit}_sec"));
                } else if burst != 0 && burst < limit {
                    diagnostics
                        .error(self.span, format!("{way}_{unit}_sec_max is less than {way}_{unit}_sec"));
                }
                if length != 0 && burst == 0 {
                    diagnostics
                        .error(self.span, format!("{way}_{unit}_sec_max_length needs {way}_{unit}_sec_max"));
                }
                if limit > MAX || burst > MAX {
                    diagnostics.error(self.span, format!("no limit is greater than {MAX}"));
                }
            }
        }
        if self.group.is_some() && self.is_unlimited() {
            diagnostics.error(self.span, "group_name needs limits that the group shares");
        }
    }
}

fn read(e: &Element, unit: &str, suffix: &str, diagnostics: &mut Diagnostics) -> Limits {
    let mut way = |way: &str| number(e, &format!("{way}_{unit}_sec{suffix}"), diagnostics);
    Limits { total: way("total"), read: way("read"), write: way("write") }
}

fn number(e: &Element, name: &str, diagnostics: &mut Diagnostics) -> u64 {
    let Some(child) = e.only_child(name, diagnostics) else { return 0 };
    match child.text().parse() {
        Ok(n) => n,
        Err(_) => {
            diagnostics.error(child.text_place(), format!("'{}' is not a number", child.text()));
            0
        }
    }
}
