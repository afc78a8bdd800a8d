//! Refresh of the trending list of every window, before a request has to wait for it.

use crate::app::App;
use crate::discover::trending::Window;
use std::sync::Arc;
use std::time::Duration;

pub async fn run(app: Arc<App>) -> anyhow::Result<()> {
    let (ttl, timeout) = {
        let live = app.live();
        (
            Duration::from_secs(live.ttl.trending_s),
            Duration::from_millis(live.feed.source_timeout_ms),
        )
    };
    for window in Window::ALL {
        app.trending.renew(window, ttl, timeout).await?;
    }
    Ok(())
}
