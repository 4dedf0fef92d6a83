//! One counter per reason that something was not analysed, and what is attached.

/// Whether one source of facts works, and what is lost where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeStatus {
    /// Stable name, such as `state` or `segment_egress`.
    pub name: &'static str,
    /// Whether it is attached.
    pub attached: bool,
    /// Why not, and what is lost by that; empty where it is attached.
    pub reason: String,
}

macro_rules! stats {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// What the engine did and, above all, what it could not look at.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl Stats {
            /// Every counter with its name.
            pub fn counters(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

stats! {
    /// Segments handled.
    segments,
    /// Kernel signals handled.
    signals,
    /// Hops opened or joined.
    hops,
    /// Exchanges that ended, failed ones included.
    exchanges,
    /// Events decided.
    events,
}
