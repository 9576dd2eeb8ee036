//! A runtime of cubecl that has no device: what is launched on it is compiled to CUDA C++ and remembered, and memory is never touched.
//!
//! It tells kernels what cubecl's CUDA runtime would tell them (`cubecl-cuda`'s `runtime.rs`, from compute capability 8.0 on), so that the sources are
//! those that a GPU would get.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use cubecl::backtrace::BackTrace;
use cubecl::bytes::Bytes;
use cubecl::device::{Device, DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl::future::DynFut;
use cubecl::ir::features::Plane;
use cubecl::ir::{DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties};
use cubecl::prelude::*;
use cubecl::profile::{ProfileDuration, TimingMethod};
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, KernelArguments, ProfileError, ProfilingToken, ServerCommunication,
    ServerError, ServerUtilities,
};
use cubecl::stream_id::StreamId;
use cubecl::zspace::{Shape, Strides};
use cubecl::{CubeTask, MemoryUsage};
use cubecl_cpp::cuda::CudaDialect;
use cubecl_cpp::cuda::mma::CudaWmmaCompiler;
use cubecl_cpp::register_supported_types;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_runtime::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{ManagedMemoryHandle, MemoryAllocationMode};
use cubecl_runtime::storage::{BytesStorage, ComputeStorage, ManagedResource};

/// What [`Printer`] compiles with.
type CudaCompiler = CppCompiler<CudaDialect<CudaWmmaCompiler>>;

/// Bytes to which CUDA's buffers are aligned.
const ALIGNMENT: u64 = 512;

/// A kernel that was launched.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The function's name.
    pub(crate) entry: String,
    /// CUDA C++.
    pub(crate) source: String,
    /// Bytes of memory that the units of a cube share. They are asked for at launch, so that the CUDA compiler does not know them.
    pub(crate) shared: usize,
    /// Units of a cube.
    pub(crate) units: u32,
}

/// Kernels that were launched since somebody last took them, and the ids of all that ever were.
static LAUNCHED: Mutex<(Vec<Launched>, Option<HashSet<String>>)> = Mutex::new((Vec::new(), None));

/// Takes what was launched and had not been launched before.
pub(crate) fn take_launched() -> Vec<Launched> {
    std::mem::take(&mut LAUNCHED.lock().unwrap_or_else(PoisonError::into_inner).0)
}

/// The runtime.
#[derive(Debug, Clone)]
pub(crate) struct Printer;

/// Its only device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paper;

impl Device for Paper {
    fn from_id(_: DeviceId) -> Self {
        Self
    }

    fn to_id(&self) -> DeviceId {
        DeviceId { type_id: 0, index_id: 0 }
    }
}

impl Runtime for Printer {
    type Compiler = CudaCompiler;
    type Server = Server;
    type Device = Paper;

    fn client(device: &Paper) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "cuda"
    }

    fn require_array_lengths() -> bool {
        true
    }

    fn max_cube_count() -> (u32, u32, u32) {
        (i32::MAX as u32, u32::from(u16::MAX), u32::from(u16::MAX))
    }

    fn can_read_tensor(_: &Shape, _: &Strides) -> bool {
        true
    }

    fn target_properties() -> TargetProperties {
        TargetProperties { mma: Default::default() }
    }

    fn enumerate_devices(_: u16, (): &()) -> Vec<DeviceId> {
        vec![Paper.to_id()]
    }
}

/// What gets the launches.
#[derive(Debug)]
pub(crate) struct Server {
    utilities: Arc<ServerUtilities<Self>>,
}

impl DeviceService for Server {
    fn init(_: DeviceId) -> Self {
        let hardware = HardwareProperties {
            load_width: 128,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 99 << 10,
            max_cube_count: Printer::max_cube_count(),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            num_cpu_cores: None,
            max_vector_size: cubecl::ir::VectorSize::MAX,
        };
        let memory = MemoryDeviceProperties { max_page_size: 20 << 30, alignment: ALIGNMENT };
        let mut properties = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
        register_supported_types(&mut properties);
        properties.features.plane.insert(Plane::Sync);
        properties.features.plane.insert(Plane::Ops);
        properties.features.plane.insert(Plane::NonUniformControlFlow);
        properties.features.memory_reinterpret = true;
        properties.features.alignment = true;
        properties.features.copy_async = true;
        let policy = ContiguousMemoryLayoutPolicy::new(ALIGNMENT as usize);
        let utilities = ServerUtilities::new(properties, Arc::new(ServerLogger::default()), (), policy);
        Self { utilities: Arc::new(utilities) }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        ComputeServer::utilities(self)
    }
}

impl ServerCommunication for Server {
    const SERVER_COMM_ENABLED: bool = false;
}

/// What nothing here asks for.
fn unsupported() -> ServerError {
    ServerError::Generic { reason: "there is no device".to_owned(), backtrace: BackTrace::capture() }
}

impl ComputeServer for Server {
    type Kernel = Box<dyn CubeTask<CudaCompiler>>;
    type Info = ();
    type MemoryLayoutPolicy = ContiguousMemoryLayoutPolicy;
    type Storage = BytesStorage;

    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) {}

    fn logger(&self) -> Arc<ServerLogger> {
        Arc::clone(&self.utilities.logger)
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        Arc::clone(&self.utilities)
    }

    fn read(&mut self, _: Vec<CopyDescriptor>, _: StreamId) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        Box::pin(async { Err(unsupported()) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn get_resource(
        &mut self,
        _: Binding,
        _: StreamId,
    ) -> Result<ManagedResource<<BytesStorage as ComputeStorage>::Resource>, ServerError> {
        Err(unsupported())
    }

    #[allow(unsafe_code)]
    // SAFETY: nothing is executed.
    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        _: CubeCount,
        _: KernelArguments,
        mode: ExecutionMode,
        _: StreamId,
    ) {
        let id = kernel.id().stable_format();
        let mut launched = LAUNCHED.lock().unwrap_or_else(PoisonError::into_inner);
        if !launched.1.get_or_insert_default().insert(id) {
            return;
        }
        // What cubecl's runtime sets from compute capability 7.5 on.
        let supports_features =
            CppSupportedFeatures { grid_constants: true, fast_math: true, fast_tanh: true, ..Default::default() };
        let options = CompilationOptions { warp_size: 32, supports_features };
        let address = kernel.address_type();
        let compiled = kernel
            .compile(&mut CudaCompiler::default(), &options, mode, address)
            .unwrap_or_else(|e| panic!("{} has no CUDA source: {e}", kernel.name()));
        let shared = compiled.repr.as_ref().map_or(0, |kernel| kernel.shared_memory_size());
        let units = compiled.cube_dim.num_elems();
        launched.0.push(Launched { entry: compiled.entrypoint_name, source: compiled.source, shared, units });
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(MemoryUsage { number_allocs: 0, bytes_in_use: 0, bytes_padding: 0, bytes_reserved: 0 })
    }

    fn memory_cleanup(&mut self, _: StreamId) {}

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(unsupported())
    }

    fn end_profile(&mut self, _: StreamId, _: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::Server(Box::new(unsupported())))
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}
