//! The PCI buses of a guest: what plugs into what, and which slots are taken. The rules, limits and the order of
//! search are libvirt's (src/conf/domain_addr.c), so that a guest finds its devices where it left them.

use std::collections::HashMap;

use crate::domain::PciAddress;
use crate::domain::devices::controller::PciModel;
use crate::xml::Span;

/// What a device needs of the bus that it is plugged into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plug {
    /// A conventional PCI slot.
    Conventional,
    /// A PCIe slot; a conventional one on machines without PCIe.
    Express,
    /// As `Express`, but on the root bus.
    IntegratedExpress,
    /// A PCI controller.
    Controller(PciModel),
}

/// A set of kinds of plug, one bit each.
type Kinds = u16;
const PCI_DEVICE: Kinds = 1;
const PCIE_DEVICE: Kinds = 1 << 1;
const PCI_BRIDGE: Kinds = 1 << 2;
const PCI_EXPANDER: Kinds = 1 << 3;
const ROOT_PORT: Kinds = 1 << 4;
const DMI_TO_PCI: Kinds = 1 << 5;
const PCIE_EXPANDER: Kinds = 1 << 6;
const UPSTREAM_PORT: Kinds = 1 << 7;
const DOWNSTREAM_PORT: Kinds = 1 << 8;
const PCIE_TO_PCI: Kinds = 1 << 9;
const ENDPOINTS: Kinds = PCI_DEVICE | PCIE_DEVICE;

/// A plug on a certain machine.
#[derive(Debug, Clone, Copy)]
struct Needs {
    kinds: Kinds,
    /// Only where devices are put without being told to: not on a root complex.
    auto: bool,
    integrated: bool,
    /// Several of them share a slot, one function each.
    aggregate: bool,
    hotplug: bool,
}

impl Plug {
    fn needs(self, pcie: bool) -> Needs {
        let express = if pcie { PCIE_DEVICE } else { PCI_DEVICE };
        let kinds = match self {
            Self::Conventional => PCI_DEVICE,
            Self::Express | Self::IntegratedExpress => express,
            Self::Controller(model) => match model {
                PciModel::PciRoot | PciModel::PcieRoot => 0,
                PciModel::PciBridge => PCI_BRIDGE,
                PciModel::PciExpanderBus => PCI_EXPANDER,
                PciModel::PcieExpanderBus => PCIE_EXPANDER,
                PciModel::DmiToPciBridge => DMI_TO_PCI,
                PciModel::PcieToPciBridge => PCIE_TO_PCI,
                PciModel::PcieRootPort => ROOT_PORT,
                PciModel::PcieSwitchUpstreamPort => UPSTREAM_PORT,
                PciModel::PcieSwitchDownstreamPort => DOWNSTREAM_PORT,
            },
        };
        Needs {
            kinds,
            auto: !matches!(self, Self::Controller(_)),
            integrated: self == Self::IntegratedExpress,
            aggregate: self == Self::Controller(PciModel::PcieRootPort),
            hotplug: false,
        }
    }
}

impl Needs {
    /// What it is called in messages.
    fn word(self) -> &'static str {
        match self.kinds {
            PCI_DEVICE => "PCI devices",
            PCIE_DEVICE => "PCI Express devices",
            PCI_BRIDGE => "pci-bridge controllers",
            PCI_EXPANDER => "pci-expander-bus controllers",
            PCIE_EXPANDER => "pcie-expander-bus controllers",
            ROOT_PORT => "pcie-root-port controllers",
            DMI_TO_PCI => "dmi-to-pci-bridge controllers",
            PCIE_TO_PCI => "pcie-to-pci-bridge controllers",
            UPSTREAM_PORT => "pcie-switch-upstream-port controllers",
            _ => "pcie-switch-downstream-port controllers",
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// One bit for each function that is taken.
    functions: u8,
    aggregate: bool,
}

#[derive(Debug, Clone)]
struct Bus {
    model: PciModel,
    accepts: Kinds,
    auto: bool,
    hotplug: bool,
    first: u8,
    last: u8,
    slots: [Slot; 32],
}

impl Bus {
    fn new(model: PciModel, hotplug: bool) -> Self {
        let last = PciAddress::LAST_SLOT;
        let (accepts, auto, first, last) = match model {
            PciModel::PciRoot => (PCI_DEVICE | PCI_BRIDGE | PCI_EXPANDER, true, 1, last),
            PciModel::PciBridge | PciModel::PcieToPciBridge => (PCI_DEVICE | PCI_BRIDGE, true, 1, last),
            PciModel::PciExpanderBus => (PCI_DEVICE | PCI_BRIDGE, true, 0, last),
            PciModel::PcieRoot => (PCIE_DEVICE | ROOT_PORT | DMI_TO_PCI | PCIE_EXPANDER, false, 1, last),
            PciModel::DmiToPciBridge => (PCI_DEVICE | PCI_BRIDGE, false, 0, last),
            PciModel::PcieRootPort | PciModel::PcieSwitchDownstreamPort => {
                (PCIE_DEVICE | UPSTREAM_PORT | PCIE_TO_PCI, true, 0, 0)
            }
            PciModel::PcieSwitchUpstreamPort => (DOWNSTREAM_PORT, false, 0, last),
            PciModel::PcieExpanderBus => (ROOT_PORT | DMI_TO_PCI, false, 0, last),
        };
        let never = matches!(
            model,
            PciModel::PcieRoot
                | PciModel::DmiToPciBridge
                | PciModel::PcieSwitchUpstreamPort
                | PciModel::PcieExpanderBus
        );
        Self { model, accepts, auto, hotplug: hotplug && !never, first, last, slots: [Slot::default(); 32] }
    }

    /// Whether a device may go there: `given` is an address of the user's, which may mix PCI and PCIe.
    fn takes(&self, number: usize, needs: Needs, given: bool) -> bool {
        if needs.integrated && number != 0 {
            return false;
        }
        let (mut accepts, mut kinds) = (self.accepts, needs.kinds);
        if given {
            if accepts & ENDPOINTS != 0 {
                accepts |= ENDPOINTS;
            }
            if kinds & PCI_BRIDGE != 0 {
                kinds |= PCI_DEVICE;
            }
        } else if needs.auto && !(self.auto || needs.integrated) {
            return false;
        }
        (!needs.hotplug || self.hotplug) && accepts & kinds != 0
    }

    fn is_full(&self) -> bool {
        (self.first..=self.last).all(|s| self.slots[usize::from(s)].functions != 0)
    }

    /// The first place for a device: a slot of its own, or a free function of a shared one.
    fn free(&self, needs: Needs, function: Option<u8>) -> Option<(u8, u8)> {
        for number in self.first..=self.last {
            let slot = self.slots[usize::from(number)];
            let wanted = function.unwrap_or(0);
            if slot.functions == 0 {
                return Some((number, wanted));
            }
            if needs.aggregate && slot.aggregate {
                let free = |f: &u8| slot.functions & (1 << f) == 0;
                let found = if function.is_some() { Some(wanted).filter(free) } else { (0..8).find(free) };
                if let Some(found) = found {
                    return Some((number, found));
                }
            }
        }
        None
    }
}

/// Why a device cannot have an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// Somebody else has it.
    Taken(Option<Span>),
    /// The bus is not there, or is not for such devices; in words.
    Unfit(String),
    /// No bus has a free slot; the word says for what.
    Full(&'static str),
}

/// The buses of a guest.
#[derive(Debug)]
pub(super) struct Buses {
    buses: Vec<Bus>,
    pcie: bool,
    /// Buses are added when there is no slot left: a first pass finds out how many controllers it takes.
    growing: bool,
    holders: HashMap<(u8, u8, u8), Span>,
}

impl Buses {
    /// Buses by number, with whether devices can come and go. Those between that nobody described are what libvirt
    /// adds by default.
    pub fn new(described: &[(usize, PciModel, bool)], pcie: bool, growing: bool) -> Self {
        let count = described.iter().map(|(number, ..)| number + 1).max().unwrap_or(0);
        let default = if pcie { PciModel::PcieRootPort } else { PciModel::PciBridge };
        let mut buses = vec![Bus::new(default, true); count];
        for (number, model, hotplug) in described {
            buses[*number] = Bus::new(*model, *hotplug);
        }
        Self { buses, pcie, growing, holders: HashMap::new() }
    }

    /// The controllers' models by bus number.
    pub fn models(&self) -> impl Iterator<Item = PciModel> {
        self.buses.iter().map(|bus| bus.model)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.buses.len()
    }

    /// Whether no slot is left anywhere.
    pub fn all_full(&self) -> bool {
        self.buses.iter().all(Bus::is_full)
    }

    /// Whether any function of a slot is taken.
    pub fn slot_in_use(&self, bus: u8, slot: u8) -> bool {
        self.buses.get(usize::from(bus)).is_some_and(|b| b.slots[usize::from(slot)].functions != 0)
    }

    /// Who holds an address.
    pub fn holder(&self, address: &PciAddress) -> Option<Span> {
        self.holders.get(&(address.bus, address.slot, address.function)).copied()
    }

    /// Takes an address that was given.
    pub fn reserve(&mut self, address: &PciAddress, plug: Plug, holder: Span) -> Result<(), Refused> {
        let needs = plug.needs(self.pcie);
        self.reserve_given(address, needs, holder)
    }

    /// The same for a device that comes while the guest runs.
    pub fn reserve_hotplug(&mut self, address: &PciAddress, plug: Plug, holder: Span) -> Result<(), Refused> {
        let needs = Needs { hotplug: true, ..plug.needs(self.pcie) };
        if address.function != 0 {
            return Err(Refused::Unfit("a device that comes while the guest runs has function 0".to_owned()));
        }
        self.reserve_given(address, needs, holder)
    }

    fn reserve_given(&mut self, address: &PciAddress, needs: Needs, holder: Span) -> Result<(), Refused> {
        if address.domain != 0 {
            return Err(Refused::Unfit(format!("PCI address {address}: the guest has only PCI domain 0")));
        }
        if self.growing && usize::from(address.bus) >= self.buses.len() {
            self.grow(usize::from(address.bus), needs)?;
        }
        let Some(bus) = self.buses.get(usize::from(address.bus)) else {
            return Err(Refused::Unfit(format!(
                "PCI address {address}: there is no PCI controller with index {}",
                address.bus
            )));
        };
        if !bus.takes(usize::from(address.bus), needs, true) {
            return Err(Refused::Unfit(match needs.hotplug && !bus.hotplug {
                true => format!(
                    "PCI address {address}: devices cannot come and go on that {}",
                    bus.model.as_str()
                ),
                false => format!(
                    "PCI address {address}: a {} (index {}) takes no {}",
                    bus.model.as_str(),
                    address.bus,
                    needs.word()
                ),
            }));
        }
        if !(bus.first..=bus.last).contains(&address.slot) {
            return Err(Refused::Unfit(format!(
                "PCI address {address}: the slots of a {} are {} to {}",
                bus.model.as_str(),
                bus.first,
                bus.last
            )));
        }
        self.take(address, needs, holder)
    }

    fn take(&mut self, address: &PciAddress, needs: Needs, holder: Span) -> Result<(), Refused> {
        let slot = &mut self.buses[usize::from(address.bus)].slots[usize::from(address.slot)];
        if slot.functions & (1 << address.function) != 0 {
            return Err(Refused::Taken(self.holder(address)));
        }
        if slot.functions == 0 && needs.aggregate {
            slot.aggregate = true;
        }
        slot.functions |= 1 << address.function;
        self.holders.insert((address.bus, address.slot, address.function), holder);
        Ok(())
    }

    /// Takes the next free address.
    pub fn next(&mut self, plug: Plug, function: Option<u8>, holder: Span) -> Result<PciAddress, Refused> {
        let needs = plug.needs(self.pcie);
        self.next_for(needs, function, holder)
    }

    /// The same for a device that comes while the guest runs.
    pub fn next_hotplug(&mut self, plug: Plug, holder: Span) -> Result<PciAddress, Refused> {
        let needs = Needs { hotplug: true, ..plug.needs(self.pcie) };
        self.next_for(needs, None, holder)
    }

    fn next_for(&mut self, needs: Needs, function: Option<u8>, holder: Span) -> Result<PciAddress, Refused> {
        let found = self.buses.iter().enumerate().find_map(|(number, bus)| {
            let (slot, function) =
                bus.takes(number, needs, false).then(|| bus.free(needs, function)).flatten()?;
            Some((number, slot, function))
        });
        let (bus, slot, function) = match found {
            Some(found) => found,
            None if self.growing => {
                let bus = self.grow(self.buses.len(), needs)?;
                (bus, self.buses[bus].first, function.unwrap_or(0))
            }
            None => return Err(Refused::Full(needs.word())),
        };
        let bus = u8::try_from(bus).map_err(|_| Refused::Full(needs.word()))?;
        let address = PciAddress { bus, slot, function, ..PciAddress::default() };
        self.take(&address, needs, holder)?;
        Ok(address)
    }

    /// Adds buses up to the given one, of a kind that takes such devices; the number of the last one.
    fn grow(&mut self, up_to: usize, needs: Needs) -> Result<usize, Refused> {
        let mut up_to = up_to;
        if needs.kinds & PCI_DEVICE != 0 {
            let anywhere = self.buses.iter().any(|bus| bus.accepts & PCI_BRIDGE != 0);
            if !anywhere {
                // A machine with PCIe alone: conventional devices live behind a bridge in a root port of its own, so
                // one more bus.
                if up_to == self.buses.len() {
                    up_to += 1;
                }
                let mut port = Bus::new(PciModel::PcieRootPort, true);
                port.accepts = PCIE_TO_PCI;
                self.buses.push(port);
                self.buses.push(Bus::new(PciModel::PcieToPciBridge, true));
            }
            while self.buses.len() <= up_to {
                self.buses.push(Bus::new(PciModel::PciBridge, true));
            }
        } else if needs.kinds & (PCIE_DEVICE | UPSTREAM_PORT) != 0 {
            while self.buses.len() <= up_to {
                self.buses.push(Bus::new(PciModel::PcieRootPort, true));
            }
        } else {
            return Err(Refused::Full(needs.word()));
        }
        Ok(up_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q35() -> Buses {
        Buses::new(&[(0, PciModel::PcieRoot, true)], true, true)
    }

    fn span(start: usize) -> Span {
        Span { start, end: start + 1 }
    }

    #[test]
    fn each_express_device_gets_a_root_port() {
        let mut buses = q35();
        let found: Vec<_> = (0..3).map(|n| buses.next(Plug::Express, None, span(n)).unwrap().bus).collect();
        assert_eq!(found, [1, 2, 3]);
        assert!(buses.models().skip(1).all(|m| m == PciModel::PcieRootPort));
    }

    #[test]
    fn a_conventional_device_on_q35_gets_a_bridge_in_a_port_of_its_own() {
        let mut buses = q35();
        assert_eq!(buses.next(Plug::Conventional, None, span(0)).unwrap(), PciAddress::at(2, 1));
        assert_eq!(buses.next(Plug::Express, None, span(1)).unwrap(), PciAddress::at(3, 0));
        let models: Vec<_> = buses.models().collect();
        assert_eq!(models[1..3], [PciModel::PcieRootPort, PciModel::PcieToPciBridge]);
    }

    #[test]
    fn root_ports_share_a_slot() {
        let mut buses = q35();
        let port = Plug::Controller(PciModel::PcieRootPort);
        let places: Vec<_> = (0..9).map(|n| buses.next(port, None, span(n)).unwrap()).collect();
        assert_eq!((places[0].slot, places[0].function), (1, 0));
        assert_eq!((places[7].slot, places[7].function), (1, 7));
        assert_eq!((places[8].slot, places[8].function), (2, 0));
    }

    #[test]
    fn a_taken_address_names_its_holder() {
        let mut buses = Buses::new(&[(0, PciModel::PciRoot, true)], false, false);
        let address = PciAddress::at(0, 5);
        buses.reserve(&address, Plug::Conventional, span(10)).unwrap();
        assert_eq!(
            buses.reserve(&address, Plug::Conventional, span(20)),
            Err(Refused::Taken(Some(span(10))))
        );
    }

    #[test]
    fn a_full_bus_is_refused_once_it_does_not_grow() {
        let mut buses = Buses::new(&[(0, PciModel::PciRoot, true)], false, false);
        for n in 0..31 {
            buses.next(Plug::Conventional, None, span(n)).unwrap();
        }
        assert_eq!(buses.next(Plug::Express, None, span(99)), Err(Refused::Full("PCI devices")));
        assert!(buses.all_full());
    }

    #[test]
    fn addresses_have_to_fit_their_bus() {
        let mut buses =
            Buses::new(&[(0, PciModel::PcieRoot, true), (1, PciModel::PcieRootPort, true)], true, false);
        for wrong in [
            PciAddress::at(1, 3),
            PciAddress::at(7, 0),
            PciAddress { domain: 1, ..PciAddress::at(1, 0) },
            PciAddress::at(0, 0),
        ] {
            assert!(
                matches!(buses.reserve(&wrong, Plug::Express, span(0)), Err(Refused::Unfit(_))),
                "{wrong}"
            );
        }
        // A user may put a PCIe device on the root complex, vmward would not.
        buses.reserve(&PciAddress::at(0, 3), Plug::Express, span(0)).unwrap();
        assert_eq!(buses.next(Plug::Express, None, span(1)).unwrap(), PciAddress::at(1, 0));
    }
}
