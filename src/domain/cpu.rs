//! `<cpu>`: the processor that the guest sees.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

use super::numa::Numa;

keywords! {
    /// Where the model comes from.
    pub enum CpuMode {
        /// A model by name.
        Custom = "custom",
        /// The model that is nearest to the host's.
        HostModel = "host-model",
        /// The host's processor as it is.
        HostPassthrough = "host-passthrough",
        /// Everything that QEMU can do here.
        Maximum = "maximum",
    }
}

keywords! {
    /// How the host's processor compares to the guest's.
    pub enum CpuMatch {
        /// It has at least as much, and the guest sees all of it.
        Minimum = "minimum",
        /// It has at least as much.
        Exact = "exact",
        /// It is the same.
        Strict = "strict",
    }
}

keywords! {
    /// When the host's processor is compared.
    pub enum CpuCheck {
        /// Never.
        None = "none",
        /// Before the start.
        Partial = "partial",
        /// Also after it.
        Full = "full",
    }
}

keywords! {
    /// What becomes of a guest whose model the host lacks.
    pub enum Fallback {
        /// It gets one that is near.
        Allow = "allow",
        /// It does not start.
        Forbid = "forbid",
    }
}

keywords! {
    /// What is asked of a feature.
    pub enum FeaturePolicy {
        /// It is on, whatever the host says.
        Force = "force",
        /// It is on.
        Require = "require",
        /// It is on where the model has it.
        Optional = "optional",
        /// It is off.
        Disable = "disable",
        /// It is off.
        Forbid = "forbid",
    }
}

keywords! {
    /// What the guest is told of the processor's caches.
    pub enum CacheMode {
        /// QEMU makes it up.
        Emulate = "emulate",
        /// The host's.
        Passthrough = "passthrough",
        /// Nothing.
        Disable = "disable",
    }
}

keywords! {
    /// How the number of physical address bits is chosen.
    pub enum AddressBitsMode {
        /// By `bits=`.
        Emulate = "emulate",
        /// The host's.
        Passthrough = "passthrough",
    }
}

/// `<maxphysaddr>`.
#[derive(Debug, Clone, Copy)]
pub struct AddressBits {
    /// How it is chosen.
    pub mode: AddressBitsMode,
    /// The number, of an emulated one; `None`: QEMU's.
    pub bits: Option<u32>,
    /// The most, of the host's.
    pub limit: Option<u32>,
}

/// `<cpu>`.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Where it stands.
    pub span: Span,
    /// `mode=`.
    pub mode: Option<CpuMode>,
    /// `<model>`.
    pub model: Option<(String, Span)>,
    /// `<model vendor_id=...>`: the maker's name that the guest sees.
    pub vendor_id: Option<String>,
    /// `migratable=`: features that keep a guest from moving are left out.
    pub migratable: Option<bool>,
    /// `<feature>`s, with libvirt's names.
    pub features: Vec<(String, FeaturePolicy)>,
    /// `<cache>`.
    pub cache: Option<CacheMode>,
    /// `<maxphysaddr>`.
    pub address_bits: Option<AddressBits>,
    /// `<topology>`.
    pub topology: Option<Topology>,
    /// `<numa>`.
    pub numa: Numa,
}

/// `<topology>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Dies in a socket.
    pub dies: u32,
    /// Clusters in a die.
    pub clusters: u32,
    /// Cores in a cluster.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
    /// Where it stands.
    pub span: Span,
}

/// CPUID has room for so many letters of the maker's name.
const VENDOR_ID_LEN: usize = 12;

impl Cpu {
    /// Reads `<cpu>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(cpu) = root.only_child("cpu", diagnostics) else { return Self::default() };
        comparison(cpu, diagnostics);
        let mut this = Self {
            span: cpu.span,
            mode: cpu.keyword("mode", diagnostics),
            migratable: cpu.on_off("migratable", diagnostics),
            features: features(cpu, diagnostics),
            cache: cpu.only_child("cache", diagnostics).and_then(|c| cache(c, diagnostics)),
            address_bits: cpu
                .only_child("maxphysaddr", diagnostics)
                .and_then(|m| address_bits(m, diagnostics)),
            topology: cpu
                .only_child("topology", diagnostics)
                .and_then(|t| Topology::from_xml(t, diagnostics)),
            numa: Numa::from_xml(cpu, diagnostics),
            ..Self::default()
        };
        this.read_model(cpu, diagnostics);
        if this.mode == Some(CpuMode::Custom) && this.model.is_none() {
            diagnostics.error(cpu.span, "a custom <cpu> names its <model>");
        } else if this.mode.is_none() && this.model.is_none() && !this.features.is_empty() {
            diagnostics.error(cpu.span, "a <cpu> without a <model> has no <feature>");
        }
        this.check_cache(diagnostics);
        this
    }

    /// The host's caches are those of the host's processor.
    fn check_cache(&self, diagnostics: &mut Diagnostics) {
        if self.cache == Some(CacheMode::Passthrough)
            && !matches!(self.mode, Some(CpuMode::HostPassthrough | CpuMode::Maximum))
        {
            diagnostics.error(
                self.span,
                "the host's caches are shown with <cpu mode='host-passthrough'> or 'maximum' only",
            );
        }
    }

    fn read_model(&mut self, cpu: &Element, diagnostics: &mut Diagnostics) {
        let Some(model) = cpu.only_child("model", diagnostics) else { return };
        // What to do where the host lacks the model: QEMU says so itself when it starts.
        model.keyword::<Fallback>("fallback", diagnostics);
        self.model = Some((model.text().to_owned(), model.span)).filter(|(name, _)| !name.is_empty());
        if let Some((name, span)) = &self.model
            && name.contains(|c: char| !c.is_ascii_alphanumeric() && !"-_.+".contains(c))
        {
            diagnostics.error(*span, format!("'{name}' is not the name of a CPU model"));
        }
        if let Some(vendor) = model.attribute("vendor_id") {
            if vendor.value.len() != VENDOR_ID_LEN || vendor.value.contains(',') {
                diagnostics
                    .error(vendor.span, format!("a vendor_id has {VENDOR_ID_LEN} characters, and no comma"));
            }
            self.vendor_id = Some(vendor.value.clone());
        }
    }
}

/// What is about libvirt's comparison with the host: QEMU warns of what the host does not have.
fn comparison(cpu: &Element, diagnostics: &mut Diagnostics) {
    cpu.keyword::<CpuMatch>("match", diagnostics);
    cpu.keyword::<CpuCheck>("check", diagnostics);
    // Of a description of a host's processor that became a guest's.
    if let Some(arch) =
        cpu.only_child("arch", diagnostics).filter(|a| !["x86_64", "i686"].contains(&a.text()))
    {
        diagnostics.error(arch.text_place(), format!("vmward runs x86_64 guests, not '{}'", arch.text()));
    }
    if let Some(vendor) = cpu.only_child("vendor", diagnostics) {
        vendor.text();
        diagnostics.warning(vendor.span, "vmward does not look who made the host's processor");
    }
}

fn features(cpu: &Element, diagnostics: &mut Diagnostics) -> Vec<(String, FeaturePolicy)> {
    let mut list: Vec<(String, FeaturePolicy)> = Vec::new();
    for element in cpu.children("feature") {
        let Some(name) = element.require("name", diagnostics) else { continue };
        let policy = element.keyword("policy", diagnostics).unwrap_or(FeaturePolicy::Require);
        if name.contains(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)) {
            diagnostics.error(element.span, format!("'{name}' is not the name of a CPU feature"));
        }
        if list.iter().any(|(other, _)| other == name) {
            diagnostics.error(element.span, format!("there are two <feature> with the name '{name}'"));
        }
        list.push((name.to_owned(), policy));
    }
    list
}

fn cache(element: &Element, diagnostics: &mut Diagnostics) -> Option<CacheMode> {
    let mode = element.require_keyword("mode", diagnostics)?;
    let level = element.attribute("level");
    match (mode, level.map(|l| l.value.as_str())) {
        (CacheMode::Emulate, Some("3")) | (CacheMode::Passthrough | CacheMode::Disable, None) => Some(mode),
        (CacheMode::Emulate, _) => {
            diagnostics.error(element.span, "QEMU emulates a CPU cache of level 3 only");
            None
        }
        (_, Some(_)) => {
            diagnostics.error(element.span, format!("a <cache> in mode '{}' has no level", mode.as_str()));
            None
        }
    }
}

fn address_bits(element: &Element, diagnostics: &mut Diagnostics) -> Option<AddressBits> {
    let mode = element.require_keyword("mode", diagnostics)?;
    let bits = element.number("bits", diagnostics);
    let limit = element.number("limit", diagnostics);
    match mode {
        AddressBitsMode::Emulate if limit.is_some() => {
            diagnostics.error(element.span, "'limit' of <maxphysaddr> belongs to mode='passthrough'");
        }
        AddressBitsMode::Passthrough if bits.is_some() => {
            diagnostics.error(element.span, "'bits' of <maxphysaddr> belongs to mode='emulate'");
        }
        _ => {}
    }
    Some(AddressBits { mode, bits, limit })
}

impl Topology {
    fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let mut count = |name: &str, default: Option<u32>| {
            let Some(attribute) = element.attribute(name) else {
                if default.is_none() {
                    diagnostics.error(element.span, format!("<topology> lacks the attribute '{name}'"));
                }
                return default;
            };
            let n = element.number(name, diagnostics)?;
            if n == 0 {
                diagnostics.error(attribute.span, format!("'{name}' of <topology> is at least 1"));
            }
            Some(n)
        };
        Some(Self {
            sockets: count("sockets", None)?,
            dies: count("dies", Some(1))?,
            clusters: count("clusters", Some(1))?,
            cores: count("cores", None)?,
            threads: count("threads", None)?,
            span: element.span,
        })
    }

    /// How many processors that makes.
    pub fn vcpus(&self) -> u64 {
        [self.sockets, self.dies, self.clusters, self.cores, self.threads]
            .into_iter()
            .map(u64::from)
            .fold(1, u64::saturating_mul)
    }
}
