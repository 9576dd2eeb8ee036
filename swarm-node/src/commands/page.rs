//! The page that shows the swarm, as long as a node runs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use petals_page::{Counts, FEW, Failure, JoinLines, Key, Rules, Shown, SwarmPage, router};
use petals_protocol::ServerInfo;
use petals_swarm::SwarmHandle;
use tokio::net::TcpListener;

use super::events::{Join, NodeEvent};
use crate::args::PageArgs;
use crate::error::NodeError;
use crate::server::{ServerView, metrics};

/// What the page shows of this node. Before the blocks are loaded that is nothing.
#[derive(Debug, Default)]
pub(super) struct NodePage {
    served: OnceLock<(ServerView, Join)>,
    url: Option<String>,
}

/// Where the page will be, and who may see it.
#[derive(Debug)]
pub(super) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    key: Option<Key>,
}

/// Takes the address, before anything that takes long: that it is in use already should be known at once.
pub(super) async fn bind(args: &PageArgs) -> Result<Option<Bound>, NodeError> {
    let Some(address) = args.page else { return Ok(None) };
    let key = args.page_key_file.as_deref().map(read_key).transpose()?;
    let listener = TcpListener::bind(address).await;
    let listener =
        listener.with_context(|| format!("cannot listen on {address} for --page")).map_err(NodeError::input)?;
    let address = listener.local_addr().context("the page's listener has no address")?;
    if key.is_none() && !address.ip().is_loopback() {
        tracing::warn!("anybody who reaches {address} sees the page, and who serves what: --page-key-file sets a key");
    }
    Ok(Some(Bound { listener, address, key }))
}

impl NodePage {
    /// Shows the page, for as long as the process runs, and says where.
    pub(super) fn start(bound: Option<Bound>, swarm: &SwarmHandle, json: bool) -> Arc<Self> {
        let Some(Bound { listener, address, key }) = bound else { return Arc::default() };
        let url = format!("http://{address}");
        let shown = Arc::new(Self { url: Some(url.clone()), ..Self::default() });
        let page = Arc::new(SwarmPage::new(swarm.clone(), None, shown.clone()));
        let rules = Rules { key, hosts: address.ip().is_loopback().then(Vec::new) };
        let routes = router(page.clone(), rules);
        tokio::spawn(petals_page::serve(listener, routes, FEW, std::future::pending(), Duration::ZERO));
        tokio::spawn(async move { page.run().await });
        NodeEvent::Page { url }.emit(json);
        shown
    }

    /// Where it is, if there is one.
    pub(super) fn url(&self) -> Option<String> {
        self.url.clone()
    }

    /// From here on the page shows a server.
    pub(super) fn serves(&self, server: ServerView, join: Join) {
        let _ = self.served.set((server, join));
    }

    fn server(&self) -> Option<&ServerView> {
        self.served.get().map(|(server, _)| server)
    }
}

impl Shown for NodePage {
    fn role(&self) -> &'static str {
        "node"
    }

    fn ready(&self) -> Result<(), String> {
        self.server().map_or_else(|| Err("the blocks are being loaded".to_owned()), ServerView::ready)
    }

    fn own(&self) -> Option<ServerInfo> {
        self.server().map(ServerView::info)
    }

    fn counts(&self) -> Counts {
        let Some(server) = self.server() else { return Counts::default() };
        let totals = server.executor().totals();
        Counts {
            tokens: Some(totals.tokens.get()),
            passes: Some(totals.number()),
            queue: Some(server.executor().depth() as u32),
        }
    }

    fn join(&self) -> Option<JoinLines> {
        let (_, Join { node, client, this_machine_only, .. }) = self.served.get()?;
        Some(JoinLines { node: node.clone(), client: client.clone(), this_machine_only: *this_machine_only })
    }

    fn failures(&self) -> Vec<Failure> {
        let Some(server) = self.server() else { return Vec::new() };
        let refusals = server.executor().refusals().into_iter();
        let failures = refusals.map(|refused| Failure {
            time_ms: refused.at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            peer: refused.peer.to_string(),
            blocks: None,
            what: refused.what,
            times: refused.times,
        });
        failures.collect()
    }

    fn metrics(&self) -> String {
        metrics(self.server())
    }
}

fn read_key(file: &Path) -> Result<Key, NodeError> {
    let text = std::fs::read_to_string(file);
    let text =
        text.with_context(|| format!("cannot read --page-key-file {}", file.display())).map_err(NodeError::input)?;
    let key = text.trim();
    // An empty key is a mistake, and would be known to everybody.
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
        let error = anyhow::anyhow!(
            "--page-key-file {}: a key is printable ASCII characters without spaces, in one line",
            file.display()
        );
        return Err(NodeError::input(error));
    }
    Ok(Key::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_word_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        assert!(read_key(&file).unwrap_err().to_string().contains("cannot read"));
        for wrong in ["", " \n", "two words", "k\u{e4}se"] {
            std::fs::write(&file, wrong).unwrap();
            assert!(read_key(&file).unwrap_err().to_string().contains("printable ASCII"), "{wrong:?}");
        }
        std::fs::write(&file, "secret\n").unwrap();
        assert!(read_key(&file).unwrap().is("secret"));
    }

    #[test]
    fn a_node_that_loads_is_not_ready_and_says_so_to_prometheus() {
        let page = NodePage::default();
        assert!(page.ready().is_err() && page.own().is_none() && page.join().is_none());
        assert!(page.metrics().contains("petals_node_ready 0.0"), "{}", page.metrics());
    }
}
