//! Where this library's memory comes from.
//!
//! A tokenizer is hundreds of thousands of small blocks, made in one thread and freed in another. malloc() keeps those in
//! the heap of the thread that made them and gives the freed end of such a heap back late or never, so an engine that
//! was shut down would go on holding the memory of its tokenizer. mimalloc gives freed pages back, and on demand all.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_int, c_long};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// mimalloc; under a sanitizer the system's allocator, whose blocks it watches.
struct Memory;

#[global_allocator]
static MEMORY: Memory = Memory;

const UNDECIDED: u8 = 0;
const MIMALLOC: u8 = 1;
const SYSTEM: u8 = 2;
static CHOICE: AtomicU8 = AtomicU8::new(UNDECIDED);

extern "C" {
    fn mi_collect(force: bool);
    fn mi_option_set_default(option: c_int, value: c_long);
}

// mi_option_t of the version in Cargo.toml.
const ARENA_EAGER_COMMIT: c_int = 4;
const MINIMAL_PURGE_SIZE: c_int = 44; // KiB

/// Allocates nothing here, and any number of threads may come first.
#[cold]
fn decide() -> bool {
    let present = |name: &std::ffi::CStr| unsafe { !libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).is_null() };
    let system = [c"__asan_init", c"__tsan_init", c"__msan_init"].into_iter().any(present);
    if !system {
        // Pages are taken and given back one by one, not in huge ones of which a single block holds 2 MiB.
        unsafe {
            mi_option_set_default(ARENA_EAGER_COMMIT, 0);
            mi_option_set_default(MINIMAL_PURGE_SIZE, 64);
        }
    }
    CHOICE.store(if system { SYSTEM } else { MIMALLOC }, Relaxed);
    system
}

#[inline]
fn by_system() -> bool {
    match CHOICE.load(Relaxed) {
        MIMALLOC => false,
        SYSTEM => true,
        _ => decide(),
    }
}

unsafe impl GlobalAlloc for Memory {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if by_system() {
            System.alloc(layout)
        } else {
            MiMalloc.alloc(layout)
        }
    }
    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if by_system() {
            System.alloc_zeroed(layout)
        } else {
            MiMalloc.alloc_zeroed(layout)
        }
    }
    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if by_system() {
            System.dealloc(memory, layout)
        } else {
            MiMalloc.dealloc(memory, layout)
        }
    }
    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if by_system() {
            System.realloc(memory, layout, size)
        } else {
            MiMalloc.realloc(memory, layout, size)
        }
    }
}

#[no_mangle]
pub extern "C" fn tm_release_memory() {
    if !by_system() {
        unsafe { mi_collect(true) }
    }
}
