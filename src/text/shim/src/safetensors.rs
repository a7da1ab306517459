//! The header of a safetensors file, checked by the `safetensors` crate.

use crate::ffi::{boxed, guard, slice, unbox, TmBytes, TmSlice};
use safetensors::{Dtype, SafeTensors};

struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

pub struct TmSafetensors {
    tensors: Vec<Tensor>,
}

#[repr(C)]
pub struct TmSafetensor {
    name: TmSlice,
    dtype: TmSlice,
    shape: *const u64,
    ndim: usize,
    begin: u64,
    end: u64,
}

/// The spelling in the file, which is what serde writes.
fn dtype_name(dtype: Dtype) -> String {
    match serde_json::to_value(dtype) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{dtype:?}"),
    }
}

fn parse(file: &[u8]) -> Result<TmSafetensors, String> {
    let (header_size, metadata) = SafeTensors::read_metadata(file).map_err(|e| e.to_string())?;
    let data_begin = (8 + header_size) as u64;
    let mut tensors: Vec<Tensor> = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| Tensor {
            name,
            dtype: dtype_name(info.dtype),
            shape: info.shape.iter().map(|&d| d as u64).collect(),
            begin: data_begin + info.data_offsets.0 as u64,
            end: data_begin + info.data_offsets.1 as u64,
        })
        .collect();
    tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    Ok(TmSafetensors { tensors })
}

#[no_mangle]
pub unsafe extern "C" fn tm_safetensors_parse(file: *const u8, size: usize, error: *mut TmBytes) -> *mut TmSafetensors {
    boxed(guard(error, || parse(slice(file, size))))
}

#[no_mangle]
pub unsafe extern "C" fn tm_safetensors_count(header: *const TmSafetensors) -> usize {
    let header = &*header;
    header.tensors.len()
}

#[no_mangle]
pub unsafe extern "C" fn tm_safetensors_get(header: *const TmSafetensors, index: usize) -> TmSafetensor {
    let header = &*header;
    match header.tensors.get(index) {
        Some(t) => TmSafetensor {
            name: TmSlice::of(t.name.as_bytes()),
            dtype: TmSlice::of(t.dtype.as_bytes()),
            shape: if t.shape.is_empty() { std::ptr::null() } else { t.shape.as_ptr() },
            ndim: t.shape.len(),
            begin: t.begin,
            end: t.end,
        },
        None => TmSafetensor {
            name: TmSlice::of(b""),
            dtype: TmSlice::of(b""),
            shape: std::ptr::null(),
            ndim: 0,
            begin: 0,
            end: 0,
        },
    }
}

#[no_mangle]
pub unsafe extern "C" fn tm_safetensors_free(header: *mut TmSafetensors) {
    unbox(header)
}
