//! A safe interface to the ClickHouse engine in `libchdb.so`. This is the only file with unsafe
//! code.
//!
//! The unsafe code relies on these statements of chDB's `chdb.h`:
//!
//! - A connection may be used from any thread, but by only one thread at a time (`&mut self`
//!   ensures that).
//! - Several connections of one process share one storage path and run concurrently.
//! - Buffers and errors belong to the result and live until it is destroyed.
//! - Strings are passed with their lengths, so they may contain any bytes.
#![expect(
    unsafe_code,
    reason = "calls a C library; every such call is in this file, with the assumptions it relies on"
)]

use anyhow::Context as _;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

/// Type of a connection. `chdb_connect` returns a pointer to it; queries take the value behind
/// the pointer.
type Connection = *mut c_void;
type QueryResult = *mut c_void;

#[derive(Debug, Clone, Copy)]
struct Api {
    connect: unsafe extern "C" fn(c_int, *const *const c_char) -> *mut Connection,
    close: unsafe extern "C" fn(*mut Connection),
    query: unsafe extern "C" fn(
        Connection,
        *const c_char,
        usize,
        *const c_char,
        usize,
        *const *const c_char,
        *const usize,
        *const *const c_char,
        *const usize,
        usize,
    ) -> QueryResult,
    destroy: unsafe extern "C" fn(QueryResult),
    error: unsafe extern "C" fn(QueryResult) -> *const c_char,
    buffer: unsafe extern "C" fn(QueryResult) -> *const c_char,
    length: unsafe extern "C" fn(QueryResult) -> usize,
    rows_read: unsafe extern "C" fn(QueryResult) -> u64,
    rows_written: unsafe extern "C" fn(QueryResult) -> u64,
}

/// The loaded library and the data directory of its tables. A process has at most one.
#[derive(Debug, Clone)]
pub struct Engine {
    api: Api,
    arguments: Arc<[CString]>,
}

/// A session of the engine, with its own current database and settings.
#[derive(Debug)]
pub struct Session {
    api: Api,
    connection: NonNull<Connection>,
}

// SAFETY: the library does not bind a connection to the thread that opened it; `&mut self` keeps
// it to one thread at a time.
unsafe impl Send for Session {}

/// Result of a statement.
#[derive(Debug)]
pub struct Output {
    pub bytes: Vec<u8>,
    pub rows_read: u64,
    pub rows_written: u64,
}

impl Engine {
    /// Loads the library, which stays loaded until the process ends.
    ///
    /// # Errors
    /// If the file is not a library, or lacks a required function.
    pub fn load(library: &Path, data_dir: &Path) -> anyhow::Result<Self> {
        // SAFETY: the caller asked for this library, which implies running its initialisers.
        let library = unsafe { Library::new(library) }
            .with_context(|| format!("cannot load {}", library.display()))?;
        // SAFETY: the signatures are those of `chdb.h`.
        let api = unsafe {
            if let Ok(handle_signals) =
                library.get::<unsafe extern "C" fn(c_int)>(b"chdb_set_signal_handlers_enabled\0")
            {
                // The front handles signals itself and closes the engine cleanly.
                handle_signals(0);
            }
            Api {
                connect: *library.get(b"chdb_connect\0")?,
                close: *library.get(b"chdb_close_conn\0")?,
                query: *library.get(b"chdb_query_with_params_n\0")?,
                destroy: *library.get(b"chdb_destroy_query_result\0")?,
                error: *library.get(b"chdb_result_error\0")?,
                buffer: *library.get(b"chdb_result_buffer\0")?,
                length: *library.get(b"chdb_result_length\0")?,
                rows_read: *library.get(b"chdb_result_rows_read\0")?,
                rows_written: *library.get(b"chdb_result_rows_written\0")?,
            }
        };
        // Never unload the library: the engine has its own threads, so its code must outlive
        // everything.
        std::mem::forget(library);
        let path = data_dir
            .to_str()
            .context("the data directory is not UTF-8")?;
        let arguments = [
            CString::new("clickhouse")?,
            CString::new(format!("--path={path}"))?,
        ];
        Ok(Self {
            api,
            arguments: Arc::new(arguments),
        })
    }

    /// Opens a session. The first session starts the engine, and closing the last one stops it.
    ///
    /// # Errors
    /// If the engine refuses, e.g. because another process uses the directory.
    pub fn connect(&self) -> anyhow::Result<Session> {
        let arguments: Vec<*const c_char> = self.arguments.iter().map(|arg| arg.as_ptr()).collect();
        let count = c_int::try_from(arguments.len())?;
        // SAFETY: `count` NUL-terminated strings that outlive the call.
        let connection = unsafe { (self.api.connect)(count, arguments.as_ptr()) };
        let connection = NonNull::new(connection).context("the engine did not start")?;
        Ok(Session {
            api: self.api,
            connection,
        })
    }
}

impl Session {
    /// Runs one statement, which may include the data of an INSERT. `params` are its server-side
    /// parameters, as escaped text. The error is the engine's message.
    ///
    /// # Errors
    /// If the engine refuses the statement or fails.
    pub fn query(
        &mut self,
        sql: &[u8],
        format: &str,
        params: &[(String, String)],
    ) -> Result<Output, String> {
        let names: Vec<*const c_char> = params
            .iter()
            .map(|(name, _)| name.as_ptr().cast())
            .collect();
        let name_lengths: Vec<usize> = params.iter().map(|(name, _)| name.len()).collect();
        let values: Vec<*const c_char> = params
            .iter()
            .map(|(_, value)| value.as_ptr().cast())
            .collect();
        let value_lengths: Vec<usize> = params.iter().map(|(_, value)| value.len()).collect();
        // SAFETY: the connection is open until `drop`; every pointer is paired with its length,
        // the four arrays have `params.len()` elements, and all of them outlive the call.
        let result = unsafe {
            (self.api.query)(
                *self.connection.as_ptr(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                names.as_ptr(),
                name_lengths.as_ptr(),
                values.as_ptr(),
                value_lengths.as_ptr(),
                params.len(),
            )
        };
        if result.is_null() {
            return Err("the engine returned no result".to_owned());
        }
        let output = self.copy_out(result);
        // SAFETY: a result of this library, destroyed once; `output` is a copy.
        unsafe { (self.api.destroy)(result) };
        output
    }

    /// Copies the result. The caller must still destroy it.
    fn copy_out(&self, result: QueryResult) -> Result<Output, String> {
        // SAFETY: `result` is a live result of this library. Its error is NULL or
        // NUL-terminated, and its buffer is NULL or has `length` readable bytes, both until it
        // is destroyed.
        unsafe {
            let error = (self.api.error)(result);
            if !error.is_null() {
                return Err(CStr::from_ptr(error).to_string_lossy().into_owned());
            }
            let buffer = (self.api.buffer)(result);
            let bytes = if buffer.is_null() {
                Vec::new()
            } else {
                let length = (self.api.length)(result);
                std::slice::from_raw_parts(buffer.cast::<u8>(), length).to_vec()
            };
            Ok(Output {
                bytes,
                rows_read: (self.api.rows_read)(result),
                rows_written: (self.api.rows_written)(result),
            })
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: opened by `connect` of this library and closed only here.
        unsafe { (self.api.close)(self.connection.as_ptr()) };
    }
}
