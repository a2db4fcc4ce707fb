//! What commands print, word for word: the transcripts in `tests/cmd`.

#[test]
fn transcripts() {
    trycmd::TestCases::new()
        .env("VMWARD_CONFIG", "vmward.toml")
        .env("VMWARD_RUNTIME_DIR", "run")
        .case("tests/cmd/*.trycmd");
}
