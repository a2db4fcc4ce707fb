//! `-smbios`, `-fw_cfg`.

use crate::domain::Domain;
use crate::domain::os::SmbiosMode;
use crate::domain::sysinfo::FwCfgValue;
use crate::qemu::CommandLine;
use crate::qemu::plan::comma_escaped;

/// The type of the table with strings of the maker's.
const OEM_STRINGS: u8 = 11;

/// What the guest reads about its machine.
pub(super) fn arguments(domain: &Domain, line: &mut CommandLine) {
    let sysinfo = &domain.sysinfo;
    if domain.os.smbios.is_some_and(|(mode, _)| mode == SmbiosMode::Sysinfo) {
        for table in &sysinfo.tables {
            let entries =
                table.entries.iter().map(|(name, value)| format!(",{name}={}", comma_escaped(value)));
            line.text("-smbios", format!("type={}{}", table.kind, entries.collect::<String>()));
        }
        if !sysinfo.oem_strings.is_empty() {
            let strings = sysinfo.oem_strings.iter().map(|s| format!(",value={}", comma_escaped(s)));
            line.text("-smbios", format!("type={OEM_STRINGS}{}", strings.collect::<String>()));
        }
    }
    for entry in &sysinfo.fw_cfg {
        let value = match &entry.value {
            FwCfgValue::Text(text) => format!("string={}", comma_escaped(text)),
            FwCfgValue::File(path) => format!("file={}", comma_escaped(path)),
        };
        line.text("-fw_cfg", format!("name={},{value}", comma_escaped(&entry.name)));
    }
}
