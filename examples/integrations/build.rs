//! Makes Rust of `proto/shop.proto`. protox reads it, so that no protoc need be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/shop.proto");
    let files = protox::compile(["proto/shop.proto"], ["proto"])?;
    tonic_prost_build::compile_fds(files)?;
    Ok(())
}
