//! What libvirt's names of processors and their features are in QEMU.

/// Features that were once counted to models of processors and that no host has any more: makers took them back, or
/// nobody virtualizes them. They are off in the guest, so that it sees the same processor wherever it runs.
const TAKEN_BACK: &[(&[&str], &[&str])] = &[
    (&["Icelake-Server", "Icelake-Server-noTSX"], &["intel-pt", "mpx"]),
    (&["Icelake-Client", "Icelake-Client-noTSX"], &["intel-pt"]),
    (
        &[
            "Cascadelake-Server",
            "Cascadelake-Server-noTSX",
            "Skylake-Client",
            "Skylake-Client-IBRS",
            "Skylake-Client-noTSX-IBRS",
            "Skylake-Server",
            "Skylake-Server-IBRS",
            "Skylake-Server-noTSX-IBRS",
        ],
        &["mpx"],
    ),
    (&["Dhyana", "EPYC", "EPYC-IBPB", "Opteron_G3"], &["monitor"]),
];

/// Features of hosts that are no properties of QEMU's processors: the guest's system switches them on, or they are the
/// host's alone. Copies of a host's description name them.
const NOT_OF_GUESTS: &[&str] = &[
    "cmt",
    "mbm_local",
    "mbm_total",
    "ospke",
    "osxsave",
    "vmx-ept-uc",
    "vmx-ept-wb",
    "vmx-invvpid-single-context",
];

/// Features that QEMU has dropped: off is how they are.
const DROPPED: &[&str] = &["cvt16", "pconfig"];

/// Features that a model has by its name only.
pub fn taken_back(model: &str) -> &'static [&'static str] {
    TAKEN_BACK.iter().find(|(models, _)| models.contains(&model)).map_or(&[], |(_, features)| features)
}

/// QEMU's name of a feature; libvirt kept some old ones, one of them misspelt. `None`: QEMU is not to be told of it.
pub fn feature(name: &str, on: bool) -> Option<String> {
    if NOT_OF_GUESTS.contains(&name) || !on && DROPPED.contains(&name) {
        return None;
    }
    Some(match name {
        "pclmuldq" => "pclmulqdq".to_owned(),
        "vmx-invvpid-single-context-noglobals" => "vmx-invept-single-context-noglobals".to_owned(),
        "cmp_legacy" | "ds_cpl" | "fxsr_opt" | "kvm_pv_eoi" | "kvm_pv_unhalt" | "lahf_lm" | "nodeid_msr"
        | "perfctr_core" | "perfctr_nb" | "tsc_adjust" => name.replace('_', "-"),
        _ => name.to_owned(),
    })
}
