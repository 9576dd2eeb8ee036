//! `petals-tune serve`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use petals_client::RemoteModel;
use petals_page::{ShownRoute, SwarmPage, serve};
use tokio::net::TcpListener;

use super::key;
use super::session::{self, SwarmLog};
use super::stop::StopSignal;
use super::swarm_page::{Client, ClientPage};
use crate::args::{ServeArgs, ServeLimits};
use crate::chat::{ChatTemplate, TemplateError};
use crate::error::CliError;
use crate::output::{Output, Serving};
use crate::serve::{App, Engine, Gate, Guard, Kept, Models, Pool, router};
use crate::text::TextTokenizer;

/// The environment variable with the API key.
const KEY_VARIABLE: &str = "PETALS_API_KEY";
/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 1024;
/// What is under way at the first Ctrl-C has so long to end.
const GRACE: Duration = Duration::from_secs(10);
/// How often finished texts are looked through for old ones.
const EXPIRY: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: ServeArgs, output: Output) -> Result<(), CliError> {
    let files = session::open(&args.swarm)?;
    let tokenizer = Arc::new(TextTokenizer::load(&args.swarm.model)?.ending_as(&files.config));
    let template = match ChatTemplate::load(&args.swarm.model, args.chat_template.as_deref()) {
        Ok(template) => Ok(template),
        // Completions do not need it.
        Err(missing @ TemplateError::Missing(_)) => Err(missing.to_string()),
        Err(error) => return Err(CliError::input(error)),
    };
    let mut adapters = Vec::new();
    for (name, directory) in &args.adapter {
        if adapters.iter().any(|(known, _)| known == name) {
            return Err(CliError::Usage(format!("two adapters have the name {name}")));
        }
        adapters.push((name.clone(), Arc::new(session::adapter(&files, directory)?.tables)));
    }
    let keys = api_keys(&args)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    let log = SwarmLog::default();
    let (sequence, swarm) = session::connect_noting(&files, &args.swarm, output, Some(log.clone())).await?;
    let stop = StopSignal::install()?;

    let ServeLimits { concurrent, queue, queue_timeout, idle_sessions, idle_timeout, .. } = args.limits;
    let model = RemoteModel::new(sequence.clone(), files.local.clone());
    let gate = Gate::new(concurrent, queue, queue_timeout);
    let engine = Arc::new(Engine::new(model, tokenizer, gate, Pool::new(idle_sessions, idle_timeout)));
    let models = Models::new(files.adapted.id.name(), files.config.max_position_embeddings, adapters);
    let chat = template.as_ref().err().cloned();
    let names = models.names().into_iter().map(str::to_owned).collect();
    output.emit(&Serving { url: format!("http://{address}"), models: names, key: !keys.is_empty(), chat })?;
    if keys.is_empty() && !address.ip().is_loopback() {
        tracing::warn!(
            "anybody who reaches {address} may use this server: --api-key-file or {KEY_VARIABLE} sets a key"
        );
    }
    let hosts = address.ip().is_loopback().then_some(args.allow_host);
    let guard = Guard::new(&keys, args.cors, args.limits.request_bytes, hosts, args.share_prefixes);
    let name = files.adapted.id.to_string();
    let shown = Arc::new(ClientPage::new(engine.clone(), log));
    let swarm_page = Arc::new(SwarmPage::new(swarm.clone(), Some(name), shown));
    let app = App {
        engine: engine.clone(),
        swarm: swarm_page.clone(),
        models,
        tool_format: args.tool_format.of(template.as_ref().ok()),
        template,
        max_new_tokens: args.limits.max_new_tokens,
        default_new_tokens: args.limits.default_new_tokens,
        guard: Arc::new(guard),
        kept: Kept::default(),
    };
    let stopped = async {
        tokio::select! {
            () = stop.received() => {}
            () = expire(&engine) => {}
            never = swarm_page.run() => match never {},
        }
        engine.close();
    };
    serve(listener, router(Arc::new(app)), CONNECTIONS, stopped, GRACE).await;
    // Texts that end while the server stops are not kept either.
    engine.close();
    session::verified(&sequence, &args.swarm, output)?;
    swarm.shutdown().await;
    Ok(())
}

impl Client for Arc<Engine> {
    fn routes(&self) -> Vec<ShownRoute> {
        self.route().into_iter().collect()
    }

    fn metrics(&self) -> String {
        self.render_metrics()
    }

    fn tokens(&self) -> Option<u64> {
        Some(self.new_tokens())
    }
}

/// Drops finished texts that got too old, for ever.
async fn expire(engine: &Engine) {
    let mut interval = tokio::time::interval(EXPIRY);
    loop {
        interval.tick().await;
        engine.expire();
    }
}

/// The keys of which clients need one, from wherever they are given; none if anybody may come.
fn api_keys(args: &ServeArgs) -> Result<Vec<String>, CliError> {
    match (&args.api_key, &args.api_key_file) {
        (Some(key), _) => key::checked(key).map(|key| vec![key]),
        (None, Some(file)) => key::read_all(file),
        (None, None) => match std::env::var(KEY_VARIABLE) {
            Ok(key) => key::checked(&key).map(|key| vec![key]),
            Err(std::env::VarError::NotPresent) => Ok(Vec::new()),
            Err(error) => Err(CliError::Usage(format!("{KEY_VARIABLE}: {error}"))),
        },
    }
}
