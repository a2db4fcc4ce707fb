//! The chain of images in a `<disk>`: an overlay put on top, an image taken out. Pure.

use crate::secret::{SecretLookup, SecretRef};
use crate::supervisor::live_xml::{replace_image, set_format};
use crate::xml::Element;

/// The disk with a qcow2 image at that path on top of what it has.
pub fn with_overlay(disk: &Element, path: &str, secret: Option<&SecretRef>) -> Element {
    let mut source = Element::new("source").with("file", path);
    if let Some(secret) = secret {
        source = source.with_child(encryption(secret));
    }
    let format = disk.child("driver").and_then(|d| d.get("type")).unwrap_or("raw");
    let mut below = Element::new("backingStore")
        .with("type", disk.get("type").unwrap_or("file"))
        .with_child(Element::new("format").with("type", format));
    let take = |name: &str| disk.child(name).cloned();
    if let Some(mut image) = take("source") {
        // It may stand beside the source of a disk, but not beside that of a backing image.
        image.children.extend(take("encryption"));
        below.children.push(image);
    }
    below.children.extend(take("backingStore"));
    let mut disk = disk.clone();
    replace_image(&mut disk, vec![source, below]);
    disk.set("type", "file");
    set_format(&mut disk, "qcow2");
    disk
}

fn encryption(secret: &SecretRef) -> Element {
    let named = Element::new("secret").with("type", "passphrase");
    let named = match &secret.lookup {
        SecretLookup::Uuid(uuid) => named.with("uuid", uuid.to_string()),
        SecretLookup::Usage(usage) => named.with("usage", usage),
    };
    Element::new("encryption").with("format", "luks").with_child(named)
}

/// The disk without its image number `index`, counted from the top: what is below takes its place. `None` where there is
/// nothing below.
pub fn without(disk: &Element, index: usize) -> Option<Element> {
    let mut disk = disk.clone();
    let mut above = &mut disk;
    for _ in 1..index {
        above = above.children.iter_mut().find(|e| e.name == "backingStore")?;
    }
    if index > 0 {
        let place = above.children.iter().position(|e| e.name == "backingStore")?;
        let below = above.children[place].child("backingStore")?.clone();
        above.children[place] = below;
        return Some(disk);
    }
    let below = disk.child("backingStore")?.clone();
    disk.set("type", below.get("type")?);
    set_format(&mut disk, below.child("format")?.get("type")?);
    replace_image(&mut disk, below.children.into_iter().filter(|e| e.name != "format").collect());
    Some(disk)
}

#[cfg(test)]
mod tests {
    use crate::domain::disk::Disk;
    use crate::secret::UsageKind;
    use crate::xml::{self, Diagnostics, Span};

    use super::*;

    fn images(disk: &Element) -> Vec<(String, bool)> {
        let mut diagnostics = Diagnostics::new();
        let disk = Disk::from_xml(disk, &mut diagnostics).unwrap();
        assert!(diagnostics.is_empty(), "{}", diagnostics.render("x", ""));
        let image = |i: &crate::domain::disk::Image| {
            (i.source.local_path().unwrap().to_owned(), i.encryption.is_some())
        };
        disk.chain().map(image).collect()
    }

    #[test]
    fn overlays_come_and_go() {
        let text = "<disk type='block' device='disk'><driver name='qemu' type='raw' cache='none'/>\
             <source dev='/dev/base'/><encryption format='luks'><secret type='passphrase' usage='a'/></encryption>\
             <target dev='vda' bus='virtio'/></disk>";
        let disk = xml::parse(text, &mut Diagnostics::new()).unwrap();
        let secret = SecretRef {
            lookup: SecretLookup::Usage("own".into()),
            kind: UsageKind::Volume,
            text: true,
            span: Span::default(),
        };
        let base = ("/dev/base".to_owned(), true);
        let one = with_overlay(&disk, "/i/one", Some(&secret));
        let two = with_overlay(&one, "/i/two", None);
        let (first, second) = (("/i/one".to_owned(), true), ("/i/two".to_owned(), false));
        assert_eq!(images(&two), [second.clone(), first.clone(), base.clone()]);
        assert_eq!(images(&without(&two, 0).unwrap()), [first, base.clone()]);
        assert_eq!(images(&without(&two, 1).unwrap()), [second, base.clone()]);
        let again = without(&one, 0).unwrap();
        assert_eq!(images(&again), [base]);
        assert_eq!(
            (again.get("type"), again.child("driver").unwrap().get("cache")),
            (Some("block"), Some("none"))
        );
        assert_eq!(without(&two, 2), None);
        assert_eq!(without(&disk, 0), None);
    }
}
