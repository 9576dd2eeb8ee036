//! Things that exist on one of the engines: the one place that lists them.

use std::fmt;

use super::Engine;
#[cfg(feature = "burn")]
use super::burn::Burn;
#[cfg(any(feature = "cuda", feature = "vulkan"))]
use super::gpu::Gpu;
use super::host::Host;

/// The engine of NVIDIA's GPUs.
#[cfg(feature = "cuda")]
pub(crate) type Cuda = Gpu<cubecl::cuda::CudaRuntime>;
/// The engine of GPUs by Vulkan.
#[cfg(feature = "vulkan")]
pub(crate) type Vulkan = Gpu<cubecl::wgpu::WgpuRuntime>;

/// A kind of thing that each engine has a type of its own for.
pub(crate) trait PerEngine {
    /// That type.
    type On<E: Engine>;
}

/// One of these things, on one of the engines.
pub(crate) enum OnEngine<P: PerEngine> {
    /// On [`super::host`].
    Host(P::On<Host>),
    /// On [`super::burn`].
    #[cfg(feature = "burn")]
    Burn(P::On<Burn>),
    /// On [`super::gpu`], by CUDA.
    #[cfg(feature = "cuda")]
    Cuda(P::On<Cuda>),
    /// On [`super::gpu`], by Vulkan.
    #[cfg(feature = "vulkan")]
    Vulkan(P::On<Vulkan>),
}

/// Binds `$name` to what `$on` has, whichever engine it is for, and runs `$body`.
macro_rules! on_engine {
    ($on:expr, $name:pat => $body:expr) => {
        match $on {
            $crate::engine::OnEngine::Host($name) => $body,
            #[cfg(feature = "burn")]
            $crate::engine::OnEngine::Burn($name) => $body,
            #[cfg(feature = "cuda")]
            $crate::engine::OnEngine::Cuda($name) => $body,
            #[cfg(feature = "vulkan")]
            $crate::engine::OnEngine::Vulkan($name) => $body,
        }
    };
}

/// The same, to something else on that engine.
macro_rules! map_engine {
    ($on:expr, $name:pat => $body:expr) => {
        match $on {
            $crate::engine::OnEngine::Host($name) => $crate::engine::OnEngine::Host($body),
            #[cfg(feature = "burn")]
            $crate::engine::OnEngine::Burn($name) => $crate::engine::OnEngine::Burn($body),
            #[cfg(feature = "cuda")]
            $crate::engine::OnEngine::Cuda($name) => $crate::engine::OnEngine::Cuda($body),
            #[cfg(feature = "vulkan")]
            $crate::engine::OnEngine::Vulkan($name) => $crate::engine::OnEngine::Vulkan($body),
        }
    };
}

pub(crate) use {map_engine, on_engine};

/// An engine that is one of [`OnEngine`]'s.
pub(crate) trait Listed: Engine {
    /// Something of this engine as one of all engines.
    fn wrap<P: PerEngine>(thing: P::On<Self>) -> OnEngine<P>;

    /// What is on this engine; `None` if it is on another.
    fn unwrap<P: PerEngine>(thing: OnEngine<P>) -> Option<P::On<Self>>;

    /// The same, borrowed.
    fn borrow<P: PerEngine>(thing: &OnEngine<P>) -> Option<&P::On<Self>>;

    /// The same, to be changed.
    fn borrow_mut<P: PerEngine>(thing: &mut OnEngine<P>) -> Option<&mut P::On<Self>>;
}

/// Implements [`Listed`] for the engine of a variant.
macro_rules! listed {
    ($engine:ident, $variant:ident) => {
        #[allow(irrefutable_let_patterns, reason = "where there is one engine only")]
        impl Listed for $engine {
            fn wrap<P: PerEngine>(thing: P::On<Self>) -> OnEngine<P> {
                OnEngine::$variant(thing)
            }

            fn unwrap<P: PerEngine>(thing: OnEngine<P>) -> Option<P::On<Self>> {
                if let OnEngine::$variant(own) = thing { Some(own) } else { None }
            }

            fn borrow<P: PerEngine>(thing: &OnEngine<P>) -> Option<&P::On<Self>> {
                if let OnEngine::$variant(own) = thing { Some(own) } else { None }
            }

            fn borrow_mut<P: PerEngine>(thing: &mut OnEngine<P>) -> Option<&mut P::On<Self>> {
                if let OnEngine::$variant(own) = thing { Some(own) } else { None }
            }
        }
    };
}

listed!(Host, Host);
#[cfg(feature = "burn")]
listed!(Burn, Burn);
#[cfg(feature = "cuda")]
listed!(Cuda, Cuda);
#[cfg(feature = "vulkan")]
listed!(Vulkan, Vulkan);

impl<P: PerEngine> Clone for OnEngine<P>
where
    P::On<Host>: Clone,
    P::On<IfBurn>: Clone,
    P::On<IfCuda>: Clone,
    P::On<IfVulkan>: Clone,
{
    fn clone(&self) -> Self {
        map_engine!(self, thing => thing.clone())
    }
}

impl<P: PerEngine> fmt::Debug for OnEngine<P>
where
    P::On<Host>: fmt::Debug,
    P::On<IfBurn>: fmt::Debug,
    P::On<IfCuda>: fmt::Debug,
    P::On<IfVulkan>: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        on_engine!(self, thing => thing.fmt(f))
    }
}

// Engines that are there in some builds only, and one that is there in all of them where they are not.

#[cfg(feature = "burn")]
type IfBurn = Burn;
#[cfg(not(feature = "burn"))]
type IfBurn = Host;
#[cfg(feature = "cuda")]
type IfCuda = Cuda;
#[cfg(not(feature = "cuda"))]
type IfCuda = Host;
#[cfg(feature = "vulkan")]
type IfVulkan = Vulkan;
#[cfg(not(feature = "vulkan"))]
type IfVulkan = Host;
