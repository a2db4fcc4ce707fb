//! The LUKS header and the key slots of an image, changed in place: each step is on disk before the next one begins,
//! and after each of them the image opens.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rand::Rng;

use crate::luks::{DIGEST_FIELDS, LUKS1_HEADER_LEN, Luks1Header, LuksHeader, ReadAt, UnlockError, VolumeKey};
use crate::secret::{SecretValue, os_random, wiping_stack};

use super::rbd::Held;
use super::{Image, ImageEncryption, ImageFormat, SlotId, Step, Steps, VolumeError};

/// Where a copy of the header is kept while the digest is changed: behind the header and before the first slot's material,
/// which QEMU and cryptsetup put at 4096.
const COPY_AT: u64 = 2048;
/// What the kernel writes to a file at once.
const PAGE: u64 = 4096;

/// The keys of an image that is open, to be read or to be changed.
pub struct KeyArea {
    file: File,
    path: PathBuf,
    /// Where the header begins in the file.
    start: u64,
    header: Luks1Header,
    /// What the file is a copy of, if it is not the image itself.
    origin: Option<Held>,
    /// Found by the first passphrase that opened a slot.
    key: Option<VolumeKey>,
}

/// A header within a file.
struct Container<'a> {
    file: &'a File,
    start: u64,
}

impl ReadAt for Container<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let at = self.start.checked_add(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
        FileExt::read_exact_at(self.file, buffer, at)
    }
}

impl KeyArea {
    /// The keys of an image, if they are LUKS1 and nothing about them is unusual. Only what a write lock or the image's
    /// own QEMU protects may be changed.
    pub fn of(file: File, path: &Path) -> Result<Self, VolumeError> {
        let image = Image::read(&file, path)?;
        let header = match image.encryption {
            Some(ImageEncryption::Luks1(header)) => *header,
            Some(ImageEncryption::Luks2(_)) => return Err(VolumeError::Luks2(path.into())),
            Some(ImageEncryption::QcowAes) => return Err(VolumeError::QcowAes(path.into())),
            None => return Err(VolumeError::NotEncrypted(path.into())),
        };
        let (start, _) = image.key_area.unwrap_or_default();
        let no_data = header.payload_offset == 0 || header.payload_offset >= image.file_size;
        if image.format == ImageFormat::Raw && no_data {
            return Err(VolumeError::Detached(path.into()));
        }
        let unlock = |source| VolumeError::Unlock { path: path.into(), source };
        header.suite().map_err(unlock)?;
        // The kernel writes whole pages: none of them may have data in it that a guest is writing.
        let ends = header.slots.iter().map(|slot| header.material(slot).end);
        if ends.max().unwrap_or_default().next_multiple_of(PAGE) > header.payload_offset {
            return Err(unlock(UnlockError::Unusual("a key slot is not apart from the data")));
        }
        Ok(Self { file, path: path.into(), start, header, origin: None, key: None })
    }

    /// The keys of an image of a cluster.
    pub(super) fn of_held(held: Held, path: &Path) -> Result<Self, VolumeError> {
        let file = held.mirror().try_clone().map_err(VolumeError::io(path, "read"))?;
        Ok(Self { origin: Some(held), ..Self::of(file, path)? })
    }

    /// The slots that a passphrase opens.
    pub fn opened_by(&mut self, passphrase: &SecretValue) -> Result<Vec<SlotId>, VolumeError> {
        let mut opened = self.try_slots(passphrase)?;
        if opened.is_empty() && self.take_header_back(passphrase)? {
            opened = self.try_slots(passphrase)?;
        }
        Ok(opened)
    }

    fn try_slots(&mut self, passphrase: &SecretValue) -> Result<Vec<SlotId>, VolumeError> {
        let active: Vec<usize> = self.header.active_slots().map(|(n, _)| n).collect();
        let mut opened = Vec::new();
        for n in active {
            if let Some(key) = self.unlock(&self.header, n, passphrase)? {
                self.key = Some(key);
                opened.extend(SlotId::of(&self.header, n));
            }
        }
        Ok(opened)
    }

    /// The slots that are in use.
    pub fn active(&self) -> Vec<SlotId> {
        self.header.active_slots().filter_map(|(n, _)| SlotId::of(&self.header, n)).collect()
    }

    /// How many slots are free.
    pub fn free(&self) -> usize {
        self.header.slots.iter().filter(|slot| !slot.active).count()
    }

    /// The header as it is now.
    pub fn header(&self) -> &Luks1Header {
        &self.header
    }

    /// Gives a passphrase the first free slot, and proves from the disk that it opens it. A passphrase of the image was
    /// tried before, and opened it.
    pub fn add(
        &mut self,
        passphrase: &SecretValue,
        iterations: u32,
        steps: &mut Steps<'_>,
    ) -> Result<SlotId, VolumeError> {
        let free = (0..self.header.slots.len()).find(|n| !self.header.slots[*n].active);
        let n = free.ok_or_else(|| VolumeError::SlotsFull(self.path.clone()))?;
        let key = self.key.take().ok_or_else(|| self.wrong())?;
        let mut header = self.header.clone();
        let threads = threads();
        let material =
            wiping_stack(|| header.fill_slot(n, &key, passphrase, iterations, threads, &mut os_random()));
        self.key = Some(key);
        let material = material.map_err(|e| self.unlocking(e))?;
        steps(Step::WriteMaterial);
        self.write(material.expose(), self.header.material(&header.slots[n]).start)?;
        steps(Step::ActivateSlot);
        self.write_entry(&header, n)?;
        steps(Step::Prove);
        self.reread()?;
        match self.unlock(&self.header, n, passphrase)? {
            Some(_) => SlotId::of(&self.header, n).ok_or_else(|| VolumeError::Unproven(self.path.clone())),
            None => Err(VolumeError::Unproven(self.path.clone())),
        }
    }

    /// Takes slots out of use and overwrites their key material. Those that are other slots by now stay, and so does the
    /// last one.
    pub fn remove(&mut self, slots: &[SlotId], steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        let slots = slots.iter().filter(|slot| slot.is_in(&self.header)).map(|slot| slot.number);
        for n in slots.collect::<Vec<_>>() {
            if self.header.active_slots().count() < 2 {
                return Err(VolumeError::Unproven(self.path.clone()));
            }
            let mut header = self.header.clone();
            header.slots[n].active = false;
            steps(Step::DeactivateSlot);
            self.write_field(&header, active_flag(n))?;
            self.header = header;
            steps(Step::OverwriteMaterial);
            self.overwrite(n)?;
        }
        Ok(())
    }

    /// Overwrites the key material of all slots that are not in use: somebody may have stopped halfway.
    pub fn overwrite_unused(&mut self) -> Result<(), VolumeError> {
        for n in 0..self.header.slots.len() {
            // The iterations go after the material: a slot without any has been overwritten, or was never used.
            if !self.header.slots[n].active && self.header.slots[n].iterations != 0 {
                self.overwrite(n)?;
            }
        }
        Ok(())
    }

    /// Puts a passphrase that opens a slot into slot 0, which QEMU tries first; what is there goes behind it. Then the
    /// digest of the volume key, which QEMU computes at each try, is made cheap.
    pub fn make_quick(&mut self, passphrase: &SecretValue, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        let opened = self.opened_by(passphrase)?;
        let Some(own) = opened.first() else { return Err(self.wrong()) };
        if own.number != 0 {
            if self.header.slots[0].active {
                self.move_behind(own.number, steps)?;
            }
            let iterations = self.header.slots[own.number].iterations;
            self.add(passphrase, iterations, steps)?;
        }
        let behind: Vec<SlotId> = opened.into_iter().filter(|slot| slot.number != 0).collect();
        self.remove(&behind, steps)?;
        self.cheapen_digest(passphrase, steps)
    }

    /// Copies slot 0 as it is into another one, and frees it. The material of a slot is the same wherever it is.
    fn move_behind(&mut self, own: usize, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        let first = self.header.slots[0];
        let slots = self.header.slots.iter();
        // Somebody may have stopped halfway: then it is there already.
        let copied = slots.skip(1).any(|slot| slot.active && slot.salt == first.salt);
        if !copied {
            let free = (1..self.header.slots.len()).find(|n| !self.header.slots[*n].active && *n != own);
            let n = free.ok_or_else(|| VolumeError::SlotsFull(self.path.clone()))?;
            let from = self.header.material(&first);
            let len = usize::try_from(from.end - from.start).unwrap_or_default();
            let mut material =
                SecretValue::zeroed(len).map_err(|e| self.unlocking(UnlockError::Memory(e)))?;
            self.container()
                .read_exact_at(material.expose_mut(), from.start)
                .map_err(VolumeError::io(&self.path, "read"))?;
            let mut header = self.header.clone();
            let there = header.slots[n].material_offset;
            header.slots[n] = first;
            header.slots[n].material_offset = there;
            steps(Step::WriteMaterial);
            self.write(material.expose(), there)?;
            steps(Step::ActivateSlot);
            self.write_entry(&header, n)?;
            self.header = header;
        }
        let id = SlotId::of(&self.header, 0);
        self.remove(id.as_slice(), steps)
    }

    /// The copy of the header stays until the new one has proven that it opens.
    fn cheapen_digest(&mut self, passphrase: &SecretValue, steps: &mut Steps<'_>) -> Result<(), VolumeError> {
        let first = self.header.slots.iter().map(|slot| slot.material_offset).min().unwrap_or_default();
        if COPY_AT + LUKS1_HEADER_LEN as u64 > first {
            // No room for the copy, no change without it. Only the time that it takes is lost.
            return Ok(());
        }
        let key = self.key.take().ok_or_else(|| self.wrong())?;
        let mut header = self.header.clone();
        let cheapened = header.cheapen_digest(&key, &mut os_random());
        self.key = Some(key);
        cheapened.map_err(|e| self.unlocking(e))?;
        steps(Step::KeepHeader);
        self.write(&self.header.encode(), COPY_AT)?;
        steps(Step::WriteDigest);
        self.write_field(&header, DIGEST_FIELDS)?;
        steps(Step::Prove);
        self.reread()?;
        if self.try_slots(passphrase)?.is_empty() && !self.take_header_back(passphrase)? {
            return Err(VolumeError::Unproven(self.path.clone()));
        }
        steps(Step::DropHeader);
        self.write(&[0; LUKS1_HEADER_LEN], COPY_AT)
    }

    /// Puts the digest of the header's copy back, if there is a copy and a passphrase opens it.
    fn take_header_back(&mut self, passphrase: &SecretValue) -> Result<bool, VolumeError> {
        let mut bytes = [0; LUKS1_HEADER_LEN];
        // An image that ends before has no copy.
        if self.container().read_exact_at(&mut bytes, COPY_AT).is_err() {
            return Ok(false);
        }
        let Ok(LuksHeader::V1(copy)) = LuksHeader::parse(&bytes) else { return Ok(false) };
        // The slots may have changed since it was made; its digest is that of the same volume key.
        let mut header = self.header.clone();
        (header.digest, header.digest_salt) = (copy.digest, copy.digest_salt);
        header.digest_iterations = copy.digest_iterations;
        for n in 0..header.slots.len() {
            if self.unlock(&header, n, passphrase)?.is_some() {
                self.write_field(&header, DIGEST_FIELDS)?;
                self.header = header;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn unlock(
        &self,
        header: &Luks1Header,
        n: usize,
        passphrase: &SecretValue,
    ) -> Result<Option<VolumeKey>, VolumeError> {
        let threads = threads();
        wiping_stack(|| header.unlock_slot(n, &self.container(), passphrase, threads))
            .map_err(|e| self.unlocking(e))
    }

    fn container(&self) -> Container<'_> {
        Container { file: &self.file, start: self.start }
    }

    /// What is on the disk, past what the kernel remembers where it can be told to forget.
    pub fn reread(&mut self) -> Result<(), VolumeError> {
        if let Some(held) = &self.origin {
            held.get()?;
        }
        let len = i64::try_from(self.header.payload_offset).unwrap_or_default();
        let start = i64::try_from(self.start).unwrap_or_default();
        let _ = posix_fadvise(&self.file, start, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let mut bytes = [0; LUKS1_HEADER_LEN];
        self.container().read_exact_at(&mut bytes, 0).map_err(VolumeError::io(&self.path, "read"))?;
        match LuksHeader::parse(&bytes) {
            Ok(LuksHeader::V1(header)) => {
                header.suite().map_err(|e| self.unlocking(e))?;
                self.header = *header;
                Ok(())
            }
            Ok(LuksHeader::V2(_)) => Err(VolumeError::Luks2(self.path.clone())),
            Err(source) => Err(VolumeError::Luks { path: self.path.clone(), source }),
        }
    }

    /// What belongs to a slot in the header: all else first, then that it is active, which is within one sector.
    fn write_entry(&self, header: &Luks1Header, n: usize) -> Result<(), VolumeError> {
        let entry = Luks1Header::slot_entry(n);
        self.write_field(header, active_flag(n).end..entry.end)?;
        self.write_field(header, active_flag(n))
    }

    fn write_field(&self, header: &Luks1Header, field: std::ops::Range<usize>) -> Result<(), VolumeError> {
        self.write(&header.encode()[field.clone()], field.start as u64)
    }

    /// Random bytes: unlike zeros, no file system or device makes a hole of them and keeps the old blocks. The slot's
    /// iterations say that it is done.
    fn overwrite(&mut self, n: usize) -> Result<(), VolumeError> {
        let area = self.header.material(&self.header.slots[n]);
        let mut bytes = vec![0; usize::try_from(area.end - area.start).unwrap_or_default()];
        os_random().fill_bytes(&mut bytes);
        self.write(&bytes, area.start)?;
        let mut header = self.header.clone();
        (header.slots[n].iterations, header.slots[n].salt) = (0, Default::default());
        self.write_entry(&header, n)?;
        self.header = header;
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), VolumeError> {
        self.file
            .write_all_at(bytes, self.start.saturating_add(at))
            .and_then(|()| self.file.sync_data())
            .map_err(VolumeError::io(&self.path, "written"))?;
        match &self.origin {
            Some(held) => held.put(at..at + bytes.len() as u64),
            None => Ok(()),
        }
    }

    fn wrong(&self) -> VolumeError {
        self.unlocking(UnlockError::WrongPassphrase)
    }

    fn unlocking(&self, source: UnlockError) -> VolumeError {
        VolumeError::Unlock { path: self.path.clone(), source }
    }
}

/// The first four bytes of a slot's entry.
fn active_flag(n: usize) -> std::ops::Range<usize> {
    let at = Luks1Header::slot_entry(n).start;
    at..at + size_of::<u32>()
}

fn threads() -> usize {
    available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// A container of 16 KiB in which nothing is to be found, with 16-byte keys and its data behind 600 KiB.
    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 616 << 10];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, b"LUKS\xba\xbe\x00\x01aes");
        put(40, b"cbc-plain64");
        put(72, b"sha256");
        put(104, &1200u32.to_be_bytes());
        put(108, &16u32.to_be_bytes());
        put(164, &1u32.to_be_bytes());
        for n in 0..8 {
            let at = Luks1Header::slot_entry(n).start;
            put(at, &if n == 0 { 0x00AC_71F3u32 } else { 0xDEAD }.to_be_bytes());
            put(at + 4, &1u32.to_be_bytes());
            put(at + 40, &(8 + 128 * n as u32).to_be_bytes());
            put(at + 44, &4000u32.to_be_bytes());
        }
        bytes
    }

    fn area(bytes: &[u8]) -> Result<KeyArea, VolumeError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        KeyArea::of(file, Path::new("image"))
    }

    #[test]
    fn nothing_opens_what_nobody_has_the_key_to() {
        let mut area = area(&sample()).unwrap();
        let value = SecretValue::copy_of(b"x").unwrap();
        assert!(area.opened_by(&value).unwrap().is_empty());
        assert_eq!((area.free(), area.active().len()), (7, 1));
        let before = area.header().clone();
        assert!(matches!(area.add(&value, 1, &mut |_| {}), Err(VolumeError::Unlock { .. })));
        // The last one stays, whoever asks.
        let all = area.active();
        assert!(matches!(area.remove(&all, &mut |_| {}), Err(VolumeError::Unproven(_))));
        area.reread().unwrap();
        assert_eq!(*area.header(), before);
    }

    #[test]
    fn what_shares_a_page_with_the_data_is_not_changed() {
        let mut bytes = sample();
        // The last slot ends with sector 1029, its page with 1032.
        bytes[104..108].copy_from_slice(&1030u32.to_be_bytes());
        assert!(matches!(area(&bytes), Err(VolumeError::Unlock { source: UnlockError::Unusual(_), .. })));
        bytes[104..108].copy_from_slice(&1032u32.to_be_bytes());
        assert!(area(&bytes).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_damage_makes_it_panic(
            changes in proptest::collection::vec((0..LUKS1_HEADER_LEN, any::<u8>()), 0..6),
            len in prop_oneof![Just(616usize << 10), 0usize..700],
        ) {
            let mut bytes = sample();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if let Ok(mut area) = area(&bytes[..len]) {
                let (free, active) = (area.free(), area.active());
                prop_assert_eq!(free + active.len(), 8);
                let _ = area.remove(&active, &mut |_| {});
                let _ = area.overwrite_unused();
                prop_assert!(area.reread().is_ok());
                prop_assert!(area.active().len() <= 1);
            }
        }
    }
}
