//! Steps that go from server to server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use petals_protocol::{PassLayout, Refusal, Remedy};

use super::chunk::{self, Chunk, Wanted};
use super::{InferenceSession, OpenHop, SessionHop, hop_input};
use crate::lock::lock;
use crate::planner::Hop;
use crate::sequence::chain::{Failure, ends};
use crate::sequence::{SequenceError, Way};
use crate::servers::exchange::{Ends, Flow, Forwarded, StepPart};
use crate::servers::hop::{HopConnection, HopError};
use crate::servers::retry::Retry;

impl InferenceSession {
    /// Brings all servers to `target` in one go; returns the outputs of the positions that are read. `None` if that is not possible
    /// because servers do not reach each other.
    ///
    /// A server that is lost is replaced, and all get all rows again: what entered it went from server to server, so it takes the
    /// ones in front to know it.
    pub(super) async fn push(
        &mut self,
        target: &[usize],
        read: &Wanted,
        way: Way,
        retry: &mut Retry,
    ) -> Result<Option<Vec<f32>>, SequenceError> {
        loop {
            let hops: Vec<Hop> = self.hops.iter().map(|hop| hop.hop).collect();
            if !self.sequence.is_chain(&hops) {
                return Ok(None);
            }
            if !self.hops.iter().all(|hop| hop.open.as_ref().is_some_and(|open| self.is_current(open))) {
                self.hops.iter_mut().for_each(|hop| hop.open = None);
            }
            let failure = match self.try_push(&hops, target, read).await {
                Ok(output) => {
                    // Of what went between the servers nothing is known here any more.
                    let first = self.sequence.served().start();
                    self.inputs.retain(|block, _| *block <= first);
                    return Ok(Some(output));
                }
                Err(failure) => failure,
            };
            let (number, error) = failure;
            if let HopError::Refused(refusal) = &error {
                match refusal.remedy() {
                    Remedy::UseStar => {
                        self.sequence.chain_failed(&hops, (number, error));
                        return Ok(None);
                    }
                    // A server that dropped an idle session is as good as before.
                    Remedy::Replay => {
                        if let Some(wait) = retry.next_wait(Instant::now()) {
                            tokio::time::sleep(wait).await;
                            continue;
                        }
                    }
                    _ => {}
                }
            }
            if matches!(error, HopError::Slow(_) | HopError::Timeout(_)) {
                // Whether a server is slow or the one behind it does not take its rows cannot be seen from here.
                self.sequence.chain_failed(&hops, (number, error));
                return Ok(None);
            }
            let hop = hops[number];
            self.sequence.recover(self.pass(), hop, error, retry).await?;
            let hops = self.sequence.plan(hop.span, self.pass(), way, retry).await?;
            if hops != [hop] {
                self.hops.splice(number..=number, hops.into_iter().map(|hop| SessionHop { hop, open: None }));
            }
        }
    }

    /// Whether a server has all that came before this step.
    fn is_current(&self, open: &OpenHop) -> bool {
        open.connection.is_open() && self.lengths.iter().enumerate().all(|(n, &length)| open.kept(n) >= length)
    }

    async fn try_push(&mut self, hops: &[Hop], target: &[usize], read: &Wanted) -> Result<Vec<f32>, Failure> {
        let at = |number: usize| move |error| (number, error);
        let connections = self.connections(hops).await?;
        let fresh = self.hops.iter().all(|hop| hop.open.is_none());
        let mut known = if fresh { vec![0; target.len()] } else { self.lengths.clone() };
        // Out of the session until all have answered: who fails or gives up on the way must not go on with what some have seen and
        // others have not. What is dropped ends on the servers.
        let taken: Vec<_> = self.hops.iter_mut().map(|hop| hop.open.take()).collect();
        let taken = taken.into_iter().zip(&connections);
        let mut opens: Vec<OpenHop> =
            taken.map(|(open, connection)| open.unwrap_or_else(|| self.new_session(connection))).collect();
        let mut outputs = vec![Vec::new(); target.len()];
        let all: Wanted = known.iter().zip(target).map(|(&known, &target)| (known..target).collect()).collect();
        while known.iter().zip(target).any(|(known, target)| known < target) {
            let lengths = chunk::next(&known, target);
            let ends = ends(hops.iter().map(|hop| hop.peer)).map_err(at(0))?;
            let opening = fresh && known.iter().all(|&known| known == 0);
            let last = hops.len() - 1;
            let chunk = |number: usize| {
                let wanted = if number == last { read } else { &all };
                Chunk { known: &known, lengths: &lengths, wanted, whole: number < last }
            };
            let rows = lengths.iter().sum::<usize>() + if opening { self.prefix_rows() } else { 0 };
            let pass = self.sequence.pass_size(rows);
            let first = self.flow(&self.layout(hops[0], opening, false, &chunk(0)), &chunk(0));
            let parts: Vec<_> = opens.iter().map(|open| self.part(open, opening, &known)).collect();
            let requests = hops.iter().zip(&connections).zip(ends).zip(parts).enumerate();
            let requests = requests.map(|(number, (((&hop, connection), ends), part))| {
                let layout = self.layout(hop, opening, number == last, &chunk(number));
                let flow = (number == 0).then(|| first.clone());
                self.asked(hop, layout, flow, ends, connection.clone(), part)
            });
            let started = Instant::now();
            let answer = match self.sequence.last_of(pass, hops, requests.collect()).await {
                Ok(answer) => answer,
                Err((number, error)) => {
                    // Rows that some have already are harmless when they come again, but an order is not.
                    let again = matches!(error, HopError::Refused(Refusal::Busy { .. }));
                    if again && !opening && opens.iter().all(|open| open.order.is_none()) {
                        self.hops.iter_mut().zip(opens).for_each(|(hop, open)| hop.open = Some(open));
                    }
                    // The server in front of one that died may be the first to tell.
                    return Err(match error {
                        HopError::Refused(Refusal::NextUnreachable { .. })
                            if connections.get(number + 1).is_some_and(|next| !next.is_open()) =>
                        {
                            (number + 1, HopError::Lost)
                        }
                        error => (number, error),
                    });
                }
            };
            self.charge(hops, started.elapsed());
            let output = answer.output.ok_or_else(|| at(last)(HopError::BadReply("no output".into())))?;
            chunk(last).collect(&output.text, self.sequence.hidden(), &mut outputs);
            known.iter_mut().zip(&lengths).for_each(|(known, rows)| *known += rows);
            opens.iter_mut().for_each(|open| (open.known, open.order) = (known.clone(), None));
        }
        self.hops.iter_mut().zip(opens).for_each(|(hop, open)| hop.open = Some(open));
        let recent = lock(&self.recent);
        self.timings.extend(hops.iter().filter_map(|hop| Some((*hop, (*recent.get(hop)?).into()))));
        drop(recent);
        Ok(outputs.concat())
    }

    /// A request that takes note of what it took, whenever it is answered.
    fn asked(
        &self,
        hop: Hop,
        layout: PassLayout,
        flow: Option<Flow>,
        ends: Ends,
        connection: Arc<HopConnection>,
        part: StepPart,
    ) -> impl Future<Output = Result<Forwarded, HopError>> + Send + 'static {
        let (sequence, tables, recent) = (self.sequence.clone(), self.tables.clone(), self.recent.clone());
        async move {
            let answer =
                hop_input(&sequence, tables.as_ref(), layout, flow.as_ref(), ends).step(&connection, part).await?;
            sequence.succeeded(hop.peer, answer.measured);
            sequence.waited(hop.peer, answer.measured);
            lock(&recent).insert(hop, answer.measured);
            Ok(answer)
        }
    }

    /// Holds what a step took against what the servers say that it took them; those whose answer is still on its way said so a step ago.
    fn charge(&self, hops: &[Hop], waited: Duration) {
        let recent = lock(&self.recent);
        let measured: Vec<_> = hops.iter().filter_map(|hop| Some((hop.peer, *recent.get(hop)?))).collect();
        drop(recent);
        if measured.len() == hops.len() {
            self.sequence.chained(&measured, waited);
        }
    }

    /// Those of the open sessions, or new ones.
    async fn connections(&self, hops: &[Hop]) -> Result<Vec<Arc<HopConnection>>, Failure> {
        let connect =
            hops.iter().zip(&self.hops).enumerate().map(async |(number, (hop, session))| match &session.open {
                Some(open) => Ok(open.connection.clone()),
                None => self.sequence.connection(hop.peer).await.map_err(|error| (number, error)),
            });
        futures::future::try_join_all(connect).await
    }
}
