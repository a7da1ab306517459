// tokenmill._native: a thin face of include/tokenmill for the Python package, which is written over it in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include "convert.h"
#include "log_queue.h"
#include "logit_processor.h"
#include "mailbox.h"
#include "native_engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tokenmill::python {
namespace {

// Python threads that wait inside; leaving the interpreter waits for them, as a thread must not come back into an
// interpreter that is gone.
std::atomic<int> waiting_threads{0};

struct Waiting {
  Waiting() { ++waiting_threads; }
  ~Waiting() { --waiting_threads; }
};

template <class Wait>
bool wait_without_gil(Wait wait) {
  bool result = false;
  {
    const Waiting waiting;
    const nb::gil_scoped_release release;
    result = wait();
  }
  if (PyErr_CheckSignals() != 0) throw nb::python_error();  // Ctrl-C
  return result;
}

const char* status_name(FieldStatus status) {
  switch (status) {
    case FieldStatus::kHonoured:
      return "honoured";
    case FieldStatus::kServerOnly:
      return "server_only";
    case FieldStatus::kNotBuilt:
      return "not_built";
  }
  return "";
}

ServerArgs server_args_from(nb::dict values) {
  ServerArgs args;
  for (const auto& [key, value] : values) {
    const std::string name = to_utf8("a field's name", key);
    const ServerArgsField* field = find_server_args_field(name);
    if (field == nullptr) throw Error(ErrorKind::kType, unknown_server_args_field_message(name));
    field->set_value(args, to_option_value(name, value));
  }
  return args;
}

SamplingParams sampling_params_from(nb::dict values) {
  SamplingParams params;
  for (const auto& [key, value] : values) {
    if (!PyUnicode_Check(key.ptr())) {
      throw Error(ErrorKind::kType,
                  std::string("sampling_params must have str keys, got ") + nb::repr(key).c_str() + ".");
    }
    const std::string name = to_utf8("sampling_params", key);
    if (name == "custom_logit_processor") {
      params.custom_logit_processor = to_logit_processor(value);
      continue;
    }
    const SamplingParamsField& field = find_sampling_params_field(name);
    field.set(params, to_option_value(std::string(field.name), value));
  }
  params.validate();
  return params;
}

nb::list server_args_table() {
  nb::list rows;
  const ServerArgs defaults;
  for (const ServerArgsField& field : server_args_fields()) {
    rows.append(nb::make_tuple(field.name, field.type, from_option_value(field.get_value(defaults)), field.help,
                               status_name(field.status)));
  }
  return rows;
}

nb::list sampling_params_table() {
  nb::list rows;
  const SamplingParams defaults;
  for (const SamplingParamsField& field : sampling_params_fields()) {
    rows.append(nb::make_tuple(field.name, field.type, from_option_value(field.get(defaults)), field.help));
  }
  return rows;
}

using SharedMailbox = Shared<Mailbox>;
using SharedLogQueue = Shared<LogQueue>;

// (level as Python's logging numbers it, line)
nb::list take_lines(LogQueue& queue) {
  nb::list list;
  for (const auto& [level, line] : queue.take()) {
    list.append(
        nb::make_tuple((static_cast<int>(level) + 1) * 10,
                       nb::steal(PyUnicode_DecodeUTF8(line.data(), static_cast<Py_ssize_t>(line.size()), "replace"))));
  }
  return list;
}

nb::list take_mail(Mailbox& mailbox) {
  nb::list list;
  for (const Mail& mail : mailbox.take()) {
    if (mail.output) {
      list.append(nb::make_tuple(mail.call, mail.output->index, mail.output->finished(),
                                 to_dict(*mail.output, mail.with_index, mail.with_logprobs)));
    } else if (mail.error) {
      list.append(nb::make_tuple(mail.call, -1, true, exception_of(*mail.error)));
    } else {
      list.append(nb::make_tuple(mail.call, -1, false, nb::none()));
    }
  }
  return list;
}

RequestOptions make_options(nb::dict sampling_params, bool return_logprob, std::optional<int64_t> logprob_start_len,
                            int64_t top_logprobs_num, nb::object token_ids_logprob,
                            std::optional<std::string> lora_path, int64_t priority,
                            std::optional<std::string> cache_salt, bool return_prompt_token_ids,
                            std::string chat_kwargs_json) {
  RequestOptions options;
  options.request.sampling_params = sampling_params_from(sampling_params);
  options.request.return_logprob = return_logprob;
  options.request.logprob_start_len = logprob_start_len;
  options.request.top_logprobs_num = top_logprobs_num;
  if (!token_ids_logprob.is_none()) {
    const std::vector<int32_t> ids = to_token_ids("token_ids_logprob", token_ids_logprob);
    options.request.token_ids_logprob.assign(ids.begin(), ids.end());
  }
  options.request.lora_path = std::move(lora_path);
  options.request.priority = priority;
  options.request.cache_salt = std::move(cache_salt);
  options.request.return_prompt_token_ids = return_prompt_token_ids;
  options.request.chat_kwargs_json = std::move(chat_kwargs_json);
  return options;
}

// on_progress: called with (requests, finished ones, tokens), under the GIL, at least ten times a second; that is also
// where Ctrl-C is seen.
nb::dict run_batch(NativeEngine& self, const std::string& input, const std::string& output,
                   const RequestOptions& defaults, bool ordered, bool overwrite, std::optional<std::string> error_path,
                   int64_t window, nb::object on_progress) {
  Engine& engine = self.use();
  BatchOptions options;
  options.sampling_params = defaults.request.sampling_params;
  options.return_logprob = defaults.request.return_logprob;
  options.top_logprobs_num = defaults.request.top_logprobs_num;
  options.ordered = ordered;
  options.overwrite = overwrite;
  options.error_path = std::move(error_path);
  options.window = window;
  options.on_progress = [&on_progress](const BatchProgress& progress) {
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    on_progress(progress.total, progress.resumed + progress.done + progress.failed, progress.completion_tokens);
    return true;
  };
  BatchReport report;
  {
    const Waiting waiting;
    const nb::gil_scoped_release release;
    report = engine.run_batch(input, output, options);
  }
  nb::dict dict;
  dict["total"] = report.total;
  dict["resumed"] = report.resumed;
  dict["done"] = report.done;
  dict["failed"] = report.failed;
  dict["prompt_tokens"] = report.prompt_tokens;
  dict["cached_tokens"] = report.cached_tokens;
  dict["completion_tokens"] = report.completion_tokens;
  dict["error_path"] = report.error_path.empty() ? nb::none() : nb::object(nb::str(report.error_path.c_str()));
  return dict;
}

// Runs `get` without the GIL.
template <class Get>
auto released(const NativeEngine& engine, Get get) {
  Engine& inner = engine.use();
  const nb::gil_scoped_release release;
  return get(inner);
}

void bind_engine(nb::module_& module) {
  nb::class_<NativeEngine>(module, "Engine")
      .def("__init__", [](NativeEngine* self, nb::dict args,
                          const SharedLogQueue& log) { new (self) NativeEngine(server_args_from(args), log.get()); })
      .def(
          "submit",
          [](NativeEngine& self, const SharedMailbox& mailbox, int64_t call, int kind, nb::list prompts,
             nb::list options, nb::object rids, bool stream, bool single, bool later, int64_t first_position) {
            const Submission submission{call, static_cast<PromptKind>(kind), stream, single, later, first_position};
            return self.submit(mailbox.get(), submission, prompts, options, rids);
          },
          "mailbox"_a, "call"_a, "kind"_a, "prompts"_a, "options"_a, "rids"_a.none(), "stream"_a, "single"_a, "later"_a,
          "first_position"_a)
      .def("pin",
           [](NativeEngine& self, int kind, nb::object prompt, const RequestOptions& options) {
             return self.pin(static_cast<PromptKind>(kind), prompt, options);
           })
      .def("save_prefix",
           [](NativeEngine& self, int kind, nb::object prompt, const RequestOptions& options, const std::string& path) {
             return self.save_prefix(static_cast<PromptKind>(kind), prompt, options, path);
           })
      .def("load_prefix",
           [](NativeEngine& self, const std::string& path, const std::optional<std::string>& cache_salt) {
             return released(self, [&](Engine& e) { return e.load_prefix(path, cache_salt); });
           })
      .def("abort",
           [](NativeEngine& self, const std::string& rid) { released(self, [&](Engine& e) { e.abort(rid); }); })
      .def("abort_all", [](NativeEngine& self) { released(self, [](Engine& e) { e.abort_all(); }); })
      .def("flush_cache", [](NativeEngine& self) { return released(self, [](Engine& e) { return e.flush_cache(); }); })
      .def("stats", [](NativeEngine& self) { return released(self, [](Engine& e) { return e.stats(); }); })
      .def("prometheus_metrics",
           [](NativeEngine& self) { return released(self, [](Engine& e) { return e.prometheus_metrics(); }); })
      .def("server_info_json",
           [](NativeEngine& self) { return released(self, [](Engine& e) { return e.server_info_json(); }); })
      .def("server_args",
           [](NativeEngine& self) {
             const ServerArgs args = self.use().server_args();
             nb::dict dict;
             for (const ServerArgsField& field : server_args_fields()) {
               dict[nb::str(field.name.data(), field.name.size())] = from_option_value(field.get_value(args));
             }
             return dict;
           })
      .def("encode_text", &NativeEngine::encode_text)
      .def("decode_ids",
           [](NativeEngine& self, nb::object ids, bool skip_special_tokens) {
             const std::vector<int32_t> list = to_token_ids("ids", ids);
             return released(self, [&](Engine& e) { return e.decode_ids(list, skip_special_tokens); });
           })
      .def("apply_chat_template",
           [](NativeEngine& self, nb::object conversation, bool add_generation_prompt, const std::string& kwargs) {
             const std::string messages = to_utf8("messages", conversation, " of the JSON");
             return released(self,
                             [&](Engine& e) { return e.apply_chat_template(messages, add_generation_prompt, kwargs); });
           })
      .def("eos_token_id", [](NativeEngine& self) { return self.use().eos_token_id(); })
      .def("eos_token_ids", [](NativeEngine& self) { return self.use().eos_token_ids(); })
      .def("bos_token_id", [](NativeEngine& self) { return self.use().bos_token_id(); })
      .def("vocab_size", [](NativeEngine& self) { return self.use().vocab_size(); })
      .def("context_length", [](NativeEngine& self) { return self.use().context_length(); })
      .def("run_batch", &run_batch, "input"_a, "output"_a, "options"_a, "ordered"_a, "overwrite"_a,
           "error_path"_a.none(), "window"_a, "on_progress"_a)
      .def("shutdown", &NativeEngine::shutdown);
}

void bind_plumbing(nb::module_& module) {
  nb::class_<SharedMailbox>(module, "Mailbox")
      .def("__init__",
           [](SharedMailbox* self, bool watched) { new (self) SharedMailbox(std::make_shared<Mailbox>(watched)); })
      .def("take", [](SharedMailbox& self) { return take_mail(*self.get()); })
      .def("wait",
           [](SharedMailbox& self, size_t count, int64_t timeout_ms) {
             return wait_without_gil([&] { return self.get()->wait(count, std::chrono::milliseconds(timeout_ms)); });
           })
      .def("fileno", [](SharedMailbox& self) { return self.get()->fd(); })
      .def("__len__", [](SharedMailbox& self) { return self.get()->size(); });
  nb::class_<NativeCall>(module, "Call").def("abort", &NativeCall::abort);
  nb::class_<NativePin>(module, "Pin").def("tokens", &NativePin::tokens).def("release", &NativePin::release);
  nb::class_<RequestOptions>(module, "RequestOptions")
      .def(
          "__init__",
          [](RequestOptions* self, nb::dict sampling_params, bool return_logprob,
             std::optional<int64_t> logprob_start_len, int64_t top_logprobs_num, nb::object token_ids_logprob,
             std::optional<std::string> lora_path, int64_t priority, std::optional<std::string> cache_salt,
             bool return_prompt_token_ids, std::string chat_kwargs_json) {
            new (self)
                RequestOptions(make_options(sampling_params, return_logprob, logprob_start_len, top_logprobs_num,
                                            token_ids_logprob, std::move(lora_path), priority, std::move(cache_salt),
                                            return_prompt_token_ids, std::move(chat_kwargs_json)));
          },
          "sampling_params"_a, "return_logprob"_a, "logprob_start_len"_a.none(), "top_logprobs_num"_a,
          "token_ids_logprob"_a.none(), "lora_path"_a.none(), "priority"_a, "cache_salt"_a.none(),
          "return_prompt_token_ids"_a, "chat_kwargs_json"_a)
      .def_prop_ro("n", [](const RequestOptions& self) { return self.request.sampling_params.n; });
  nb::class_<SharedLogQueue>(module, "LogQueue")
      .def("__init__", [](SharedLogQueue* self) { new (self) SharedLogQueue(std::make_shared<LogQueue>()); })
      .def("take", [](SharedLogQueue& self) { return take_lines(*self.get()); })
      .def("wait",
           [](SharedLogQueue& self, int64_t timeout_ms) {
             return wait_without_gil([&] { return self.get()->wait(std::chrono::milliseconds(timeout_ms)); });
           })
      .def("close", [](SharedLogQueue& self) { self.get()->close(); });
}

}  // namespace
}  // namespace tokenmill::python

NB_MODULE(_native, module) {
  using namespace tokenmill;
  using namespace tokenmill::python;
  nb::object engine_error = nb::steal(PyErr_NewExceptionWithDoc(
      "tokenmill.EngineError", "The engine failed or was shut down while the call waited, or cannot take it.",
      PyExc_RuntimeError, nullptr));
  module.attr("EngineError") = engine_error;
  set_engine_error(engine_error);
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const Error& error) {
      const nb::object exception = exception_of(error);
      PyErr_SetObject(exception.type().ptr(), exception.ptr());
    }
  });
  module.def("version", &version);
  module.def("server_args_fields", &server_args_table);
  module.def("sampling_params_fields", &sampling_params_table);
  module.def("unknown_server_args_field_message",
             [](const std::string& name) { return unknown_server_args_field_message(name); });
  module.def("check_server_args", [](nb::dict values) { server_args_from(values).validate(); });
  module.def("check_sampling_params", [](nb::dict values) { (void)sampling_params_from(values); });
  module.def("server_args_text", [](nb::dict values) { return to_string(server_args_from(values)); });
  module.def("check_text", [](const std::string& name, nb::object text) { (void)to_utf8(name, text); });
  module.def("find_sampling_param", [](const std::string& name) { return find_sampling_params_field(name).name; });
  // A child never ends its parent's threads' frames, so what these hold is no leak of ours.
  module.def("after_fork", [] {
    nb::set_leak_warnings(false);
    waiting_threads = 0;
  });
  module.def("leave", &leave);
  module.def("waiting_threads", [] { return waiting_threads.load(); });
  bind_engine(module);
  bind_plumbing(module);
}
