//! What the guest's XML says of its snapshots.

use crate::xml::Element;

/// The names of the elements, in a namespace of their own: `<metadata>` is for any program.
const SNAPSHOTS: &str = "vmward:snapshots";
const SNAPSHOT: &str = "vmward:snapshot";
const DISK: &str = "vmward:disk";
const NAMESPACE: (&str, &str) = ("xmlns:vmward", "urn:vmward:snapshots");

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Its disks.
    pub disks: Vec<SnapshotDisk>,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotDisk {
    /// Its target.
    pub target: String,
    /// The path of the image with what was written since.
    pub overlay: String,
}

/// The snapshots of a domain, the oldest first. What is none is left out.
pub fn read(domain: &Element) -> Vec<Snapshot> {
    let list = domain.child("metadata").and_then(|m| m.child(SNAPSHOTS));
    let elements = list.into_iter().flat_map(|list| list.children(SNAPSHOT));
    let snapshots = elements.filter_map(|element| {
        let disk = |e: &Element| {
            Some(SnapshotDisk { target: e.get("target")?.to_owned(), overlay: e.get("overlay")?.to_owned() })
        };
        Some(Snapshot {
            name: element.get("name")?.to_owned(),
            created: element.get("created")?.parse().ok()?,
            disks: element.children(DISK).filter_map(disk).collect(),
        })
    });
    snapshots.collect()
}

/// Puts them into a domain, in the place of those that are there.
pub fn write(domain: &mut Element, snapshots: &[Snapshot]) {
    let place = match domain.children.iter().position(|e| e.name == "metadata") {
        Some(place) => place,
        None => {
            domain.children.push(Element::new("metadata"));
            domain.children.len() - 1
        }
    };
    let metadata = &mut domain.children[place];
    metadata.children.retain(|e| e.name != SNAPSHOTS);
    if !snapshots.is_empty() {
        let list = Element::new(SNAPSHOTS).with(NAMESPACE.0, NAMESPACE.1);
        metadata.children.push(snapshots.iter().map(element).fold(list, Element::with_child));
    } else if metadata.children.is_empty() {
        domain.children.remove(place);
    }
}

fn element(snapshot: &Snapshot) -> Element {
    let element =
        Element::new(SNAPSHOT).with("name", &snapshot.name).with("created", snapshot.created.to_string());
    let disk = |d: &SnapshotDisk| Element::new(DISK).with("target", &d.target).with("overlay", &d.overlay);
    snapshot.disks.iter().map(disk).fold(element, Element::with_child)
}

#[cfg(test)]
mod tests {
    use crate::xml::{self, Diagnostics};

    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let text = "<domain><metadata><x:y xmlns:x='u'/></metadata></domain>";
        let mut domain = xml::parse(text, &mut Diagnostics::new()).unwrap();
        let before = domain.to_string();
        assert!(read(&domain).is_empty());
        let disk =
            |target: &str| SnapshotDisk { target: target.into(), overlay: format!("/i/{target}'<.s1") };
        let first = Snapshot { name: "s1".into(), created: 5, disks: vec![disk("vda"), disk("vdb")] };
        let second = Snapshot { name: "s2".into(), ..first.clone() };
        write(&mut domain, std::slice::from_ref(&first));
        write(&mut domain, &[first.clone(), second.clone()]);
        let again = xml::parse(&domain.to_string(), &mut Diagnostics::new()).unwrap();
        assert_eq!(read(&again), [first, second]);
        write(&mut domain, &[]);
        assert_eq!(domain.to_string(), before);
    }
}
