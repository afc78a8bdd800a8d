//! Generated, typed calls into the three worlds of `wit/`. Arguments are borrowed, so columns are
//! copied only once, into the guest.

pub mod deduper {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "deduper",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

pub mod scorer {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "scorer",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

pub mod saturator {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "saturator",
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}
