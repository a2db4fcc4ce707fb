//! `vmward volume rekey` cut off: at every step, at random moments, and by a keystore that is gone midway. Whatever the
//! keystore has then opens the volume, and the next run completes what there was.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod images;
mod user;

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use images::{Images, add_key, opens};
use vmward::keystore::file::IdentitySources;
use vmward::keystore::{Keystores, StoreOptions};
use vmward::secret::{SecretLookup, SecretValue};
use vmward::volume::{AtRest, Kdf, Rekeyed, Step, VolumeError, rekey};

/// Where [`the_run_that_is_cut_off`] finds what it is to do.
const ENVIRONMENT: &str = "VMWARD_TEST_REKEY";

fn keystores(home: &Path) -> Keystores {
    let identity = IdentitySources { credentials: None, key_file: home.join("keystore.key") };
    let store = format!("file:{}", home.join("secrets").display());
    Keystores::open(&[store], &StoreOptions::new(identity)).unwrap()
}

fn run(home: &Path, path: &Path, steps: &mut dyn FnMut(Step)) -> Result<Rekeyed, VolumeError> {
    let keystores = keystores(home);
    let usage = SecretLookup::Usage(path.to_str().unwrap().to_owned());
    let secret = keystores.find(&usage, None).unwrap();
    let mut slots = AtRest::open(&keystores, path, Kdf::Auto, true)?;
    rekey(&keystores, &secret, None, &mut slots, steps)
}

/// No test by itself: a process of its own that ends itself where the environment says.
#[test]
fn the_run_that_is_cut_off() {
    let Some(told) = env::var_os(ENVIRONMENT) else {
        println!("skipped: it is another test's process");
        return;
    };
    let told = told.into_string().unwrap();
    let (last, rest) = told.split_once(' ').unwrap();
    let (home, path) = rest.split_once(' ').unwrap();
    let mut left: usize = last.parse().unwrap();
    let mut steps = |_| {
        if left == 0 {
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
        left -= 1;
    };
    run(Path::new(home), Path::new(path), &mut steps).unwrap();
}

/// A volume and its secret, which can be put back to how they were.
struct Volume<'a> {
    images: &'a Images,
    format: &'static str,
    path: String,
    content: Vec<u8>,
    value: String,
    /// Another passphrase, which is nobody's business.
    other: Option<&'static str>,
}

impl<'a> Volume<'a> {
    fn new(images: &'a Images, format: &'static str, other: Option<&'static str>) -> Self {
        let path = images.create(format, format);
        if let Some(other) = other {
            // In front of the volume's own key, which has slot 1 then.
            images.user.ok(&["volume", "rekey", &path], b"");
            add_key(&path, format, &images.value(&path), 0, other);
        }
        let (content, value) = (fs::read(&path).unwrap(), images.value(&path));
        Self { images, format, path, content, value, other }
    }

    fn put_back(&self) {
        fs::write(&self.path, &self.content).unwrap();
        self.images.user.ok(&["secret", "set-value", &self.path], self.value.as_bytes());
    }

    /// What the keystore has opens it, whatever has happened.
    fn check(&self, when: &str) {
        for value in [Some(self.images.value(&self.path).as_str()), self.other].into_iter().flatten() {
            assert_eq!(opens(&self.path, self.format, value), Ok(()), "{when}");
        }
    }

    /// The next run completes what there was.
    fn complete(&self, options: &[&str], when: &str) {
        let args = [&["volume", "rekey", &self.path], options].concat();
        self.images.user.ok(&args, b"");
        self.check(when);
        assert!(opens(&self.path, self.format, &self.value).is_err(), "{when}: the old value opens it");
        assert_eq!(self.images.secrets().len(), 1, "{when}");
        let info = self.images.user.ok(&["volume", "info", &self.path, "--json"], b"");
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        let slots = info["encryption"]["slots"].as_array().unwrap();
        let active = slots.iter().filter(|slot| slot["active"] == true).count();
        assert_eq!(active, 1 + usize::from(self.other.is_some()), "{when}: {slots:?}");
    }
}

fn killed_at_each_step(format: &'static str, other: Option<&'static str>) {
    let Some(images) = Images::new() else { return };
    let volume = Volume::new(&images, format, other);
    let home = images.user.home.path();
    let mut all = Vec::new();
    run(home, Path::new(&volume.path), &mut |step| all.push(step)).unwrap();
    for step in Step::ALL {
        assert!(all.contains(&step), "{step:?} was not taken: {all:?}");
    }
    for (n, step) in all.iter().enumerate() {
        volume.put_back();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "the_run_that_is_cut_off", "--nocapture"])
            .env(ENVIRONMENT, format!("{n} {} {}", home.display(), volume.path))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{n} {step:?}: {said}");
        let when = format!("killed before step {n}, {step:?}");
        volume.check(&when);
        volume.complete(&["--machine-key"], &when);
    }
}

#[test]
fn killed_at_each_step_a_raw_volume_opens() {
    killed_at_each_step("raw", None);
}

#[test]
fn killed_at_each_step_a_qcow2_volume_with_another_key_in_front_opens() {
    killed_at_each_step("qcow2", Some("somebody's own key"));
}

#[test]
fn killed_at_fifty_random_moments_fifty_volumes_open() {
    let Some(images) = Images::new() else { return };
    let volumes = ["raw", "qcow2"].map(|format| Volume::new(&images, format, None));
    // How long it takes here and now.
    let start = Instant::now();
    images.user.ok(&["volume", "rekey", &volumes[0].path], b"");
    let whole = start.elapsed();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut midway = 0;
    for n in 0..50 {
        let volume = &volumes[n % 2];
        let other = &volumes[(n + 1) % 2];
        volume.put_back();
        // So that there are no secrets but these two.
        let before = images.secrets().len();
        assert_eq!(before, 2, "{} was left behind", other.path);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = whole.mul_f64((random >> 40) as f64 / (1u64 << 24) as f64);
        let options: &[&str] = if n % 3 == 0 { &["--machine-key"] } else { &[] };
        let mut child = images.user.start(&[&["volume", "rekey", &volume.path], options].concat(), b"");
        sleep(moment);
        let _ = child.kill();
        child.wait().unwrap();
        let when = format!("round {n}, killed after {moment:?} of {whole:?}");
        midway += usize::from(images.secrets().len() > before);
        let value = images.value(&volume.path);
        assert_eq!(opens(&volume.path, volume.format, &value), Ok(()), "{when}");
        images.user.ok(&["volume", "rekey", &volume.path], b"");
        let value = images.value(&volume.path);
        assert_eq!(opens(&volume.path, volume.format, &value), Ok(()), "{when}, completed");
        assert!(opens(&volume.path, volume.format, &volume.value).is_err(), "{when}: the old value opens it");
    }
    println!("50 of 50 volumes open; {midway} were killed between their first step and their last");
}

/// Where a keystore is while it is gone.
fn away(home: &Path) -> PathBuf {
    home.join("away")
}

fn take_away(home: &Path) {
    fs::rename(home.join("secrets"), away(home)).unwrap();
    // It would be made anew, were nothing there.
    fs::write(home.join("secrets"), "").unwrap();
}

fn bring_back(home: &Path) {
    fs::remove_file(home.join("secrets")).unwrap();
    fs::rename(away(home), home.join("secrets")).unwrap();
}

/// A run that comes as far as the new value's slot.
fn cut_off(home: &Path, volume: &Volume<'_>) {
    let mut steps = |step| {
        if step == Step::SetValue {
            take_away(home);
        }
    };
    run(home, Path::new(&volume.path), &mut steps).unwrap_err();
    bring_back(home);
}

#[test]
fn a_keystore_that_is_gone_midway_is_said_and_the_volume_opens() {
    let Some(images) = Images::new() else { return };
    let volume = Volume::new(&images, "qcow2", None);
    let home = images.user.home.path();
    for gone in [Step::Remember, Step::WriteMaterial, Step::SetValue, Step::DeactivateSlot, Step::Forget] {
        volume.put_back();
        let mut is_away = false;
        let mut steps = |step| {
            if step == gone && !is_away {
                take_away(home);
                is_away = true;
            }
        };
        let error = run(home, Path::new(&volume.path), &mut steps).unwrap_err();
        bring_back(home);
        assert!(matches!(error, VolumeError::Keystore(_)), "{gone:?}: {error}");
        assert!(error.to_string().contains("secrets"), "{gone:?}: {error}");
        let when = format!("gone before {gone:?}");
        volume.check(&when);
        volume.complete(&["--machine-key"], &when);
    }
}

#[test]
fn a_value_that_was_given_is_the_one_in_the_end() {
    let Some(images) = Images::new() else { return };
    let volume = Volume::new(&images, "raw", None);
    let home = images.user.home.path();
    cut_off(home, &volume);
    // The run before is completed first, then the value takes the place of that one's.
    images.user.ok(&["volume", "rekey", &volume.path, "--stdin", "--kdf", "fast"], b"chosen by somebody");
    assert_eq!(images.value(&volume.path), "chosen by somebody");
    volume.check("afterwards");
    assert_eq!(images.secrets().len(), 1);
}

#[test]
fn a_new_value_that_nobody_can_read_is_given_up() {
    let Some(images) = Images::new() else { return };
    let volume = Volume::new(&images, "raw", None);
    let home = images.user.home.path();
    cut_off(home, &volume);
    // What the run before was about to set is damaged.
    let known = images.value(&volume.path);
    let uuids = images.secrets();
    let keystores = keystores(home);
    let usage = SecretLookup::Usage(volume.path.clone());
    let own = keystores.find(&usage, None).unwrap().definition.uuid.to_string();
    let new = uuids.iter().find(|uuid| **uuid != own).unwrap();
    fs::remove_file(home.join("secrets").join(format!("{new}.age"))).unwrap();
    let value = SecretValue::copy_of(known.as_bytes()).unwrap();
    assert_eq!(keystores.find(&usage, None).unwrap().value().unwrap(), value);
    images.user.ok(&["volume", "rekey", &volume.path], b"");
    volume.check("afterwards");
    assert!(opens(&volume.path, "raw", &known).is_err());
    assert_eq!(images.secrets().len(), 1);
}
