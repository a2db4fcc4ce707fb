//! `<controller>`.

use crate::domain::{DeviceInfo, size};
use crate::xml::{Diagnostics, Element, Keyword, keywords};

use super::virtio::{VirtioModel, VirtioOptions};

keywords! {
    /// What a controller controls.
    pub enum ControllerType {
        /// A PCI or PCIe bus.
        Pci = "pci",
        /// A USB bus.
        Usb = "usb",
        /// IDE.
        Ide = "ide",
        /// SATA.
        Sata = "sata",
        /// SCSI.
        Scsi = "scsi",
        /// Floppy disks.
        Fdc = "fdc",
        /// Virtio consoles and channels.
        VirtioSerial = "virtio-serial",
        /// Smart card readers.
        Ccid = "ccid",
    }
}

keywords! {
    /// The `model` of a PCI controller.
    pub enum PciModel {
        /// The root of a conventional PCI machine.
        PciRoot = "pci-root",
        /// The root of a PCIe machine.
        PcieRoot = "pcie-root",
        /// A conventional bridge with 31 slots.
        PciBridge = "pci-bridge",
        /// From PCIe to conventional PCI; the older kind.
        DmiToPciBridge = "dmi-to-pci-bridge",
        /// From PCIe to conventional PCI.
        PcieToPciBridge = "pcie-to-pci-bridge",
        /// A port with one slot.
        PcieRootPort = "pcie-root-port",
        /// The upper end of a switch.
        PcieSwitchUpstreamPort = "pcie-switch-upstream-port",
        /// A port of a switch.
        PcieSwitchDownstreamPort = "pcie-switch-downstream-port",
        /// A further conventional root, with a NUMA node of its own.
        PciExpanderBus = "pci-expander-bus",
        /// A further PCIe root, with a NUMA node of its own.
        PcieExpanderBus = "pcie-expander-bus",
    }
}

impl PciModel {
    /// Whether it is the machine's own.
    pub fn is_root(self) -> bool {
        matches!(self, Self::PciRoot | Self::PcieRoot)
    }

    /// The devices of QEMU that are such a controller, the usual one first; the roots are made by the machine.
    pub fn device_names(self) -> &'static [&'static str] {
        match self {
            Self::PciRoot | Self::PcieRoot => &[],
            Self::PciBridge => &["pci-bridge"],
            Self::DmiToPciBridge => &["i82801b11-bridge"],
            Self::PcieToPciBridge => &["pcie-pci-bridge"],
            Self::PcieRootPort => &["pcie-root-port", "ioh3420"],
            Self::PcieSwitchUpstreamPort => &["x3130-upstream"],
            Self::PcieSwitchDownstreamPort => &["xio3130-downstream"],
            Self::PciExpanderBus => &["pxb"],
            Self::PcieExpanderBus => &["pxb-pcie"],
        }
    }
}

keywords! {
    /// The `model` of a USB controller.
    pub enum UsbModel {
        /// USB 1 of the PIIX3 chipset.
        Piix3Uhci = "piix3-uhci",
        /// USB 1 of the PIIX4 chipset.
        Piix4Uhci = "piix4-uhci",
        /// USB 2.
        Ehci = "ehci",
        /// USB 2 of the ICH9 chipset.
        Ich9Ehci1 = "ich9-ehci1",
        /// A USB 1 companion of the ICH9 chipset.
        Ich9Uhci1 = "ich9-uhci1",
        /// A USB 1 companion of the ICH9 chipset.
        Ich9Uhci2 = "ich9-uhci2",
        /// A USB 1 companion of the ICH9 chipset.
        Ich9Uhci3 = "ich9-uhci3",
        /// USB 1 of VIA.
        Vt82c686bUhci = "vt82c686b-uhci",
        /// USB 1, OHCI.
        PciOhci = "pci-ohci",
        /// USB 3 of NEC.
        NecXhci = "nec-xhci",
        /// USB 3.
        QemuXhci = "qemu-xhci",
        /// The guest has no USB.
        None = "none",
    }
}

impl UsbModel {
    /// Whether it is one of the parts of an ICH9 USB 2 controller, which share an index and a slot.
    pub fn is_ich9(self) -> bool {
        matches!(self, Self::Ich9Ehci1 | Self::Ich9Uhci1 | Self::Ich9Uhci2 | Self::Ich9Uhci3)
    }

    /// Whether it speaks USB 3, and its ports can be chosen in number.
    pub fn is_xhci(self) -> bool {
        matches!(self, Self::NecXhci | Self::QemuXhci)
    }
}

keywords! {
    /// The `model` of a SCSI controller.
    pub enum ScsiModel {
        /// virtio-scsi.
        VirtioScsi = "virtio-scsi",
        /// virtio-scsi, 0.9 and 1.0.
        VirtioTransitional = "virtio-transitional",
        /// virtio-scsi, 1.0 alone.
        VirtioNonTransitional = "virtio-non-transitional",
        /// LSI 53c895a.
        LsiLogic = "lsilogic",
        /// LSI SAS 1068.
        LsiSas1068 = "lsisas1068",
        /// MegaRAID SAS.
        LsiSas1078 = "lsisas1078",
        /// VMware's paravirtual SCSI.
        VmPvScsi = "vmpvscsi",
        /// AMD am53c974.
        Am53c974 = "am53c974",
        /// Tekram DC-390.
        Dc390 = "dc390",
    }
}

impl ScsiModel {
    /// Which virtio it speaks, if it is virtio-scsi.
    pub fn virtio(self) -> Option<VirtioModel> {
        match self {
            Self::VirtioScsi => Some(VirtioModel::Virtio),
            Self::VirtioTransitional => Some(VirtioModel::Transitional),
            Self::VirtioNonTransitional => Some(VirtioModel::NonTransitional),
            _ => None,
        }
    }
}

/// What a controller is, with what only its kind has. `None` as a model: as libvirt chooses for the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControllerKind {
    /// PCI.
    Pci(PciController),
    /// USB.
    Usb(UsbController),
    /// IDE.
    Ide,
    /// SATA.
    Sata,
    /// SCSI.
    Scsi(ScsiController),
    /// Floppy.
    Fdc,
    /// virtio-serial.
    VirtioSerial(VirtioSerialController),
    /// Smart card readers.
    Ccid,
}

/// What only PCI controllers have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciController {
    /// Its model.
    pub model: PciModel,
    /// The name of QEMU's device, where it is not the usual one (`ioh3420`).
    pub model_name: Option<String>,
    /// pci-bridge: its number in the guest.
    pub chassis_nr: Option<u32>,
    /// Ports: the number of the chassis.
    pub chassis: Option<u32>,
    /// Ports: the number of the port.
    pub port: Option<u64>,
    /// Expander buses: the number of the first bus.
    pub bus_nr: Option<u32>,
    /// Expander buses: their NUMA node.
    pub node: Option<u32>,
    /// Ports and bridges: whether devices can come and go.
    pub hotplug: Option<bool>,
    /// Ports and bridges: memory that the firmware keeps for devices that come later, in bytes.
    pub mem_reserve: Option<u64>,
    /// Roots: the size of the 64-bit window in KiB.
    pub hole64: Option<u64>,
}

impl PciController {
    /// A controller of a model, everything else as usual.
    pub fn new(model: PciModel) -> Self {
        Self {
            model,
            model_name: None,
            chassis_nr: None,
            chassis: None,
            port: None,
            bus_nr: None,
            node: None,
            hotplug: None,
            mem_reserve: None,
            hole64: None,
        }
    }
}

/// What only USB controllers have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsbController {
    /// Its model.
    pub model: Option<UsbModel>,
    /// xhci: the number of ports.
    pub ports: Option<u32>,
    /// ICH9 companions: the first port of the USB 2 controller that they serve.
    pub master_start_port: Option<u32>,
}

/// What only SCSI controllers have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScsiController {
    /// Its model.
    pub model: Option<ScsiModel>,
    /// The number of queues.
    pub queues: Option<u32>,
    /// Commands per LUN.
    pub cmd_per_lun: Option<u32>,
    /// Sectors per request.
    pub max_sectors: Option<u32>,
    /// Whether I/O is handled outside the virtual CPU's thread.
    pub ioeventfd: Option<bool>,
    /// The thread that handles its I/O.
    pub iothread: Option<u32>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

/// What only virtio-serial controllers have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioSerialController {
    /// Which virtio.
    pub model: VirtioModel,
    /// The number of ports, port 0 included.
    pub ports: Option<u32>,
    /// The number of interrupt vectors.
    pub vectors: Option<u32>,
    /// What all virtio devices take.
    pub virtio: VirtioOptions,
}

impl Default for VirtioSerialController {
    fn default() -> Self {
        Self { model: VirtioModel::Virtio, ports: None, vectors: None, virtio: VirtioOptions::default() }
    }
}

impl ControllerKind {
    /// Its type.
    pub fn kind(&self) -> ControllerType {
        match self {
            Self::Pci(_) => ControllerType::Pci,
            Self::Usb(_) => ControllerType::Usb,
            Self::Ide => ControllerType::Ide,
            Self::Sata => ControllerType::Sata,
            Self::Scsi(_) => ControllerType::Scsi,
            Self::Fdc => ControllerType::Fdc,
            Self::VirtioSerial(_) => ControllerType::VirtioSerial,
            Self::Ccid => ControllerType::Ccid,
        }
    }
}

/// A `<controller>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Where it is and what it is called.
    pub info: DeviceInfo,
    /// Its number among those of its type; `None` until it is assigned.
    pub index: Option<u32>,
    /// What it is.
    pub kind: ControllerKind,
}

impl Controller {
    /// A controller that nobody wrote.
    pub fn implicit(kind: ControllerKind, index: u32) -> Self {
        Self { info: DeviceInfo::default(), index: Some(index), kind }
    }

    /// Its number among those of its type.
    pub fn number(&self) -> u32 {
        self.index.unwrap_or_default()
    }

    /// Whether it is the one of that type and number.
    pub fn is(&self, kind: ControllerType, number: u32) -> bool {
        self.kind.kind() == kind && self.number() == number
    }

    /// What only a PCI controller has, if it is one.
    pub fn pci(&self) -> Option<&PciController> {
        match &self.kind {
            ControllerKind::Pci(pci) => Some(pci),
            _ => None,
        }
    }

    /// What only a USB controller has, if it is one.
    pub fn usb(&self) -> Option<&UsbController> {
        match &self.kind {
            ControllerKind::Usb(usb) => Some(usb),
            _ => None,
        }
    }

    /// What only a SCSI controller has, if it is one.
    pub fn scsi(&self) -> Option<&ScsiController> {
        match &self.kind {
            ControllerKind::Scsi(scsi) => Some(scsi),
            _ => None,
        }
    }

    /// Reads a `<controller>`.
    pub fn from_xml(element: &Element, diagnostics: &mut Diagnostics) -> Option<Self> {
        let kind: ControllerType = element.require_keyword("type", diagnostics)?;
        let index = element.number("index", diagnostics);
        let info = DeviceInfo::from_xml(element, diagnostics);
        let kind = match kind {
            ControllerType::Pci => ControllerKind::Pci(pci(element, diagnostics)?),
            ControllerType::Usb => ControllerKind::Usb(usb(element, diagnostics)?),
            ControllerType::Ide => {
                model_words(element, &["piix3", "piix4", "ich6"], diagnostics);
                ControllerKind::Ide
            }
            ControllerType::Sata => ControllerKind::Sata,
            ControllerType::Scsi => ControllerKind::Scsi(scsi(element, diagnostics)?),
            ControllerType::Fdc => ControllerKind::Fdc,
            ControllerType::VirtioSerial => ControllerKind::VirtioSerial(virtio_serial(element, diagnostics)),
            ControllerType::Ccid => ControllerKind::Ccid,
        };
        Some(Self { info, index, kind })
    }
}

/// The `model` of a controller type that has only one in QEMU: the words are libvirt's names for chipsets, and the
/// machine decides which it is.
fn model_words(element: &Element, words: &[&str], diagnostics: &mut Diagnostics) {
    let Some(model) = element.attribute("model") else { return };
    if !words.contains(&model.value.as_str()) {
        diagnostics.error(model.span, format!("'{}' is not a model of this controller", model.value));
    }
}

/// A model that has to be one of the words, as an outer failure of the whole controller.
fn model<K: Keyword>(element: &Element, diagnostics: &mut Diagnostics) -> Option<Option<K>> {
    if element.attribute("model").is_none() {
        return Some(None);
    }
    element.keyword("model", diagnostics).map(Some)
}

fn pci(element: &Element, diagnostics: &mut Diagnostics) -> Option<PciController> {
    let Some(model) = model::<PciModel>(element, diagnostics)? else {
        diagnostics
            .error(element.span, "a PCI controller needs a model")
            .hint("on q35 model='pcie-root-port', on i440fx model='pci-bridge'");
        return None;
    };
    let mut controller = PciController::new(model);
    if let Some(name) = element.only_child("model", diagnostics) {
        controller.model_name = name.require("name", diagnostics).map(str::to_owned);
        if let Some(attribute) =
            name.attribute("name").filter(|n| !model.device_names().contains(&n.value.as_str()))
        {
            diagnostics.error(
                attribute.span,
                format!("'{}' is not a device that is a {}", attribute.value, model.as_str()),
            );
        }
    }
    if let Some(target) = element.only_child("target", diagnostics) {
        check_target(model, target, diagnostics);
        controller.chassis_nr = target.number("chassisNr", diagnostics);
        controller.chassis = target.number("chassis", diagnostics);
        controller.port = target.hex_number("port", diagnostics);
        controller.bus_nr = target.number("busNr", diagnostics);
        controller.hotplug = target.on_off("hotplug", diagnostics);
        controller.mem_reserve =
            target.number::<u64>("memReserve", diagnostics).and_then(|kib| kib.checked_mul(size::KIB));
        controller.node = target.child_text("node").and_then(|n| n.parse().ok());
    }
    let hole = element.only_child("pcihole64", diagnostics);
    if let Some(hole) = hole.filter(|_| !model.is_root()) {
        diagnostics.error(hole.span, "only pci-root and pcie-root have a window for 64-bit addresses");
    }
    controller.hole64 =
        hole.and_then(|hole| size::of_element(hole, size::KIB, diagnostics)).map(|bytes| bytes / size::KIB);
    Some(controller)
}

/// What `<target>` may say of each model, and up to which number.
fn check_target(model: PciModel, target: &Element, diagnostics: &mut Diagnostics) {
    use PciModel as M;
    const PORTS: &[PciModel] = &[M::PcieRootPort, M::PcieSwitchDownstreamPort];
    const EXPANDERS: &[PciModel] = &[M::PciExpanderBus, M::PcieExpanderBus];
    const PLUGGABLE: &[PciModel] = &[M::PciRoot, M::PcieRootPort, M::PcieSwitchDownstreamPort];
    let table: [(&str, &[PciModel], u64); 5] = [
        ("chassisNr", &[M::PciBridge], 255),
        ("chassis", PORTS, 255),
        ("port", PORTS, 255),
        ("busNr", EXPANDERS, 254),
        ("hotplug", PLUGGABLE, 0),
    ];
    for (name, models, most) in table {
        let Some(attribute) = target.attributes.iter().find(|a| a.name == name) else { continue };
        if !models.contains(&model) {
            diagnostics.error(attribute.name_span, format!("a {} has no {name}", model.as_str()));
        } else if most != 0 && target.hex_number(name, diagnostics).is_some_and(|n| n > most) {
            diagnostics.error(attribute.span, format!("{name} is {most} at most"));
        }
    }
    if let Some(node) = target.child("node").filter(|_| !EXPANDERS.contains(&model)) {
        diagnostics.error(node.span, format!("a {} belongs to no NUMA node", model.as_str()));
    }
}

fn usb(element: &Element, diagnostics: &mut Diagnostics) -> Option<UsbController> {
    let model = model::<UsbModel>(element, diagnostics)?;
    let ports = element.number("ports", diagnostics);
    if let (Some(ports), Some(attribute)) = (ports, element.attribute("ports")) {
        // QEMU's xhci has as many, hw/usb/hcd-xhci.h: XHCI_MAXPORTS_2.
        const MOST_PORTS: u32 = 15;
        if !model.is_some_and(UsbModel::is_xhci) {
            diagnostics.error(attribute.name_span, "only nec-xhci and qemu-xhci take a number of ports");
        } else if !(1..=MOST_PORTS).contains(&ports) {
            diagnostics.error(attribute.span, format!("an xhci controller has 1 to {MOST_PORTS} ports"));
        }
    }
    let master_start_port =
        element.only_child("master", diagnostics).and_then(|master| master.number("startport", diagnostics));
    Some(UsbController { model, ports, master_start_port })
}

fn scsi(element: &Element, diagnostics: &mut Diagnostics) -> Option<ScsiController> {
    let model = match element.get("model") {
        // libvirt's word for "choose", from the days of VMware's drivers.
        Some("auto") => None,
        Some(name @ ("ibmvscsi" | "buslogic" | "ncr53c90")) => {
            diagnostics
                .error(
                    element.attribute("model").map_or(element.span, |m| m.span),
                    format!("QEMU has no SCSI controller '{name}' for x86_64"),
                )
                .hint("use model='virtio-scsi', or 'lsilogic' for guests without its driver");
            return None;
        }
        _ => model::<ScsiModel>(element, diagnostics)?,
    };
    let mut controller = ScsiController { model, ..ScsiController::default() };
    if let Some(driver) = element.only_child("driver", diagnostics) {
        controller.queues = driver.number("queues", diagnostics);
        controller.cmd_per_lun = driver.number("cmd_per_lun", diagnostics);
        controller.max_sectors = driver.number("max_sectors", diagnostics);
        controller.ioeventfd = driver.on_off("ioeventfd", diagnostics);
        controller.iothread = driver.number("iothread", diagnostics);
        controller.virtio = VirtioOptions::from_xml(driver, diagnostics);
        if controller.iothread.is_some() && model.is_some_and(|m| m.virtio().is_none()) {
            diagnostics.error(driver.span, "only virtio-scsi controllers take an iothread");
        }
    }
    Some(controller)
}

fn virtio_serial(element: &Element, diagnostics: &mut Diagnostics) -> VirtioSerialController {
    VirtioSerialController {
        model: element.keyword("model", diagnostics).unwrap_or(VirtioModel::Virtio),
        ports: element.number("ports", diagnostics),
        vectors: element.number("vectors", diagnostics),
        virtio: VirtioOptions::of_device(element, diagnostics),
    }
}
