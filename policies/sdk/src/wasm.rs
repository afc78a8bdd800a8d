//! The component's side of the contract: generated bindings, and their translation to and from the
//! plain types. The only module with unsafe code, all of it written by `wit-bindgen`.

#![allow(unsafe_code, missing_docs, missing_debug_implementations)]

/// Each stage defines its own records in WIT, so each gets its own translation.
macro_rules! translate {
    ($input:ident: $($column:ident),+) => {
        impl From<Request> for crate::Request {
            fn from(Request { user_id, now_ms, seed, limit }: Request) -> Self {
                Self { user_id, now_ms, seed, limit }
            }
        }

        impl $input {
            pub fn as_columns(&self) -> crate::$input<'_> {
                crate::$input { $( $column: &self.$column ),+ }
            }
        }

        impl From<crate::Parameter> for Parameter {
            fn from(parameter: crate::Parameter) -> Self {
                let crate::Parameter { name, default, min, max, doc } = parameter;
                Self { name: name.to_owned(), default, min, max, doc: doc.to_owned() }
            }
        }

        impl From<crate::Description> for Description {
            fn from(description: crate::Description) -> Self {
                let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
                Self {
                    name: description.name.to_owned(),
                    version: description.version.to_owned(),
                    features: owned(description.features),
                    parameters: description.parameters.iter().map(|&p| p.into()).collect(),
                    explains: owned(description.explains),
                }
            }
        }
    };
}

pub mod deduper {
    wit_bindgen::generate!({
        path: "wit",
        world: "deduper",
        pub_export_macro: true,
        export_macro_name: "export_deduper",
    });
    pub use exports::nova::policy::dedup::{Candidates, Description, Guest, Parameter, Request};
    translate!(Candidates: post_ids, author_ids, created_at_ms, features);
}

pub mod scorer {
    wit_bindgen::generate!({
        path: "wit",
        world: "scorer",
        pub_export_macro: true,
        export_macro_name: "export_scorer",
    });
    pub use exports::nova::policy::score::{Candidates, Description, Guest, Parameter, Request};
    translate!(Candidates: post_ids, author_ids, created_at_ms, features);
}

pub mod saturator {
    wit_bindgen::generate!({
        path: "wit",
        world: "saturator",
        pub_export_macro: true,
        export_macro_name: "export_saturator",
    });
    pub use exports::nova::policy::saturation::{Description, Guest, Parameter, Ranked, Request};
    translate!(Ranked: post_ids, author_ids, created_at_ms, features, scores);
}
