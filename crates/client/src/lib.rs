//! Using and prompt-tuning a model whose blocks are served by a swarm.
//!
//! [`ModelFiles`] holds the client's part of a model and joins a swarm; [`RemoteSequence`] runs all blocks forward and
//! backward over whichever servers hold them; [`PromptTuner`] trains [`PromptTables`] through it; [`Adapter`] saves the
//! result.

mod adapter;
mod benchmark;
mod connect;
mod inference;
mod lock;
mod planner;
mod sequence;
mod servers;
mod tuning;

pub use adapter::atomic_file::{WriteError, write_atomically};
pub use adapter::card::{CardData, CardDetails, CardScore};
pub use adapter::labels::{Label, LabelError, LabelMap};
pub use adapter::merge::{MergeError, merge};
pub use adapter::method::Method;
pub use adapter::names::{PrefixMode, Task, TuningMode, UnknownName, WeightMode};
pub use adapter::tables::{
    DeepInit, GradientError, InitError, InitRule, PromptTables, StartError, Table, TableGradients, TableInit,
    TableShape,
};
pub use adapter::tensor_file::TensorFileError;
pub use adapter::{AdaptedModel, Adapter, AdapterError, AdapterManifest, ChangedWeights, TextRules};
pub use benchmark::{Benchmark, BenchmarkError, Repetition, Workload};
pub use connect::{ClientNetwork, JoinError, ModelFiles, ModelFilesError, ModelShape, join};
pub use inference::generation::{
    BeamConfig, DraftModel, EarlyStopping, Finish, Generation, GenerationConfig, GenerationError, Generator, HopUse,
    Speculation, beam_search,
};
pub use inference::logits::{LogitsError, RemoteModel};
pub use inference::logprobs::TokenLogprobs;
pub use inference::sampler::{Allowed, Constraint, Sampler, Sampling, SamplingError, TokenSet};
pub use inference::session::InferenceSession;
pub use inference::text_session::TextSession;
pub use petals_model::{
    CheckpointError, Dtype, GgufVocabulary, ModelConfig, Projection, Projections, TokenKind, parse_json,
};
pub use petals_protocol::{
    Injection, ModelId, Module, Modules, ServerInfo, ServerState, Span, UnknownModule, WeightChange, WireDtype,
    WireVersion, is_printable,
};
pub use petals_swarm::{
    BlockCount, Invitation, Listed, ModelStatus, PeerId, SwarmHandle, SwarmStatus, parse_peers, swarm_status,
};
pub use planner::{
    Candidate, Excluded, Exclusion, Hop, HopCost, MissingBlocks, PinError, Planner, Punctuality, Route, RouteRules,
    WeightedRoute,
};
pub use sequence::{
    ExplainedRoute, ExplainedServer, Explanation, HopTiming, PassGradients, PassInput, RelayMode, RemoteSequence,
    SequenceConfig, SequenceError, ServedWeights, SwarmEvent, Trace, Verdict, Verification,
};
pub use servers::hop::{HopError, ServerWork, TrafficCount};
pub use servers::local::{LocalBlocks, LocalBlocksError, LocalError};
pub use servers::peers::{CostEstimate, Figure, Source};
pub use servers::sample::{ENOUGH, EXPLORED, NAMES_AGE, RECORDS_AGE, Sample};
pub use servers::weights::{KnownWeights, KnownWeightsError};
pub use tuning::Pace;
pub use tuning::aids::Aids;
pub use tuning::average::Average;
pub use tuning::batch::{Example, Target};
pub use tuning::confusion::Confusion;
pub use tuning::dropout::PromptDropout;
pub use tuning::encoder::{Encoder, EncoderError, Reparam, ReparamKind};
pub use tuning::loss::{TrainingLoss, balanced_weights};
pub use tuning::optimizer::AdamW;
pub use tuning::probe::{TriedRate, best_rate};
pub use tuning::schedule::{LearningRate, Schedule};
pub use tuning::training_state::{SettingChange, TrainingRecord, TrainingState, TrainingStateError};
pub use tuning::tuner::{
    HopPasses, PromptTuner, Score, StepEstimate, StepReport, TuneError, TunerConfig, evaluate, teach,
};
