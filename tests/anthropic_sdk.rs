//! The `anthropic` Python package against the daemon.

use crate::openai_sdk::tour;

#[tokio::test]
async fn the_anthropic_package_works_unchanged() {
    tour("anthropic").await;
}
