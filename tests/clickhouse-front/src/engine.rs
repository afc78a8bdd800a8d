//! The ClickHouse engine inside `libchdb.so`, behind a safe interface: the one place with unsafe code.
//!
//! What is relied on (declared in chDB's `chdb.h`): a connection may be used from any thread, by
//! one thread at a time (`&mut self` sees to that); several connections of one process share one
//! storage path and run side by side; buffers and errors belong to the result and live until it is
//! destroyed; strings are passed with their lengths, so they may contain any bytes.
#![expect(
    unsafe_code,
    reason = "a C library; every call is here, with what it relies on"
)]

use anyhow::Context as _;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

/// `chdb_connect` returns a pointer to this; queries take the value behind it.
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

/// The loaded library and the directory its tables are in. A process has one.
#[derive(Debug, Clone)]
pub struct Engine {
    api: Api,
    arguments: Arc<[CString]>,
}

/// A session of the engine, with a current database and settings of its own.
#[derive(Debug)]
pub struct Session {
    api: Api,
    connection: NonNull<Connection>,
}

// SAFETY: the library ties nothing to the thread that connected; `&mut self` keeps it to one at a time.
unsafe impl Send for Session {}

/// What a statement gave.
#[derive(Debug)]
pub struct Output {
    pub bytes: Vec<u8>,
    pub rows_read: u64,
    pub rows_written: u64,
}

impl Engine {
    /// Loads the library; it stays loaded until the process ends.
    ///
    /// # Errors
    /// When the file is no library, or lacks a function that is needed.
    pub fn load(library: &Path, data_dir: &Path) -> anyhow::Result<Self> {
        // SAFETY: running the library's initialisers is what the caller asked for.
        let library = unsafe { Library::new(library) }
            .with_context(|| format!("cannot load {}", library.display()))?;
        // SAFETY: the signatures are those of `chdb.h`.
        let api = unsafe {
            if let Ok(handle_signals) =
                library.get::<unsafe extern "C" fn(c_int)>(b"chdb_set_signal_handlers_enabled\0")
            {
                // Signals are the front's: it closes the engine in order.
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
        // The engine has threads of its own, so its code must outlive everything: never unloaded.
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

    /// Opens a session; the first one starts the engine, and closing the last one stops it.
    ///
    /// # Errors
    /// When the engine refuses, e.g. because another process has the directory.
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
    /// Runs one statement, which may carry the data of an INSERT; `params` are its server-side
    /// parameters, as escaped text. The error is the engine's message.
    ///
    /// # Errors
    /// When the engine refuses or fails.
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

    /// Copies the result, which stays the caller's to destroy.
    fn copy_out(&self, result: QueryResult) -> Result<Output, String> {
        // SAFETY: `result` is a live result of this library; its error is NULL or NUL-terminated,
        // its buffer is NULL or has `length` readable bytes, both until it is destroyed.
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
