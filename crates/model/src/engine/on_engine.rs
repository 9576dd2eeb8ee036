//! Things that exist on one of the engines: the one place that lists them.

use std::fmt;

use super::Engine;
#[cfg(feature = "burn")]
use super::burn::Burn;
use super::host::Host;

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
}

/// Binds `$name` to what `$on` has, whichever engine it is for, and runs `$body`.
macro_rules! on_engine {
    ($on:expr, $name:pat => $body:expr) => {
        match $on {
            $crate::engine::OnEngine::Host($name) => $body,
            #[cfg(feature = "burn")]
            $crate::engine::OnEngine::Burn($name) => $body,
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

impl<P: PerEngine> Clone for OnEngine<P>
where
    P::On<Host>: Clone,
    P::On<AnyOther>: Clone,
{
    fn clone(&self) -> Self {
        map_engine!(self, thing => thing.clone())
    }
}

impl<P: PerEngine> fmt::Debug for OnEngine<P>
where
    P::On<Host>: fmt::Debug,
    P::On<AnyOther>: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        on_engine!(self, thing => thing.fmt(f))
    }
}

/// The engine that is not [`Host`], where there is one.
#[cfg(feature = "burn")]
type AnyOther = Burn;
#[cfg(not(feature = "burn"))]
type AnyOther = Host;
