//! Using and prompt-tuning a model whose blocks are served by a swarm.
//!
//! [`ModelFiles`] holds the client's part of a model and joins a swarm; [`RemoteSequence`] runs all blocks forward and
//! backward over whichever servers hold them; [`PromptTuner`] trains [`PromptTables`] through it; [`Adapter`] saves the
//! result.

mod adapter;
mod atomic_file;
mod batch;
mod benchmark;
mod connect;
mod exchange;
mod generation;
mod head;
mod hop;
mod labels;
mod logits;
mod names;
mod optimizer;
mod pacer;
mod peers;
mod planner;
mod retry;
mod sampler;
mod schedule;
mod sequence;
mod session;
mod tables;
mod tensor_file;
mod text_session;
mod training_state;
mod tuner;
mod view;

pub use adapter::{AdaptedModel, Adapter, AdapterError, AdapterManifest, TextRules};
pub use atomic_file::WriteError;
pub use batch::{Example, Target};
pub use benchmark::{Benchmark, BenchmarkError, Repetition, Workload};
pub use connect::{ClientNetwork, JoinError, ModelFiles, ModelFilesError};
pub use generation::{
    BeamConfig, DraftModel, EarlyStopping, Finish, Generation, GenerationConfig, GenerationError, Generator, HopUse,
    Speculation, beam_search,
};
pub use hop::{HopError, ServerWork, TrafficCount};
pub use labels::{Label, LabelError, LabelMap};
pub use logits::{LogitsError, RemoteModel};
pub use names::{Task, TuningMode, UnknownName};
pub use optimizer::AdamW;
pub use pacer::Pace;
pub use peers::{CostEstimate, Figure, Source};
pub use petals_model::{CheckpointError, Dtype};
pub use petals_protocol::{Injection, ServerState, Span, WireDtype};
pub use petals_swarm::{PeerId, SwarmHandle, parse_peers};
pub use planner::{
    Candidate, Excluded, Exclusion, Hop, HopCost, MissingBlocks, PinError, Planner, Route, RouteRules, WeightedRoute,
};
pub use sampler::{Sampler, Sampling, SamplingError};
pub use schedule::{LearningRate, Schedule};
pub use sequence::{
    ExplainedRoute, ExplainedServer, Explanation, HopTiming, PassGradients, PassInput, RelayMode, RemoteSequence,
    SequenceConfig, SequenceError, SwarmEvent, Trace, Verdict, Verification,
};
pub use session::InferenceSession;
pub use tables::{
    DeepInit, GradientError, InitError, InitRule, PromptTables, StartError, Table, TableGradients, TableInit,
    TableShape,
};
pub use tensor_file::TensorFileError;
pub use text_session::TextSession;
pub use training_state::{SettingChange, TrainingRecord, TrainingState, TrainingStateError};
pub use tuner::{PromptTuner, Score, StepReport, TuneError, TunerConfig, evaluate};
