//! What commands print, word for word: the transcripts in `tests/cmd`. A transcript with a directory `.out` beside it runs
//! in a copy of its `.in`; without one it would leave its keystore in the source tree.

#[test]
fn transcripts() {
    trycmd::TestCases::new()
        .env("VMWARD_CONFIG", "vmward.toml")
        .env("VMWARD_RUNTIME_DIR", "run")
        .case("tests/cmd/*.trycmd");
}
