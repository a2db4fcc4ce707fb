//! `<cpu>`: the processor that the guest sees.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

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

/// `<cpu>`.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Where it stands.
    pub span: Span,
    /// `mode=`.
    pub mode: Option<CpuMode>,
    /// `<model>`.
    pub model: Option<(String, Span)>,
    /// `<topology>`.
    pub topology: Option<Topology>,
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

impl Cpu {
    /// Reads `<cpu>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Self {
        let Some(cpu) = root.only_child("cpu", diagnostics) else { return Self::default() };
        let model = cpu.only_child("model", diagnostics).and_then(|m| {
            // What to do where the host lacks the model: QEMU says so itself when it starts.
            m.attribute("fallback");
            Some((m.text().to_owned(), m.span)).filter(|(name, _)| !name.is_empty())
        });
        // vmward asks QEMU to enforce nothing: both only matter to libvirt's own check of the host.
        cpu.attribute("match");
        cpu.attribute("check");
        Self {
            span: cpu.span,
            mode: cpu.keyword("mode", diagnostics),
            model,
            topology: cpu
                .only_child("topology", diagnostics)
                .and_then(|t| Topology::from_xml(t, diagnostics)),
        }
    }
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
                diagnostics
                    .error(attribute.span, format!("there is at least one of the '{name}' in a <topology>"));
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
