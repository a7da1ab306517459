//! Chat templates: minijinja set up as Hugging Face sets up jinja2.

use crate::ffi::{guard, TmBytes, TmSlice};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use std::sync::{Arc, Mutex};

/// Steps a template may take: hundreds of times what a long chat needs, and a bound for one that loops.
const FUEL: u64 = 10_000_000;

#[repr(C)]
pub struct TmChatInput {
    source: TmSlice,
    messages_json: TmSlice,
    kwargs_json: TmSlice,
    bos_token: TmSlice,
    eos_token: TmSlice,
    has_frozen_now: bool,
    frozen_now: TmSlice,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

// ---- tojson: json.dumps with Hugging Face's defaults (ensure_ascii=False) ----

struct JsonStyle {
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonStyle {
    fn from_kwargs(kwargs: &Kwargs, positional_indent: Option<Value>) -> Result<Self, Error> {
        let indent: Option<Value> = kwargs.get::<Option<Value>>("indent")?.or(positional_indent);
        let indent = match indent {
            Some(v) if v.kind() == ValueKind::String => Some(v.to_string()),
            Some(v) if !v.is_none() && !v.is_undefined() => Some(" ".repeat(usize::try_from(v).unwrap_or(0).min(64))),
            _ => None,
        };
        let mut item_separator = if indent.is_some() { "," } else { ", " }.to_string();
        let mut key_separator = ": ".to_string();
        if let Some(pair) = kwargs.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
            let parts: Vec<Value> = pair.try_iter()?.collect();
            let [item, key] = parts.as_slice() else { return Err(invalid("tojson: separators must be a pair")) };
            item_separator = item.to_string();
            key_separator = key.to_string();
        }
        Ok(JsonStyle {
            indent,
            item_separator,
            key_separator,
            ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
            sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        })
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ensure_ascii && (c as u32) >= 0x7f && c != '\u{7f}') => {
                    let mut units = [0u16; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > 200 {
            return Err(invalid("tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(out, value),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.sequence(out, '[', ']', depth, &items, |out, item| self.write(out, item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut entries: Vec<(String, Value)> = Vec::new();
                for key in value.try_iter()? {
                    let item = value.get_item(&key)?;
                    let name = match key.kind() {
                        ValueKind::None => "null".to_string(),
                        ValueKind::Bool => (if key.is_true() { "true" } else { "false" }).to_string(),
                        _ => key.to_string(),
                    };
                    entries.push((name, item));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.sequence(out, '{', '}', depth, &entries, |out, (name, item)| {
                    self.string(out, name);
                    out.push_str(&self.key_separator);
                    self.write(out, item, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("Object of type {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn sequence<T>(
        &self,
        out: &mut String,
        open: char,
        close: char,
        depth: usize,
        items: &[T],
        mut each: impl FnMut(&mut String, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.new_line(out, depth + 1);
            each(out, item)?;
        }
        if !items.is_empty() {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }
}

/// Numbers as Python's repr writes them.
fn number(out: &mut String, value: &Value) {
    if value.is_integer() {
        out.push_str(&value.to_string());
        return;
    }
    let float = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    if float.is_nan() {
        out.push_str("NaN");
    } else if float.is_infinite() {
        out.push_str(if float > 0.0 { "Infinity" } else { "-Infinity" });
    } else {
        let scientific = format!("{float:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        if (-4..16).contains(&exponent) {
            let plain = float.to_string();
            out.push_str(&plain);
            if !plain.contains('.') {
                out.push_str(".0");
            }
        } else {
            out.push_str(&format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()));
        }
    }
}

fn tojson(value: Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let style = JsonStyle::from_kwargs(&kwargs, indent)?;
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, &value, 0)?;
    Ok(Value::from_safe_string(out))
}

// ---- strftime_now ----

/// "YYYY-MM-DD HH:MM:SS" as a broken-down time.
fn parse_time(text: &str) -> Option<libc::tm> {
    let mut fields = text.split(['-', ' ', ':']).map(|part| part.parse::<i32>().ok());
    let mut next = || fields.next().flatten();
    // SAFETY: tm is a plain C struct for which all zeros are a value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    tm.tm_year = next()?.checked_sub(1900)?;
    tm.tm_mon = next()?.checked_sub(1)?;
    tm.tm_mday = next()?;
    tm.tm_hour = next()?;
    tm.tm_min = next()?;
    tm.tm_sec = next()?;
    // SAFETY: timegm reads and normalises its argument, and sets the day of the week.
    (unsafe { libc::timegm(&mut tm) } != -1).then_some(tm)
}

fn local_time() -> libc::tm {
    // SAFETY: time and localtime_r write to what they are given only.
    unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut tm: libc::tm = std::mem::zeroed();
        libc::localtime_r(&now, &mut tm);
        tm
    }
}

fn strftime(format: &str, tm: &libc::tm) -> Result<String, Error> {
    // What the C library does not know, or knows more about than Python's naive datetime.
    let format = format.replace("%f", "000000").replace("%z", "").replace("%Z", "");
    if format.is_empty() {
        return Ok(String::new());
    }
    let c_format = std::ffi::CString::new(format).map_err(|_| invalid("strftime_now: the format has a zero byte"))?;
    let mut buffer = vec![0u8; 256];
    while buffer.len() <= 1 << 16 {
        // SAFETY: the buffer's length is given, the format is zero-terminated.
        let size = unsafe { libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), c_format.as_ptr(), tm) };
        if size > 0 {
            return Ok(String::from_utf8_lossy(&buffer[..size]).into_owned());
        }
        buffer.resize(buffer.len() * 4, 0);
    }
    Err(invalid("strftime_now: the result is empty or too long"))
}

// ---- rendering ----

/// Hugging Face's {% generation %} block marks the assistant's text for training and prints it: here a block that is
/// always taken.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[2..end];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match replacement {
            Some(text) => {
                out.push_str("{%");
                out.push_str(&inner.replacen(word, &format!(" {text} "), 1));
                out.push_str("%}");
                rest = &tag[end + 2..];
            }
            None => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn environment(now: Option<String>, raised: Arc<Mutex<Option<String>>>) -> Environment<'static> {
    let mut env = Environment::new();
    minijinja_contrib::add_to_environment(&mut env);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_fuel(Some(FUEL));
    env.add_filter("tojson", tojson);
    // As Python has them: None is no iterable, a string and a dict are sequences.
    env.add_test("iterable", |value: Value| {
        !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
    });
    env.add_test("sequence", |value: Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    env.add_function("raise_exception", move |message: String| -> Result<Value, Error> {
        if let Ok(mut raised) = raised.lock() {
            *raised = Some(message.clone());
        }
        Err(invalid(message))
    });
    env.add_function("strftime_now", move |format: String| {
        strftime(&format, &now.as_deref().and_then(parse_time).unwrap_or_else(local_time))
    });
    env
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn describe(error: &Error) -> String {
    let mut message = one_line(&error.to_string());
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        message = format!("{message}: {}", one_line(&inner.to_string()));
        cause = inner.source();
    }
    message
}

/// In the order of the file's keys.
fn to_value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(int), _) => Value::from(int),
            (None, Some(int)) => Value::from(int),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(to_value).collect(),
        Json::Object(entries) => Value::from_pairs(entries.iter().map(|(key, item)| (key.as_str(), to_value(item)))),
    }
}

/// The text that continue_final_message cuts at: the last message's content, or its last text part.
fn final_text(messages: &serde_json::Value) -> Option<String> {
    match messages.as_array()?.last()?.get("content")? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Array(parts) => {
            parts.iter().rev().find_map(|part| part.get("text")?.as_str()).map(str::to_string)
        }
        _ => None,
    }
}

/// Ends the text with the last message, so that the model goes on with it.
fn cut_after_final(rendered: &str, last: &str) -> Result<String, String> {
    let trimmed = last.trim();
    let Some(at) = rendered.rfind(trimmed) else {
        return Err(
            "continue_final_message is set, but the last message's text does not appear in the rendered chat; \
                    the template changes it"
                .to_string(),
        );
    };
    let left_trimmed = last.trim_start();
    let end = if rendered[at..].starts_with(left_trimmed) { at + left_trimmed.len() } else { at + trimmed.len() };
    Ok(rendered[..end].to_string())
}

unsafe fn render(input: &TmChatInput) -> Result<String, String> {
    let json = |slice: &TmSlice, what: &str| -> Result<serde_json::Value, String> {
        serde_json::from_slice(slice.bytes()).map_err(|e| format!("{what} are not valid JSON: {e}"))
    };
    let messages = json(&input.messages_json, "the messages")?;
    if !messages.is_array() {
        return Err("the messages must be a list".to_string());
    }
    let serde_json::Value::Object(kwargs) = json(&input.kwargs_json, "the template's arguments")? else {
        return Err("the template's arguments must be an object".to_string());
    };
    let now = match input.has_frozen_now {
        true => {
            let clock = input.frozen_now.str("the clock")?;
            parse_time(clock).ok_or("the clock must be YYYY-MM-DD HH:MM:SS")?;
            Some(clock.to_string())
        }
        false => None,
    };
    let raised = Arc::new(Mutex::new(None));
    let mut env = environment(now, raised.clone());
    let source = without_generation_tags(input.source.str("the chat template")?);
    env.add_template("chat", &source).map_err(|e| format!("the chat template does not parse: {}", describe(&e)))?;

    let continues = kwargs.get("continue_final_message").and_then(|v| v.as_bool()).unwrap_or(false);
    let mut context = serde_json::Map::new();
    context.insert("tools".into(), serde_json::Value::Null);
    context.insert("documents".into(), serde_json::Value::Null);
    context.insert("add_generation_prompt".into(), false.into());
    for (name, token) in [("bos_token", &input.bos_token), ("eos_token", &input.eos_token)] {
        let token = token.str(name)?;
        if !token.is_empty() {
            context.insert(name.into(), token.into());
        }
    }
    context.extend(kwargs.into_iter().filter(|(name, _)| name != "continue_final_message"));
    let last = final_text(&messages);
    context.insert("messages".into(), messages);

    let template = env.get_template("chat").map_err(|e| describe(&e))?;
    let rendered = template.render(to_value(&serde_json::Value::Object(context.clone()))).map_err(|e| {
        let raised = raised.lock().ok().and_then(|mut message| message.take());
        match raised {
            Some(message) => format!("the chat template refuses these messages: {message}"),
            None => format!("the chat template failed: {}", describe(&e)),
        }
    })?;
    if !continues {
        return Ok(rendered);
    }
    if context.get("add_generation_prompt").and_then(|v| v.as_bool()).unwrap_or(false) {
        return Err("continue_final_message and add_generation_prompt exclude each other; set one of them".to_string());
    }
    cut_after_final(&rendered, &last.ok_or("continue_final_message is set, but the last message has no text")?)
}

#[no_mangle]
pub unsafe extern "C" fn tm_chat_render(input: *const TmChatInput, out: *mut TmBytes, error: *mut TmBytes) -> bool {
    let result = guard(error, || render(&*input));
    result.map(|text| out.write(TmBytes::from_vec(text.into_bytes()))).is_some()
}
