//! The `vmward` program: a thin shell around the library.

fn main() -> std::process::ExitCode {
    vmward::cli::main()
}
