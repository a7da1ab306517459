//! The Rust side of tm_text_shim.h: well-kept crates behind a small C face. Every entry goes through `guard`, so
//! neither an error nor a panic leaves this library as anything but a message.

mod chat;
mod ffi;
mod memory;
mod regex;
mod safetensors;
mod tokenizer;
mod vocab;
