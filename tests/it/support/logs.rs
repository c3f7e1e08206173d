//! What the crate tells its log.

/// From here on, the log of this test is printed, which a failed one shows.
pub fn print() {
    let levels = tracing_subscriber::EnvFilter::new("tower_sea_orm=debug");
    // A second one in the same process is of no use.
    let _ = tracing_subscriber::fmt().with_env_filter(levels).with_test_writer().try_init();
}
