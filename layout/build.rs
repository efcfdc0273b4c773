//! Tells the linker of the program that is released what belongs together.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=layout/start.ld");
    let says = |name: &str| env::var(name).unwrap_or_default();
    let target = ["CARGO_CFG_TARGET_ARCH", "CARGO_CFG_TARGET_OS", "CARGO_CFG_TARGET_ENV"].map(says);
    // Tests and checks are linked often, and where their functions are does not matter.
    let released = says("OPT_LEVEL") == "3";
    // The compiler's own linker knows such files, and GNU's does; of one that somebody chose nobody knows.
    let flags = says("CARGO_ENCODED_RUSTFLAGS");
    let chosen = env::var_os("RUSTC_LINKER").is_some()
        || ["linker", "fuse-ld"].iter().any(|word| flags.contains(word));
    if released && target == ["x86_64", "linux", "gnu"] && !chosen {
        println!("cargo::rustc-link-arg-bin=edge=-Wl,-T,{}/layout/start.ld", says("CARGO_MANIFEST_DIR"));
    }
}
