//! The README's first use, typed as it stands there.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod guest;
mod user;

use std::fs;
use std::process::Stdio;

use guest::{Guest, files};
use user::User;

const README: &str = include_str!("../README.md");
/// Where the README has its files.
const PLACE: &str = "/tmp/first";

/// The blocks of that language in the README, at another place.
fn blocks(language: &str, place: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let blocks = README.split(&start).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap().replace(PLACE, place)).collect()
}

#[test]
fn the_first_use_works_as_it_is_written() {
    let Some(files) = files() else { return };
    let user = User::new();
    let home = user.home.path().to_str().unwrap().to_owned();
    let [guest_xml, disk_xml] = &blocks("xml", &home)[..] else { panic!("not two XML files") };
    let [first, second] = &blocks("sh", &home)[..] else { panic!("not two terminals") };
    fs::write(user.home.path().join("guest.xml"), guest_xml).unwrap();
    fs::write(user.home.path().join("disk.xml"), disk_xml).unwrap();
    for file in ["vmlinuz", "initramfs.gz"] {
        fs::copy(files.join(file), user.home.path().join(file)).unwrap();
    }
    let lines = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };

    let mut run = None;
    for line in lines(first) {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        match &words[..] {
            // The guest is there: tests do not install packages.
            ["integration/guest.sh", _] => {}
            ["vmward", "run", xml] => {
                let log = fs::File::create(user.home.path().join("run.log")).unwrap();
                let mut command = user.command(&["run", xml]);
                run = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
            }
            ["vmward", arguments @ ..] => {
                assert!(run.is_none(), "`run` does not return before the guest ends");
                user.ok(arguments, b"");
            }
            other => panic!("{other:?}"),
        }
    }
    let mut guest = Guest::of(user, "first", run.unwrap());
    guest.ready();
    for line in lines(second) {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let ["vmward", arguments @ ..] = &words[..] else { panic!("{words:?}") };
        guest.user.ok(arguments, b"");
    }
    let (status, said) = guest.ended();
    assert!(status.success(), "{said}");
}
