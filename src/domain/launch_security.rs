//! `<launchSecurity>`: a guest whose memory the host cannot read.

use crate::keywords;
use crate::xml::{Diagnostics, Element, Span};

keywords! {
    /// How the guest's memory is protected.
    pub enum Protection {
        /// AMD's Secure Encrypted Virtualization.
        Sev = "sev",
        /// The same with integrity.
        SevSnp = "sev-snp",
    }
}

/// The bit of SEV's policy that protects the guest's registers as well.
const POLICY_ES: u64 = 1 << 2;

/// `<launchSecurity>`.
#[derive(Debug, Clone)]
pub struct LaunchSecurity {
    /// How memory is protected.
    pub protection: Protection,
    /// What the guest's owner allows.
    pub policy: u64,
    /// `<cbitpos>`: the bit of addresses that says encrypted; `None`: the host's.
    pub c_bit: Option<u32>,
    /// `<reducedPhysBits>`: how many bits of addresses encryption takes; `None`: the host's.
    pub reduced_bits: Option<u32>,
    /// `kernelHashes=`: kernel, initrd and command line are measured.
    pub kernel_hashes: Option<bool>,
    /// SEV: `<dhCert>`, in base64.
    pub certificate: Option<String>,
    /// SEV: `<session>`, in base64.
    pub session: Option<String>,
    /// SEV-SNP: `authorKey=`.
    pub author_key: Option<bool>,
    /// SEV-SNP: `vcek=`: the processor's own key may be used.
    pub vcek: Option<bool>,
    /// SEV-SNP: `<guestVisibleWorkarounds>`, `<idBlock>`, `<idAuth>`, `<hostData>` with QEMU's names.
    pub blobs: Vec<(&'static str, String)>,
    /// Where it stands.
    pub span: Span,
}

impl LaunchSecurity {
    /// Reads `<launchSecurity>`.
    pub fn from_xml(root: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let element = root.only_child("launchSecurity", diagnostics)?;
        let protection = element.require_keyword("type", diagnostics)?;
        let mut this = Self {
            protection,
            policy: policy(element, diagnostics).unwrap_or_default(),
            c_bit: bits(element, "cbitpos", diagnostics),
            reduced_bits: bits(element, "reducedPhysBits", diagnostics),
            kernel_hashes: element.yes_no("kernelHashes", diagnostics),
            certificate: None,
            session: None,
            author_key: None,
            vcek: None,
            blobs: Vec::new(),
            span: element.span,
        };
        match protection {
            Protection::Sev => {
                // Of a running guest: how the firmware calls it.
                element.child_text("handle");
                this.certificate = element.child_text("dhCert").map(str::to_owned);
                this.session = element.child_text("session").map(str::to_owned);
            }
            Protection::SevSnp => {
                this.author_key = element.yes_no("authorKey", diagnostics);
                this.vcek = element.yes_no("vcek", diagnostics);
                for (name, property) in [
                    ("guestVisibleWorkarounds", "guest-visible-workarounds"),
                    ("idBlock", "id-block"),
                    ("idAuth", "id-auth"),
                    ("hostData", "host-data"),
                ] {
                    this.blobs.extend(element.child_text(name).map(|text| (property, text.to_owned())));
                }
            }
        }
        Some(this)
    }

    /// The features that a firmware needs, in the words of QEMU's descriptors.
    pub fn firmware_features(&self) -> &'static [&'static str] {
        match self.protection {
            Protection::Sev if self.policy & POLICY_ES != 0 => &["amd-sev", "amd-sev-es"],
            Protection::Sev => &["amd-sev"],
            Protection::SevSnp => &["amd-sev-snp"],
        }
    }
}

fn policy(element: &Element, diagnostics: &mut Diagnostics) -> Option<u64> {
    let Some(policy) = element.only_child("policy", diagnostics) else {
        diagnostics.error(element.span, "<launchSecurity> has a <policy>");
        return None;
    };
    let text = policy.text();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    if number.is_err() {
        diagnostics.error(policy.text_place(), format!("'{text}' is not a number in decimal or after 0x"));
    }
    number.ok()
}

fn bits(element: &Element, name: &str, diagnostics: &mut Diagnostics) -> Option<u32> {
    let child = element.only_child(name, diagnostics)?;
    let number = child.text().parse().ok().filter(|n| *n < u64::BITS);
    if number.is_none() {
        diagnostics.error(child.text_place(), format!("'{}' is not a number of bits", child.text()));
    }
    number
}
