//! What the C face is made of: borrowed slices in, owned buffers out, panics turned into messages.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct TmSlice {
    pub data: *const u8,
    pub size: usize,
}

/// An owned vector in C's hands. T is u8 (TmBytes) or u32 (TmIds).
#[repr(C)]
pub struct Owned<T> {
    data: *mut T,
    size: usize,
    capacity: usize,
}
pub type TmBytes = Owned<u8>;
pub type TmIds = Owned<u32>;

impl<T> Owned<T> {
    pub fn from_vec(vec: Vec<T>) -> Self {
        let mut vec = std::mem::ManuallyDrop::new(vec);
        Owned { data: vec.as_mut_ptr(), size: vec.len(), capacity: vec.capacity() }
    }
    unsafe fn free(self) {
        if !self.data.is_null() {
            drop(Vec::from_raw_parts(self.data, self.size, self.capacity));
        }
    }
}

#[no_mangle]
pub unsafe extern "C" fn tm_bytes_free(bytes: TmBytes) {
    bytes.free()
}

#[no_mangle]
pub unsafe extern "C" fn tm_ids_free(ids: TmIds) {
    ids.free()
}

impl TmSlice {
    pub fn of(bytes: &[u8]) -> Self {
        TmSlice { data: bytes.as_ptr(), size: bytes.len() }
    }
    /// The caller promises that data and size describe memory that lives through the call.
    pub unsafe fn bytes<'a>(&self) -> &'a [u8] {
        slice(self.data, self.size)
    }
    pub unsafe fn str<'a>(&self, what: &str) -> Result<&'a str, String> {
        text(self.bytes(), what)
    }
}

/// C may pass NULL with length 0, which Rust slices must not be made of.
pub unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 || data.is_null() {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

pub fn text<'a>(bytes: &'a [u8], what: &str) -> Result<&'a str, String> {
    std::str::from_utf8(bytes).map_err(|e| format!("{what} is not valid UTF-8 (byte {} is wrong)", e.valid_up_to()))
}

/// Runs `work`; on failure fills *error and returns None.
pub unsafe fn guard<T>(error: *mut TmBytes, work: impl FnOnce() -> Result<T, String>) -> Option<T> {
    let message = match quietly(work) {
        Ok(Ok(value)) => return Some(value),
        Ok(Err(message)) => message,
        Err(message) => message,
    };
    if !error.is_null() {
        error.write(TmBytes::from_vec(message.into_bytes()));
    }
    None
}

/// Runs `work`; a panic becomes its message. For functions that cannot fail otherwise too.
pub fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // The default hook would print to stderr, which belongs to the program; the message goes to the caller instead.
    static HOOK: Once = Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|s| s.to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "unknown cause".to_string());
        format!("internal error in the text library: {text}")
    })
}

pub fn boxed<T>(value: Option<T>) -> *mut T {
    value.map_or(std::ptr::null_mut(), |v| Box::into_raw(Box::new(v)))
}

/// Frees what `boxed` made.
pub unsafe fn unbox<T>(object: *mut T) {
    if !object.is_null() {
        let _ = quietly(|| drop(Box::from_raw(object)));
    }
}
